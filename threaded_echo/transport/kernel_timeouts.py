"""Time-outs that the kernel keeps for us: silent peers (keep-alive), and sends that make no progress.

On Linux a connection inherits them from the listener, so that they cost no system call per connection. Where they are
not inherited, they are set on each connection as it is accepted.

The two are not independent (tcp(7)): where a time-out for sends is set, the kernel gives a silent peer up by that
time-out, not by the number of its keep-alive probes. A short one does so after the first probe without an answer.
"""
from __future__ import annotations

import errno
import math
import os
import socket
import struct
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..options import KEEPALIVE
from . import tls
from .tcp_info import read_stall

_PROBES = 4  # without an answer, a quarter of the time apart: a silent peer is given up after about twice the time
_LONGEST_MS = 2**31 - 1
_TCP = socket.IPPROTO_TCP
_IDLE = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)  # the second: macOS

_IS_INHERITED = sys.platform == "linux"


class KernelTimeouts:
    """What one server asks of the kernel."""

    def __init__(self) -> None:
        self.set_on_each: Callable[[Any], None] | None = None
        """Called with each connection as it is accepted; ``None`` if there is nothing to set."""
        self.send_timeout: float | None = None
        """The one that was set up last."""
        self._listeners: list[ListenerTimeouts] = []

    def set_up(self, listeners: list[Any], keepalive: float | None, send_timeout: float | None) -> None:
        """Set the time-outs on each listener: see `ListenerTimeouts.set_up`."""
        while len(self._listeners) < len(listeners):
            self._listeners.append(ListenerTimeouts())
        self.send_timeout = send_timeout
        self.set_on_each = None
        for timeouts, listener in zip(self._listeners, listeners, strict=False):
            timeouts.set_up(listener, keepalive, send_timeout)
            self.set_on_each = self.set_on_each or timeouts.set_on_each


class ListenerTimeouts:
    """What is asked of the kernel for one listener."""

    def __init__(self) -> None:
        self.set_on_each: Callable[[Any], None] | None = None
        """Called with each connection as it is accepted; ``None`` if there is nothing to set."""
        self._last: tuple[object, ...] = ()  # what set_up was called with
        self._has_set_keepalive = False  # on that listener, and so it is this object that takes it back
        self._has_set_send_timeout = False

    def set_up(self, listener: object, keepalive: float | None, send_timeout: float | None) -> None:
        """Set the time-outs on a listener that is about to accept, or arrange that each connection gets them.

        ``keepalive`` and ``send_timeout``: seconds; ``None`` leaves the system's own. If the program has turned
        keep-alive on for its listener itself, the default does not change what it has set.
        """
        if not isinstance(listener, socket.socket) or listener.type != socket.SOCK_STREAM:
            return
        asked = weakref.ref(listener), listener.fileno(), keepalive, send_timeout
        if asked == self._last:  # as in a loop on handle_request
            return
        if asked[:2] != self._last[:2]:  # a listener of which nothing is known
            self._has_set_keepalive = self._has_set_send_timeout = False
        self._last = asked
        self.set_on_each = None
        with suppress(OSError):  # the listener has been closed meanwhile, as accepting will find
            if listener.family not in (socket.AF_INET, socket.AF_INET6):
                self._set_on_each(None, send_timeout, False)
            elif not _IS_INHERITED:
                self._set_on_each(keepalive, send_timeout, hasattr(socket, "TCP_USER_TIMEOUT"))
            else:
                self._set_on_listener(listener, keepalive, send_timeout)

    def _set_on_each(self, keepalive: float | None, send_timeout: float | None, by_tcp: bool) -> None:
        if keepalive is None and send_timeout is None:
            return

        def set_on_each(connection: Any) -> None:
            with suppress(OSError, AttributeError):  # reset already; or what the program has made of it is no socket
                if keepalive is not None:
                    _set_keepalive(connection, keepalive)
                if send_timeout is not None:
                    (_set_user_timeout if by_tcp else _limit_sends)(connection, send_timeout)

        self.set_on_each = set_on_each

    def _set_on_listener(self, listener: socket.socket, keepalive: float | None, send_timeout: float | None) -> None:
        is_on = bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        if keepalive is not None:
            if self._has_set_keepalive or keepalive != KEEPALIVE or not is_on:
                _set_keepalive(listener, keepalive)
                self._has_set_keepalive = True
        elif self._has_set_keepalive:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            self._has_set_keepalive = False
        if send_timeout is not None or self._has_set_send_timeout:
            _set_user_timeout(listener, send_timeout or 0)
            self._has_set_send_timeout = send_timeout is not None


def _set_keepalive(connection: socket.socket, seconds: float) -> None:
    """Have a silent peer asked after ``seconds``, and given up after about as long again without an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((_IDLE, seconds), (getattr(socket, "TCP_KEEPINTVL", None), seconds / _PROBES),
                          (getattr(socket, "TCP_KEEPCNT", None), _PROBES)):
        if option is not None:
            connection.setsockopt(_TCP, option, math.ceil(value))


def _set_user_timeout(connection: socket.socket, seconds: float) -> None:
    """Have the connection ended when the peer has taken nothing of what was sent for so long; 0: the system's way."""
    connection.setsockopt(_TCP, socket.TCP_USER_TIMEOUT, min(math.ceil(seconds * 1000), _LONGEST_MS))


def _limit_sends(connection: socket.socket, seconds: float) -> None:
    """Have each blocking send fail if it makes no progress for so long. It does not concern TLS, which tries again."""
    if os.name == "nt":  # pragma: no cover - Windows takes milliseconds
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, min(math.ceil(seconds * 1000), _LONGEST_MS))
        return
    microseconds = max(1, int(seconds % 1 * 1_000_000))  # 0 and 0 would be: no limit
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), microseconds))


def has_stalled(connection: object, seconds: float) -> bool:
    """Return whether a connection that has no room has taken nothing for ``seconds``, as far as the kernel can tell.

    If it cannot, the answer is yes: the caller has seen no room for so long. The kernel sees progress before that.
    """
    try:
        stall = read_stall(connection) if isinstance(connection, socket.socket) else None
    except OSError:  # no TCP, or closed meanwhile
        return True
    return stall is None or stall >= seconds


def has_send_timed_out(connection: object, error: BaseException | None) -> bool:
    """Return whether ``error`` means that the kernel has ended a send of ``connection`` that made no progress."""
    if not isinstance(error, OSError) or not isinstance(connection, socket.socket):
        return False
    try:
        if error.errno == errno.ETIMEDOUT or tls.is_end_of_stream(error):
            option = getattr(socket, "TCP_USER_TIMEOUT", None)
            limit = 0 if option is None else connection.getsockopt(_TCP, option) / 1000
            stall = read_stall(connection) if limit else None
            # Else it is a silent peer that keep-alive has given up, or the kernel's own limit on sending again. With
            # TLS on Python 3.11 every error of a send looks like an end of the stream: then the time has to tell.
            return stall is not None and (error.errno == errno.ETIMEDOUT or stall >= limit)
        return (error.errno == errno.EAGAIN and connection.gettimeout() is None
                and any(connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)))
    except OSError:  # no TCP, or closed meanwhile
        return False
