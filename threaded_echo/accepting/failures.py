"""What a failed accept means: the connection has gone, resources have run out, or the listener itself is broken."""
from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from typing import Any

from ..observe.logs import about
from ..transport import tls
from ..transport.several import listeners_of

logger = logging.getLogger("threaded_echo")

BACK_OFF = 0.1
"""Seconds without an accept after descriptors or memory have run out, or accepting has failed for unknown reasons."""

_LOG_INTERVAL = 10.0  # seconds between two log lines on that


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_EXHAUSTED = _numbers("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")

# accept(2): an error that already waits on the new connection is reported by accept, and means: try the next one.
# ENOTCONN comes from what a program's get_request does with a connection that was reset meanwhile.
_GONE = _numbers("ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH", "EPERM",
                 "ENOTCONN", "ETIMEDOUT")


class AcceptFailures:
    """Decides what to do after accepting has failed, and counts how often it has.

    Called by the thread that accepts. There are several if a program calls ``handle_request`` in several threads: these
    may miss a count or log a line twice, which is not worth a lock.
    """

    def __init__(self) -> None:
        self.count = 0
        self._logged = -_LOG_INTERVAL  # time.monotonic() of the last line

    def meet(self, error: OSError, server: Any, stopping: threading.Event, is_own: bool) -> None:
        """Decide what an error of ``get_request`` means: return to continue; raise it if the listener itself is broken.

        ``is_own``: the error is that of a program's own ``get_request``, which has taken the connection off the queue.
        """
        if server.fileno() < 0 or isinstance(error, (BlockingIOError, InterruptedError)):
            return  # our own close; another thread or process was faster
        if isinstance(error, TimeoutError) and error.errno is None:
            return  # the listener has a time-out of the program's
        self.count += 1
        if error.errno in _EXHAUSTED:
            self._log("cannot accept clients, trying again every %g s: %s", BACK_OFF, error)
            stopping.wait(BACK_OFF)
        elif isinstance(error, ConnectionError) or error.errno in _GONE or tls.is_tls_error(error):
            logger.debug("a connection was gone before it was accepted: %s", error, extra=about(None, "accept"))
        elif error.errno is None or error.errno < 0:
            # Not the system's: a program's get_request turns a connection away, as socketserver lets it.
            logger.debug("a connection was turned away by get_request: %s", error, extra=about(None, "accept"))
        elif is_broken(server):
            logger.error("the listening socket has failed, the serving loop ends: %s", error,
                         extra=about(None, "accept"))
            raise error
        else:
            self._log("a client could not be accepted: %s", error)
            if not is_own:
                stopping.wait(BACK_OFF)  # the connection may still be in the queue

    def _log(self, message: str, *arguments: object) -> None:
        """Log an error, at most once in ten seconds."""
        now = time.monotonic()
        if now - self._logged >= _LOG_INTERVAL:
            self._logged = now
            logger.error(message, *arguments, extra=about(None, "accept"))


def is_broken(server: Any) -> bool:
    """Return whether a listener can no longer accept: it is closed, no socket, or no longer listening.

    Of several, those that the program has closed do not count, except the first one.
    """
    first, *others = listeners_of(server)
    return _is_broken(first) or any(other.fileno() >= 0 and _is_broken(other) for other in others)


def _is_broken(listener: Any) -> bool:
    if not isinstance(listener, socket.socket):
        return False
    try:
        return listener.type == socket.SOCK_STREAM and not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except AttributeError:  # a platform that cannot tell
        return False
    except OSError:
        return True
