"""The serving loops: ``serve_forever``, ``handle_request``, and the background thread of ``start``.

Guarantees:

- A loop wakes for a connection or a stop, and for nothing else (unless it was given a time-out).
- A stop is never missed: `Loops.stop_locked` marks every loop and shuts its door, which stays shut.
- A loop that has ended leaves no thread at its door, which is shut. The last one to go closes it: the loop, or the last
  of those that `attach` has counted. These are the handler threads that accept for it, each until it ends, and whoever
  is opening a door that was held.
"""
from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..clients.client import Client
from ..clients.period import Period
from ..clients.registry import HandlerRegistry
from ..transport.several import listeners_of
from .door import Door, PollDoor, make_door
from .limits import Limits

_ALREADY = "this server is already serving"


class Loop:
    """One call of ``serve_forever`` or ``handle_request``, and the door at which it accepts."""

    def __init__(self, forever: bool, registry: HandlerRegistry, limits: Limits, server: Any) -> None:
        self.forever = forever
        self.limits = limits
        self.thread = threading.current_thread()
        self.period: Period  # set by `Stopping.begin_serving`
        self._registry = registry
        self._server = server  # whose options the limits are
        self._process = os.getpid()
        self.stopped = False  # guarded by the server's lock; read without it, since it changes once
        self._fileno: Callable[[], int] = lambda: -1
        self._door: Door | None = None  # guarded by the server's lock until the loop waits at it
        self._attached = 1  # the loop itself, and those that `attach` has counted; guarded by the server's lock
        self._error: BaseException | None = None  # what another thread has met at the door

    def open(self, fileno: Callable[[], int], others: Sequence[int] = ()) -> None:
        """Make the door; ``fileno`` returns the listening socket's descriptor, which programs may replace.

        ``others``: the descriptors of further listeners.
        """
        self._fileno = fileno
        door = (make_door if self.forever else PollDoor)(fileno(), others)
        with self._registry.lock:
            self._door = door
            if self.stopped:
                door.shut()

    def stop_locked(self) -> None:
        """End the loop's waiting, and that of the idle threads at its door."""
        self.stopped = True
        self.limits.forget_locked(self)
        if self._door is not None:
            self._door.shut()

    def attach(self) -> None:
        """Count a handler thread that is going to accept for this loop, or a thread that is going to open its door."""
        with self._registry.lock:
            self._attached += 1

    def detach(self) -> None:
        """Note that one of them, or the loop, has ended."""
        with self._registry.lock:
            self._attached -= 1
            closes = self._attached == 0
        if closes and self._door is not None:
            self._door.close()

    def wait(self, timeout: float | None) -> bool:
        """Wait until this thread is to accept; False after a stop or ``timeout`` seconds, or if there is no room."""
        assert self._door is not None, "open it first"
        if not self._door.wait(timeout):
            return False
        allowance = self.limits.allowance
        if allowance.left > 0:
            allowance.left -= 1
            return True
        return self.limits.look(self, self._server)

    def raise_error(self) -> None:
        """Raise what another thread has met at the door, if that has ended the loop."""
        if self._error is not None:
            raise self._error

    def reopen(self) -> None:
        """Let the next thread accept, if there is room; if the program has closed the listening socket, end the loop.
        """
        listener = self._fileno()
        if listener < 0 or self.limits.allowance.left > 0 or self.limits.lets_next(self):
            self._open(listener)

    def fileno(self) -> int:
        """Return the listening socket's descriptor; -1 if it is closed."""
        return self._fileno()

    def open_door(self) -> None:
        """Let the next thread accept, for which the door was held."""
        self._open(self._fileno())

    def _open(self, listener: int) -> None:
        assert self._door is not None, "open it first"
        self._door.reopen(listener)
        if listener < 0:
            with self._registry.lock:
                self.stop_locked()

    def fail(self, error: BaseException) -> None:
        """End the loop with an error, which is raised there."""
        with self._registry.lock:
            self._error = error
            self.stop_locked()

    def next_client(self, accept: Callable[[Period], Client | None], is_crowded: Callable[[], bool]) -> Client | None:
        """Accept the next client in an idle handler thread; ``None`` if the loop has ended, or it ``is_crowded``.

        ``None``, too, in a process that a handler has forked and returned in: the clients are its parent's to accept.
        """
        if os.getpid() != self._process:
            return None
        try:
            while not (self.stopped or is_crowded()):
                if self.wait(None):
                    try:
                        client = accept(self.period)
                    finally:
                        self.reopen()
                    if client is not None:
                        return client
        except BaseException as error:  # a broken listener, or whatever it is
            self.fail(error)
        return None


class Background(threading.Thread):
    """The thread of `start`."""

    def __init__(self, serve_forever: Callable[[], None], changed: threading.Condition,
                 when_accepting: Callable[[], None] | None = None) -> None:
        super().__init__(name="threaded_echo serving", daemon=True)
        self.is_over = False  # it has nothing left to do but to return; guarded by the server's lock
        self._changed = changed
        self._serve_forever: Callable[[], None] | None = serve_forever
        self._when_accepting = when_accepting
        self._over = threading.Event()  # the start, one way or the other
        self._accepts = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Serve; an error after the start goes to `threading.excepthook`."""
        serve_forever, self._serve_forever = self._serve_forever, None  # not kept alive by this thread
        assert serve_forever is not None
        try:
            serve_forever()
        except BaseException as error:  # whatever it is, `start` raises it
            if self._accepts:
                raise
            self._error = error
        finally:
            self._over.set()
            with self._changed:
                self.is_over = True
                self._changed.notify_all()

    def is_starting(self) -> bool:
        """Return whether it neither accepts nor has failed yet."""
        return self.is_alive() and not self._over.is_set()

    def accepting(self) -> None:
        """Tell `start`, or whoever wants to know, that this thread accepts."""
        when_accepting, self._when_accepting = self._when_accepting, None
        if when_accepting is not None:
            when_accepting()
        self._accepts = True
        self._over.set()

    def wait_until_accepting(self) -> None:
        """Return once the thread accepts connections. Raises what kept it from that."""
        self._over.wait()
        if not self._accepts:
            self.join()
            error, self._error = self._error, None
            raise error or RuntimeError("this server was stopped while it was starting")


class Loops:
    """The loops of one server: at most one ``serve_forever``, any number of ``handle_request``."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self._registry = registry
        self.poll_interval: float | None = 0.5  # for a loop in socketserver's own serve_forever
        self.closes_later = False  # the listeners are closed, and the program's server_close is still to be called
        self.when_stopped: Callable[[], None] = lambda: None  # called with the lock held, by `stop_locked`
        # Guarded by the registry's lock:
        self.running: list[Loop] = []
        self.background: Background | None = None  # what start() has made
        # As in socketserver, a shutdown that finds no loop ends the next one, which may be on its way in a new thread.
        self.ends_next = False
        self.was_asked = False  # socketserver's own shutdown has found a loop to end
        self.since: float | None = None  # time.monotonic() when it first accepted

    def start(self, serve_forever: Callable[[], None]) -> None:
        """Serve in a background thread, and return once it accepts. Raises what keeps it from that."""
        self.begin(serve_forever).wait_until_accepting()

    def begin(self, serve_forever: Callable[[], None],
              when_accepting: Callable[[], None] | None = None) -> Background:
        """Begin to serve in a background thread, which calls ``when_accepting`` once it accepts.

        Raises RuntimeError if the server is serving already.
        """
        with self._registry.lock:
            if self.in_forever_locked() or self.background is not None and self.background.is_starting():
                raise RuntimeError(_ALREADY)
            self.ends_next = False
            background = self.background = Background(serve_forever, self._registry.changed, when_accepting)
            # With the lock held, for the check above; it needs nothing but a thread that has not seen the lock yet.
            background.start()
        return background

    def in_forever_locked(self) -> bool:
        """Return whether a thread is in ``serve_forever``."""
        return any(loop.forever and not loop.stopped for loop in self.running)

    def begin_locked(self, loop: Loop) -> None:
        """List a loop. Raises RuntimeError if another thread is in ``serve_forever``."""
        if loop.forever and self.in_forever_locked():
            raise RuntimeError(_ALREADY)
        self.running.append(loop)

    def accepting(self) -> None:
        """Note that the calling thread accepts, and tell `start`."""
        with self._registry.lock:
            if self.since is None:
                self.since = time.monotonic()
        if isinstance(background := threading.current_thread(), Background):
            background.accepting()

    def end(self, loop: Loop) -> None:
        """Shut a loop's door, and forget the loop."""
        with self._registry.lock:
            loop.stop_locked()
        loop.limits.release()
        loop.detach()
        with self._registry.lock:
            if loop in self.running:
                self.running.remove(loop)
                self._registry.changed.notify_all()

    def seconds_up(self) -> float:
        """Return the seconds since the server first served; 0.0 before that."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    def describe(self) -> str:
        """Say whether the server is serving."""
        return "serving" if self.running else "not serving"

    def ask_to_end(self, value: bool) -> None:
        """End every loop, as socketserver's own ``shutdown`` asks by setting a flag; its loop takes that back."""
        with self._registry.lock:
            self.was_asked = value and any(loop.forever for loop in self.running)
            if value:
                self.stop_locked()

    def end_accepting(self) -> None:
        """End every loop's waiting, ahead of a stop; that of one that is about to begin, too."""
        with self._registry.lock:
            self.ends_next = self.ends_next or not self.in_forever_locked()
            self.stop_locked()

    def stop_locked(self) -> None:
        """End every loop's waiting."""
        for loop in self.running:
            loop.stop_locked()
        self.when_stopped()


def check_listening(server: Any) -> None:
    """Raise RuntimeError for a stream socket that does not listen: waiting for connections on it would spin."""
    for listener in listeners_of(server):
        try:
            listens = (listener.type != socket.SOCK_STREAM
                       or listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except (AttributeError, OSError):  # a platform that cannot tell, or a listener that is no socket
            continue
        if not listens:
            raise RuntimeError("this server does not listen: call server_bind() and server_activate() first")


def unblock(server: Any) -> None:
    """Make accepting not block, unless the program gave the listener a time-out of its own.

    A connection may be gone again, or with another thread or process, by the time that it is accepted: see the manual
    page of select(2), "BUGS". The mode belongs to the listener, not to its descriptor, so that other processes may
    share it: it stays as it is when the loop ends. Python's own idea of the socket's time-out is left alone. So is a
    datagram socket, through which handlers send.
    """
    for listener in listeners_of(server):
        if isinstance(listener, socket.socket) and listener.type == socket.SOCK_STREAM:
            if listener.gettimeout() is None and listener.fileno() >= 0:
                if hasattr(os, "set_blocking") and os.name == "posix":  # not for Windows' sockets
                    os.set_blocking(listener.fileno(), False)
