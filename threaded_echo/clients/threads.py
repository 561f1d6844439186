"""The handler threads: started, reused, joined.

A handler thread that is done waits for the next client, since starting a thread costs more than serving a short
connection, and costs it in the serving loop (`threading.Thread.start` waits for the new thread to run).

Guarantees:

- A thread is either busy with one client, or idle, or has ended; ``running`` holds the first two kinds, ``_idle`` the
  second, ``_ended`` those whose last instructions may still be running.
- Whatever a handler raises reaches `threading.excepthook` and costs that thread, never another client.
- An idle thread needs no time-out: `close` ends it, and at most `MAX_IDLE` are kept.
"""
from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any

from .registry import Client, HandlerRegistry

MAX_IDLE = 128
"""Idle threads that are kept, at some 20 KB each; more would be worth it only to bursts of more short clients."""

_numbers = itertools.count(1)
_calling = threading.local()  # client: the one that this thread serves


def current_client() -> Client | None:
    """Return the `Client` of the calling handler thread; ``None`` in any other thread."""
    return getattr(_calling, "client", None)


def set_current_client(client: Client | None) -> None:
    """Make ``client`` the calling thread's."""
    _calling.client = client


class HandlerThread(threading.Thread):
    """A thread that serves one client after another."""

    def __init__(self, threads: HandlerThreads, client: Client, job: Callable[..., Any], daemon: bool,
                 reuse: bool) -> None:
        super().__init__(daemon=daemon, name=f"client-handler-{next(_numbers)}")
        self.client: Client | None = client
        self.reuse = reuse
        self._threads = threads
        self._job: tuple[Callable[..., Any], Client] | None = (job, client)
        self._handed = threading.Lock()  # released by who hands over a job, or the end
        self._handed.acquire()

    def hand_over(self, client: Client, job: Callable[..., Any]) -> None:
        """Give an idle thread its next client."""
        self._job = (job, client)
        self._handed.release()

    def end(self) -> None:
        """Make an idle thread end."""
        self._handed.release()

    def run(self) -> None:
        """Serve clients until there is no other, or a handler raises what only `threading.excepthook` may see."""
        try:
            while self._job is not None:
                job, client = self._job
                self._job = None
                Context().run(job, client)
                del job, client  # an idle thread keeps nothing alive
                if not self._threads.rest(self):
                    break
                self._handed.acquire()
        finally:
            self._threads.ended(self)


class HandlerThreads:
    """The handler threads of one server. Its lock is the registry's."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self._registry = registry
        self.running: set[HandlerThread] = set()  # busy and idle
        self._idle: list[HandlerThread] = []  # the last one in is the first out: its stack is still in the cache
        self._ended: list[threading.Thread] = []
        self._adopted: list[threading.Thread] = []
        self._keeps_idle = True

    def serve(self, client: Client, job: Callable[..., Any], *, daemon: bool, reuse: bool) -> None:
        """Call ``job(client)`` in a handler thread, in a fresh `contextvars.Context`.

        Raises what `threading.Thread.start` does where a new thread is needed and cannot start.
        """
        thread = None
        if reuse:
            with self._registry.lock:
                if self._idle:
                    thread = self._idle.pop()
                    thread.client = client
        if thread is not None:
            thread.hand_over(client, job)
            return
        thread = HandlerThread(self, client, job, daemon, reuse)
        with self._registry.lock:
            self.running.add(thread)
        try:
            thread.start()
        except BaseException:  # no thread to be had, no memory, an interrupt: a stop must not wait for this one
            with self._registry.lock:
                self.running.discard(thread)
            raise

    def rest(self, thread: HandlerThread) -> bool:
        """Make ``thread`` idle, and return True, where it is to wait for another client."""
        with self._registry.lock:
            thread.client = None
            if not (thread.reuse and self._keeps_idle and len(self._idle) < MAX_IDLE):
                return False
            self._idle.append(thread)
        return True

    def ended(self, thread: HandlerThread) -> None:
        """Take note that ``thread`` has nothing left to do but to return."""
        with self._registry.lock:
            self.running.discard(thread)
            if self._keeps_idle:  # a stop joins them all, and must find them
                self.reap_locked()
            self._ended.append(thread)
            if len(self.running) <= self._registry.awaited:
                self._registry.changed.notify_all()

    def open_locked(self) -> None:
        """Keep idle threads from now on."""
        self._keeps_idle = True

    def close_locked(self) -> None:
        """As `close`."""
        self._keeps_idle = False
        idle, self._idle = self._idle, []
        for thread in idle:
            thread.end()

    def close(self) -> None:
        """End the idle threads, and each busy one once its client has gone."""
        with self._registry.lock:
            self.close_locked()

    def busy(self) -> dict[threading.Thread, Client]:
        """Copy which thread serves which client."""
        with self._registry.lock:
            return {thread: thread.client for thread in self.running if thread.client is not None}

    def count(self) -> tuple[int, int]:
        """Count the busy and the idle threads."""
        with self._registry.lock:
            return len(self.running) - len(self._idle), len(self._idle)

    def reap_locked(self) -> None:
        """Forget the threads that have returned."""
        self._ended = [thread for thread in self._ended if thread.is_alive()]

    def to_join(self) -> tuple[list[threading.Thread], list[threading.Thread]]:
        """Copy which threads a stop has to join: those that have ended, and those that a program added."""
        with self._registry.lock:
            return list(self._ended), list(self._adopted)

    # What existing programs and tests do with ``server._threads``, which socketserver makes a list of threads.

    def __len__(self) -> int:
        return len(self.running)

    def __iter__(self) -> Iterator[threading.Thread]:
        with self._registry.lock:
            return iter([*self.running, *self._adopted])

    def append(self, thread: threading.Thread) -> None:
        """Adopt a thread that a program's own ``process_request`` has made, so that a stop joins it too."""
        self.adopt([thread])

    def adopt(self, threads: Iterable[threading.Thread]) -> None:
        """Adopt threads that a program has made, so that a stop joins them too."""
        with self._registry.lock:
            self._adopted = [other for other in self._adopted if other.is_alive()]
            self._adopted.extend(threads)

    def join(self) -> None:
        """Do nothing: a stop joins them, with a bound (socketserver's `server_close` calls this)."""
