"""The handler threads: started, kept while they are idle, joined.

Guarantees:

- A handler thread is busy with one client, or idle, or has ended. ``running`` holds the first two kinds; ``_ended``
  holds those that may still be in their last instructions, for a stop to join. So it does with other threads of the
  server that end when a stop tells them, such as the sender: see `HandlerThreads.help_out`.
- Whatever a handler raises reaches `threading.excepthook` and costs that thread, never another client.
- An idle thread waits at the door of the serving loop, and ends with that loop; at most `MAX_IDLE` are kept.
"""
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context

from .client import Client
from .registry import HandlerRegistry

MAX_IDLE = 128
"""Idle threads that are kept, at about 20 KB each. More would help only larger bursts of short connections."""

_REAPED = 64  # above this number of ended threads, those that have returned are forgotten
_START = 1.0  # seconds for a thread whose start was interrupted to show that it runs

_numbers = itertools.count(1)


class _Calling(threading.local):
    client: Client | None = None
    """The client that the calling thread serves; in the serving thread, the one that it has accepted last."""
    accepts = False
    """Whether it is a serving thread between an accept and the start of the handler thread."""


calling = _Calling()


def current_client() -> Client | None:
    """Return the `Client` that the calling thread serves; ``None`` in a thread that serves none."""
    return calling.client


def client_in_hand(registry: HandlerRegistry) -> Client | None:
    """Return the client that a stop in the calling thread must not wait for, as this thread has it in hand.

    A signal handler that calls for a stop may have interrupted the serving thread just after a client was listed.
    """
    if calling.client is None and calling.accepts:
        return registry.newest_unserved()
    return calling.client


class HandlerThread(threading.Thread):
    """A thread that serves one client, and then those that ``next_client`` returns, until that is ``None``."""

    def __init__(self, threads: HandlerThreads, client: Client, serve: Callable[[Client], None],
                 next_client: Callable[[], Client | None] | None, when_over: Callable[[], None] | None,
                 daemon: bool) -> None:
        super().__init__(daemon=daemon, name=f"client-handler-{next(_numbers)}")
        self.client: Client | None = client
        self._threads = threads
        self._serve = serve
        self._next_client = next_client
        self._when_over = when_over
        self.left = threads.registry.make_queue()  # the clients that have left through this thread

    def run(self) -> None:
        """Serve clients, each in a fresh `contextvars.Context`."""
        serve, next_client = self._serve, self._next_client
        del self._serve, self._next_client  # a program that keeps the thread object must not keep the server alive
        client = self.client
        try:
            while client is not None:
                Context().run(serve, client)
                self.client = client = None  # an idle thread keeps nothing alive
                if next_client is None:
                    break
                self.client = client = next_client()
        finally:
            del serve, next_client
            self.let_go()
            self._threads.end(self)

    def is_of(self, registry: HandlerRegistry) -> bool:
        """Return whether it serves clients of that registry; else it runs there for a handler of another server."""
        return self._threads.registry is registry

    def let_go(self) -> None:
        """Call ``when_over``, once."""
        when_over, self._when_over = self._when_over, None
        if when_over is not None:
            when_over()


class HandlerThreads:
    """The handler threads of one server."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self.registry = registry
        self.running: dict[HandlerThread, None] = {}
        self._ended: dict[threading.Thread, None] = {}
        # The program's own, and those that help out. Guarded by the registry's lock.
        self._adopted: list[threading.Thread] = []

    def serve(self, client: Client, serve: Callable[[Client], None], *, daemon: bool,
              next_client: Callable[[], Client | None] | None = None,
              when_over: Callable[[], None] | None = None) -> None:
        """Call ``serve(client)`` in a new handler thread; ``when_over`` is called when that ends, or cannot start.

        Raises what `threading.Thread.start` does if the thread cannot start. If something else interrupts the start,
        as Ctrl-C may, it is raised too; the client is then the new thread's if that runs (its ``thread`` is set).
        """
        thread = HandlerThread(self, client, serve, next_client, when_over, daemon)
        self.running[thread] = None
        try:
            thread.start()
        except BaseException as error:
            if isinstance(error, Exception) or not _runs(thread):
                self.running.pop(thread, None)  # a stop must not wait for this one
                self.registry.end_queue(thread.left)
                thread.let_go()
            else:
                client.thread = thread
            raise

    def end(self, thread: HandlerThread) -> None:
        """Note that ``thread`` has nothing left to do but to return."""
        self.registry.end_queue(thread.left)
        self._ended[thread] = None
        self.running.pop(thread, None)
        if len(self.running) <= self.registry.awaited:
            with self.registry.lock:
                self.registry.changed.notify_all()
        elif len(self._ended) > _REAPED:
            self._reap()

    def _reap(self) -> None:
        """Forget the threads that have returned. If the lock is taken, leave that to the next thread that ends."""
        if self.registry.lock.acquire(blocking=False):
            try:
                for thread in self._ended.copy():
                    if not thread.is_alive():
                        self._ended.pop(thread, None)
            finally:
                self.registry.lock.release()

    def count(self) -> tuple[int, int]:
        """Count the busy and the idle threads."""
        threads = list(self.running.copy())
        busy = sum(thread.client is not None for thread in threads)
        return busy, len(threads) - busy

    def to_join(self) -> tuple[list[threading.Thread], list[threading.Thread]]:
        """Return the threads that a stop has to join: those that have ended or help out, and the adopted ones."""
        with self.registry.lock:
            return list(self._ended.copy()), list(self._adopted)

    def everyone(self) -> list[threading.Thread]:
        """Copy the threads: handler threads, and those that are adopted."""
        with self.registry.lock:
            return [*self.running.copy(), *self._adopted]

    def help_out(self, thread: threading.Thread) -> None:
        """Have a stop join a thread that ends as soon as the stop tells it, and report it if it does not."""
        self._ended[thread] = None
        self.adopt([thread])

    def adopt(self, threads: Iterable[threading.Thread]) -> None:
        """Adopt threads that a program has made, so that a stop joins them too."""
        with self.registry.lock:
            self._adopted = [other for other in self._adopted if other.is_alive() or other.ident is None]
            self._adopted.extend(threads)


def _runs(thread: threading.Thread) -> bool:
    """Return whether a thread runs after all, although its start was interrupted."""
    deadline = time.monotonic() + _START
    while thread.ident is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return thread.ident is not None
