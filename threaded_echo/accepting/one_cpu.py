"""Keeping the server's threads on one processor, and what they start on all of them.

With the GIL, one thread at a time runs anyway, and waking one on another processor costs more than that processor
gives. A new thread, and a new process, inherits the processors of the thread that starts it (sched_setaffinity(2)).
"""
from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..observe.logs import about

logger = logging.getLogger("threaded_echo")


class OneCpu:
    """The processors of one server's threads. Has no effect if the platform cannot choose any."""

    def __init__(self) -> None:
        self._allowed: set[int] | None = None  # those of the serving thread, before it was kept on one

    @contextmanager
    def kept(self, wanted: bool) -> Iterator[None]:
        """Keep the calling thread, and those that it starts, on one of its processors."""
        if not wanted or not hasattr(os, "sched_setaffinity"):
            yield
            return
        allowed = os.sched_getaffinity(0)
        # Several processes, each with a server, must not all choose the same one.
        chosen = sorted(allowed)[os.getpid() % len(allowed)]
        try:
            os.sched_setaffinity(0, {chosen})
        except OSError as error:  # a sandbox may forbid it
            logger.debug("the serving thread cannot be kept on one processor: %s", error,
                         extra=about(None, "options"))
            yield
            return
        self._allowed = allowed
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let the calling thread run on all processors, while it starts what must not be kept on one."""
        if self._allowed is None:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._allowed)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
