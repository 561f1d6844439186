"""Sending without waiting, over a connection whose handler may wait in it at the same time.

Whether a descriptor blocks concerns all its users, so nothing here changes that: each send is told not to wait.
"""
from __future__ import annotations

import socket
from typing import Any

from . import tls
from .deadline import wait_for

_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none

_SMALL = 1024
"""Bytes for which there is room in a blocking socket that can be sent to, if there is no such flag."""


def can_send_at_once(connection: Any) -> bool:
    """Return whether `send_at_once` may be called with ``connection``.

    Not with a class that has a ``send`` or ``sendall`` of its own, which alone knows what is to go out in what form;
    nor with TLS ahead of its handshake, after its end, or of a class of the program's own.
    """
    cls = type(connection)
    if cls is socket.socket:
        return True
    if not isinstance(connection, socket.socket) or connection.type != socket.SOCK_STREAM:
        return False
    if tls.as_tls(connection) is not None:
        from .tls_sharing import SharedTLSSocket  # which imports ssl

        return isinstance(connection, SharedTLSSocket) and connection._sslobj is not None
    return cls.send is socket.socket.send and cls.sendall is socket.socket.sendall


def send_at_once(connection: Any, data: bytes | memoryview) -> int:
    """Send what the kernel takes of ``data`` at once; return how many bytes that were, and 0 if there is no room.

    Raises OSError if the connection has ended, and OSError or ValueError if its socket is closed. The caller is the
    only one who sends; see also `is_behind`.
    """
    if type(connection) is not socket.socket and tls.as_tls(connection) is not None:
        taken: int = connection.send_at_once(data)  # if TLS has ended, it raises: nothing goes out in the clear
        return taken
    # If it has a time-out, Python waits for room that long ahead of its first try, whatever the flag says.
    if (connection.gettimeout() is not None or not _DONTWAIT) and not wait_for(connection, 0.0, to_send=True):
        return 0
    try:
        taken = connection.send(data if _DONTWAIT else data[:_SMALL], _DONTWAIT)
    except BlockingIOError:
        return 0
    return taken


def is_behind(connection: Any) -> bool:
    """Return whether a part of what `send_at_once` has taken is still to go out.

    That is so if TLS had to stop in the middle of a record. A call of `send_at_once` without data sends the rest.
    """
    return type(connection) is not socket.socket and getattr(connection, "begun", None) is not None
