"""What goes into the log: how much of it, and in which characters.

A client must not be able to control or flood the log. What it says is shown with its control characters escaped. The
records that it can cause are bounded, by a `LogLimit` for each client, and by one for each kind of error over all
clients, which a `BoundedLog` keeps. Whatever is left out is counted, and the count is logged. A record says by `about`
what has happened, and to which client.
"""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

NOTICE = logging.INFO + 5
"""The level for normal but significant events, as in syslog: a server listens, stops, and has stopped."""

if logging.getLevelName(NOTICE) == f"Level {NOTICE}":  # else the program has a name of its own for it
    logging.addLevelName(NOTICE, "NOTICE")

WINDOW = 10.0
"""Seconds for which a limit counts."""

EVENTS = ("listening", "metrics", "reloaded", "lingering", "stopping", "stopped", "survivors", "accept", "omitted",
          "dump", "options", "workers", "systemd", "table", "connected", "disconnected", "message", "refused",
          "handshake", "gone", "failed", "hook", "line", "late", "slow", "overrun", "iteration", "idle", "lifetime",
          "send", "stop", "disconnect", "thread")
"""What a record's ``event`` may be. Programs look for these words: none is ever changed. README.rst explains them."""


def about(client: Any, event: str, address: Any = None) -> dict[str, Any]:
    """Return the extra fields of a record about a client; ``None``: about none, or one whose ``address`` is known.

    Every record has them, so that a format with ``%(client)s`` can be had.
    """
    if client is None:
        return {"client": None, "address": address, "event": event}
    return {"client": client.number, "address": client.address, "event": event}


def printable(text: str, keep: str = "") -> str:
    """Escape what is not printable, so that it can neither control a terminal nor forge a line.

    ``keep``: characters that are left as they are. By default line ends are escaped, too.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
                   for char in text)


class LogLimit:
    """Admits at most ``limit`` records in each window of ``seconds``, and counts the rest. ``None``: no limit.

    A window begins with the first record after the end of the one before. *Thread safety*: any thread.
    """

    __slots__ = ("_limit", "_seconds", "_lock", "_began", "_admitted", "_left_out")

    def __init__(self, limit: int | None, seconds: float = WINDOW) -> None:
        self._limit = limit
        self._seconds = seconds
        self._lock = threading.RLock()  # guards all that follows; re-entrant for signal handlers that log
        self._began = float("-inf")
        self._admitted = 0
        self._left_out = 0

    def admit(self, now: float) -> bool:
        """Return whether to log a record at ``now``, a time of `time.monotonic`; if not, count it as left out."""
        if self._limit is None:
            return True
        with self._lock:
            if now - self._began >= self._seconds:
                self._began = now
                self._admitted = 0
            if self._admitted < self._limit:
                self._admitted += 1
                return True
            self._left_out += 1
            return False

    def leave_out(self, count: int) -> None:
        """Count records as left out for which `admit` was not asked, since it had refused the one before."""
        with self._lock:
            self._left_out += count

    def take_left_out(self, now: float | None = None) -> int:
        """Return how many records were left out since the last call, and begin to count anew.

        Returns 0 while the window in which they were left out has not ended at ``now``. ``None``: do not wait for that.
        """
        if not self._left_out:  # the usual case, without the lock: a thread that has just counted one asks again later
            return 0
        with self._lock:
            if now is not None and now - self._began < self._seconds:
                return 0
            count, self._left_out = self._left_out, 0
            return count


class BoundedLog:
    """Logs at most ``limit`` records of each kind in ten seconds, over all clients of a server; counts the rest.

    A count is logged with the next record of its kind after the window, or by `flush`. *Thread safety*: any thread.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._limits: dict[str, LogLimit] = {}

    def log(self, limit: int | None, kind: str, level: int, message: str, *arguments: Any, **keywords: Any) -> None:
        """Log a record unless ``limit`` of its kind have been logged already.

        ``kind`` is in the words of the count: "handler failures" makes "7 more handler failures were not logged". There
        must be few kinds: each is kept. The limit of a kind is the one that it was first logged with. The rest is as in
        `logging.Logger.log`.
        """
        if not self._logger.isEnabledFor(level):
            return
        limits = self._limits.get(kind) or self._limits.setdefault(kind, LogLimit(limit))
        now = self._clock()
        self._tell(kind, limits.take_left_out(now))
        if limits.admit(now):
            self._logger.log(level, message, *arguments, **keywords)

    def flush(self) -> None:
        """Log the counts of what has been left out so far, for instance when the server has stopped."""
        for kind, limits in list(self._limits.items()):
            self._tell(kind, limits.take_left_out())

    def _tell(self, kind: str, count: int) -> None:
        if count:
            self._logger.warning("%s more %s were not logged", f"{count:,}", kind,
                                 extra=about(None, "omitted"))
