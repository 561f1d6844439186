"""The descriptors that are kept free for handlers and workers."""
from __future__ import annotations

import errno
import logging
import os
import sys
import time

try:
    import resource
except ImportError:  # pragma: no cover - Windows, which has no such limit
    resource = None  # type: ignore[assignment]

from ..observe.logs import about

logger = logging.getLogger("threaded_echo")

_OPEN = "/proc/self/fd"

_MOST = 64
"""Clients that are accepted between two counts, at the most. A count takes 2 µs."""

_PER_CLIENT = 16
"""Descriptors that each client is taken to need, its handler's files and sockets among them."""

_LOG_INTERVAL = 10.0  # seconds between two log lines


class Reserve:
    """Decides how many clients the open descriptors allow. Called by the thread that accepts."""

    def __init__(self) -> None:
        self._logged = float("-inf")  # time.monotonic() of the last line

    def spare(self, reserve: int, listener: int) -> int:
        """Return how many clients may be accepted before this is asked again; 0 if fewer than ``reserve`` are free.

        At most a quarter of the limit is kept free, so that a process with a low limit serves at all. The less there is
        above that, the sooner this wants to be asked again, as handlers open files meanwhile.
        """
        limit = _limit() if reserve else None
        if limit is None:
            return _MOST
        reserve = min(reserve, limit // 4)
        above = limit - count_open(listener) - reserve
        if above < 0:
            now = time.monotonic()
            if now - self._logged >= _LOG_INTERVAL:
                self._logged = now
                logger.warning("accepting no clients while fewer than %d descriptors are free (reserve_descriptors)",
                               reserve, extra=about(None, "accept"))
            return 0
        return max(1, min(_MOST, above // _PER_CLIENT))


def _limit() -> int | None:
    """Return how many descriptors the process may have; ``None`` if that has no bound."""
    if resource is None:  # pragma: no cover - Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def count_open(listener: int) -> int:
    """Count the descriptors that the process has open; where nothing tells, up to the lowest one that is free.

    ``listener`` is one that is open.
    """
    try:
        # Since Linux 6.2 the size is the count; before that it is 0 (proc_pid_fd(5)). A listing has its own descriptor.
        return os.stat(_OPEN).st_size or len(os.listdir(_OPEN)) - 1
    except OSError:  # no such folder, or no descriptor to list it with
        pass
    try:
        free = os.dup(listener)
    except OSError as error:
        return 0 if error.errno == errno.EBADF else sys.maxsize  # the listener is closed; or none is left
    os.close(free)
    return free
