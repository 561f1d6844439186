"""What both kinds of channels have in common: the head of a message, its end, and the wait for one."""
from __future__ import annotations

import io
import multiprocessing.connection
import os
import select
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

HEADER = struct.Struct("!BBHQ")
"""The head of a message: its kind; how many descriptors, bytes of its name, and other bytes it has."""


class Disconnected(Exception):
    """Raised if the other process has ended, or has closed its end."""


class Incoming(NamedTuple):
    """A message that has begun to come. The rest is received as its stream is read."""

    kind: int
    name: bytes
    stream: Any
    descriptors: list[int]


class Whole(io.BytesIO):
    """What the unpickler reads a message from that has been received."""

    def skip(self) -> None:
        """As `channel.Stream.skip`."""


def wait(ends: Sequence[Any], timeout: float | None = None, connection: int = -1) -> list[Any]:
    """Wait until one of the ends (descriptors, or objects that have one) can be read; return those that can.

    ``timeout`` is in seconds; ``None`` means no limit. ``connection``: the descriptor of a socket, which is returned,
    too, if its connection is lost; on a platform without `select.poll`, as Windows, nothing reports that.
    """
    if not hasattr(select, "poll"):
        return multiprocessing.connection.wait(ends, timeout)
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    if connection >= 0:
        poll.register(connection, 0)  # no events: only an error, or the end of both directions, is reported
    found = {descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)}
    ready = [end for end in ends if (end if isinstance(end, int) else end.fileno()) in found]
    return [*ready, connection] if connection in found else ready


def close_descriptors(descriptors: list[int]) -> None:
    """Close and forget descriptors; -1 stands for one that was taken over."""
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.pop())
