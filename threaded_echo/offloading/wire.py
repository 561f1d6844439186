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

from .polling import poll

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


def wait(ends: Sequence[Any], seconds: float | None = None) -> list[Any]:
    """Wait until one of the ends (descriptors, or objects that have one) can be read; return those that can.

    ``None`` stands for no limit.
    """
    return look(ends, seconds)[0]


def look(ends: Sequence[Any], seconds: float | None, connection: int = -1) -> tuple[list[Any], bool]:
    """Do as `polling.poll`. On a platform without it, as Windows, nothing reports that a connection is lost."""
    if not hasattr(select, "poll"):
        return multiprocessing.connection.wait(ends, seconds), True
    return poll(ends, seconds, connection)


def close_descriptors(descriptors: list[int]) -> None:
    """Close and forget descriptors; -1 stands for one that was taken over."""
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.pop())
