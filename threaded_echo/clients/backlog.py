"""What waits to be sent to one client, and what becomes of an offer to send something."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

MOST_WAITING = 1024 * 1024
"""Bytes that may wait for one client, besides what the kernel has taken, or what a thread has taken over and sends just
now. A single message may be longer."""


class Offer(Enum):
    """What has become of something that was to be sent at once, or of what was waiting."""

    SENT = "sent"  # all of it, and nothing waits
    MOVED = "moved"  # a part of what was waiting was sent
    WAITS = "waits"  # in the queue
    BUSY = "busy"  # another thread is sending; nothing was done
    FULL = "full"  # the queue is too long; nothing was done
    MISSED = "missed"  # nothing can be sent to this client


class Backlog:
    """The queue of one client, the oldest first. It is guarded by the client's lock, but for ``look_again``.

    Only who holds the connection's ``sending`` changes its front, where a message may have been sent in part.
    """

    __slots__ = ("pieces", "size", "look_again")

    def __init__(self) -> None:
        self.pieces: deque[bytes | memoryview] = deque()
        self.size = 0
        # Has the sender look at this client, as another thread has emptied the queue. None: it has not been told of it.
        # Set with the server's lock held.
        self.look_again: Callable[[], object] | None = None

    def add(self, data: bytes) -> bool:
        """Add a message; False if there are too many bytes already. The queue has the caller's object, and no copy."""
        length = len(data)
        if self.pieces and self.size + length > MOST_WAITING:
            return False
        self.pieces.append(data)
        self.size += length
        return True

    def put_back(self, rest: bytes | memoryview) -> None:
        """Put the rest of a message that was sent in part ahead of everything else."""
        length = len(rest)
        if length:
            self.pieces.appendleft(rest)
            self.size += length

    def first(self) -> bytes | memoryview:
        """Return what is to be sent next."""
        return self.pieces[0] if self.pieces else b""

    def tell_sender(self) -> None:
        """Have the sender forget the client, if it knows of it. Takes no lock but that of a `Waker`."""
        if self.look_again is not None:
            self.look_again()

    def take(self, count: int) -> bool:
        """Forget so many bytes of the first piece, since they were sent; return whether nothing is left."""
        if self.pieces:
            first = self.pieces[0]
            self.size -= count
            if count < len(first):
                self.pieces[0] = memoryview(first)[count:]
            else:
                self.pieces.popleft()
        return not self.pieces
