"""A deadline for the whole of something that takes several reads.

A socket's own time-out is for each read, so that a client that sends a byte now and then is never too late for it. It
is also for every other thread that uses the socket. A `Deadline` is for one caller, and changes no socket.
"""
from __future__ import annotations

import math
import select
import time
from collections.abc import Callable
from typing import Any


class Deadline:
    """The moment at which ``seconds`` from now are over; ``None``: never."""

    __slots__ = ("seconds", "_clock", "_at")

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._at = None if seconds is None else clock() + seconds

    def remaining(self) -> float | None:
        """Return the seconds that are left, at least 0.0; ``None`` if there is no limit."""
        return None if self._at is None else max(0.0, self._at - self._clock())


def wait_for(connection: Any, remaining: float | None, to_send: bool = False) -> bool:
    """Wait until ``connection`` can be received from, or sent to; False if ``remaining`` seconds pass before.

    An end of stream, and an error, can be received. Raises ValueError if ``connection`` is closed.
    """
    if not hasattr(select, "poll"):  # Windows
        watched: tuple[list[Any], list[Any]] = ([], [connection]) if to_send else ([connection], [])
        return any(select.select(*watched, [], remaining))
    poll = select.poll()
    poll.register(connection, select.POLLOUT if to_send else select.POLLIN)
    return bool(poll.poll(None if remaining is None else math.ceil(min(remaining * 1000, 2**31 - 1))))
