"""Closing the connections of refused clients, so that each can still read why.

If a connection is closed while data that the client has sent is unread, the kernel resets it, and a reset destroys what
the client has not read yet. So the server ends its own direction, and closes when the client has ended the other one.

Guarantees:

- The thread that accepts never waits for a refused client. One other thread does, only while there are any.
- A client is waited for at most `LINGER` seconds, and `MOST` clients at a time: beyond, the oldest is closed.
- A stop ends the thread at once, and joins it.
"""
from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..clients.period import Period
from ..clients.threads import HandlerThreads
from ..transport import tls
from ..transport.waker import Waker

LINGER = 2.0
"""Seconds for a refused client to read its reply, and to end its stream."""

MOST = 64
"""Refused clients that are waited for."""


class Farewell:
    """The connection of a refused client, and what is still to be sent there. Nothing here waits."""

    def __init__(self, connection: socket.socket, reply: bytes, close: Callable[[], object]) -> None:
        with suppress(OSError):  # closed by the program meanwhile, as `go_on` finds
            connection.setblocking(False)
        self.connection = connection
        self.close = close  # the program's hook, which closes the connection
        self.until = time.monotonic() + LINGER
        self._unsent = reply
        self._ended = False  # our direction
        self._is_read = False  # up to the end of the client's

    def send(self) -> None:
        """Send what the kernel takes."""
        with suppress(OSError):  # it takes nothing, or the client has gone, which `go_on` finds
            self._unsent = self._unsent[self.connection.send(self._unsent):]

    def go_on(self) -> bool:
        """Send, end our direction and receive as far as that goes; return whether nothing is left to do."""
        try:
            if self._unsent:
                self.send()
            if not self._unsent and not self._ended:
                self.connection.shutdown(socket.SHUT_WR)
                self._ended = True
            self._is_read = self._is_read or not self.connection.recv(65536)
        except BlockingIOError:
            return False
        except OSError:  # reset, or closed by the program
            return True
        return self._is_read and self._ended

    def events(self) -> int:
        """Return what to wait for."""
        return (0 if self._is_read else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._unsent else 0)


def can_reply(request: Any) -> bool:
    """Return whether a reply can be sent over a connection: not if it is TLS, since it would go out in the clear."""
    return isinstance(request, socket.socket) and request.type == socket.SOCK_STREAM and tls.as_tls(request) is None


class Farewells:
    """The refused clients of one server that are waited for."""

    def __init__(self, threads: HandlerThreads) -> None:
        self._threads = threads
        self.lock = threads.registry.lock
        self.thread: FarewellThread | None = None  # guarded by the lock

    def add(self, farewell: Farewell, period: Period) -> None:
        """Have another thread wait for a client to end its stream, and close its connection then.

        Closes it here if the server is stopping, or if no thread is to be had.
        """
        with self.lock:
            # If the period is over, the stop has ended the thread, and would not find a new one.
            thread = None if period.is_stopping() else self._find_locked()
            surplus = farewell if thread is None else thread.add_locked(farewell)
        if surplus is not None:
            surplus.close()

    def _find_locked(self) -> FarewellThread | None:
        """Find the thread, or start it; ``None`` if there is no descriptor or no thread for it."""
        if self.thread is None:
            try:
                thread = FarewellThread(self)
            except OSError:
                return None
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                thread.close()
                return None
            self._threads.help_out(thread)
            self.thread = thread
        return self.thread

    def end_locked(self) -> None:
        """Have all connections closed at once."""
        if self.thread is not None:
            self.thread.end_locked()


class FarewellThread(threading.Thread):
    """Waits for refused clients, until there are none."""

    def __init__(self, farewells: Farewells) -> None:
        super().__init__(name="threaded_echo farewells", daemon=True)
        self._farewells = farewells
        self._pending: dict[Farewell, None] = {}  # the oldest first
        # Guarded by the lock:
        self._added: deque[Farewell] = deque()
        self._ends = False
        self._waker = Waker()
        try:
            self._selector = selectors.DefaultSelector()
        except OSError:  # no descriptor is left
            self._waker.close()
            raise
        self._selector.register(self._waker, selectors.EVENT_READ)

    def close(self) -> None:
        """Close what it waits with."""
        self._selector.close()
        self._waker.close()

    def add_locked(self, farewell: Farewell) -> Farewell | None:
        """Add one; return the oldest of those that have been added, if there are too many."""
        self._added.append(farewell)
        self._waker.set()
        return self._added.popleft() if len(self._added) > MOST else None

    def end_locked(self) -> None:
        """Have it close all connections, and end."""
        self._ends = True
        self._waker.set()

    def run(self) -> None:
        """Wait for clients."""
        try:
            while self._takes_added():
                self._end_old()
                if self._pending:
                    self._wait(max(0, next(iter(self._pending)).until - time.monotonic()))
        finally:
            with self._farewells.lock:
                if self._farewells.thread is self:  # an exception of the program's, such as SystemExit
                    self._farewells.thread = None
            for farewell in [*self._pending, *self._added]:
                farewell.go_on()  # what is unread would reset the connection
                self._end(farewell)
            self.close()

    def _takes_added(self) -> bool:
        """Take what was added; False if there is nothing to wait for, or a stop has ended it."""
        self._waker.clear()
        with self._farewells.lock:
            if self._ends or not (self._added or self._pending):
                self._farewells.thread = None
                return False
            added = list(self._added)
            self._added.clear()
        for farewell in added:
            self._pending[farewell] = None
            self._go_on(farewell)
        return True

    def _wait(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            if key.data is not None:  # else it is the waker
                self._go_on(key.data)

    def _go_on(self, farewell: Farewell) -> None:
        if farewell.go_on():
            self._end(farewell)
        elif farewell.connection in self._selector.get_map():
            self._selector.modify(farewell.connection, farewell.events(), farewell)
        else:
            self._selector.register(farewell.connection, farewell.events(), farewell)

    def _end_old(self) -> None:
        """Close those whose time is up, and the oldest of too many."""
        while self._pending:
            oldest = next(iter(self._pending))
            if len(self._pending) <= MOST and oldest.until > time.monotonic():
                return
            self._end(oldest)

    def _end(self, farewell: Farewell) -> None:
        self._pending.pop(farewell, None)
        with suppress(KeyError, ValueError):  # it is not waited for
            self._selector.unregister(farewell.connection)
        farewell.close()
