"""A socket pair that ends a poll."""
from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Waker:
    """Ends another thread's poll, also if it is set before that poll begins.

    The poll waits until `fileno` is readable; it stays readable until `clear`. *Thread safety*: any thread may call
    `set`, any number of times, also after `close`. A signal handler may call it too.
    """

    def __init__(self) -> None:
        # Keeps close from giving the descriptor away in the middle of a set. Re-entrant for signal handlers.
        self._lock = threading.RLock()
        self._is_closed = False
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll; -1 after `close`."""
        return self._receiver.fileno()

    def set(self) -> None:
        """Make the descriptor readable."""
        with self._lock, suppress(OSError):  # it is full, and therefore readable; or it is closed
            self._sender.send(b"\0")
        if self._is_closed:
            self.close()

    def clear(self) -> None:
        """Make the descriptor unreadable until the next `set`."""
        with suppress(BlockingIOError):
            while self._receiver.recv(64):
                pass

    def close(self) -> None:
        """Close both descriptors. May be called again. Waits for nothing: whoever is in the middle of a set does it."""
        self._is_closed = True  # first: either the lock is free by then, or its holder sees this when it has let go
        if self._lock.acquire(blocking=False):
            try:
                self._receiver.close()
                self._sender.close()
            finally:
                self._lock.release()
