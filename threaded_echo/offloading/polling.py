"""One poll, for what can be read and for the loss of a client's connection."""
from __future__ import annotations

import math
import select
from collections.abc import Sequence
from typing import Any

MOST_SECONDS = 86_400
"""Seconds of one poll, whose milliseconds are a C int."""


def poll(ends: Sequence[Any], seconds: float | None, connection: int = -1) -> tuple[list[Any], bool]:
    """Wait until one of the ends (descriptors, or objects that have one) can be read, or ``seconds`` have passed.

    Returns those that can be read, and False if a connection is lost, which ends the wait, too: ``connection`` is the
    descriptor of its socket, or -1 if there is none. The wait may be shorter. Cannot be used on a platform without
    `select.poll`, such as Windows.
    """
    poller = select.poll()
    for end in ends:
        poller.register(end, select.POLLIN)
    if connection >= 0:
        poller.register(connection, 0)  # no events: only an error, or the end of both directions, is reported
    timeout = None if seconds is None else math.ceil(min(max(seconds, 0), MOST_SECONDS) * 1000)
    found = {descriptor for descriptor, _ in poller.poll(timeout)}
    ready = [end for end in ends if (end if isinstance(end, int) else end.fileno()) in found]
    return ready, connection not in found
