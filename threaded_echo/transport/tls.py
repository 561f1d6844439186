"""Listeners that a program has wrapped in TLS.

`ssl.SSLSocket.accept` shakes hands before it returns, so that one client that never does keeps everybody else out.
Here the handshake waits for the handler's thread.
"""
from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl


def as_tls(connection: Any) -> ssl.SSLSocket | None:
    """Return ``connection`` if it is a TLS socket, else ``None``. Does not import `ssl`."""
    module = sys.modules.get("ssl")
    return connection if module is not None and isinstance(connection, module.SSLSocket) else None


def accept(listener: ssl.SSLSocket) -> tuple[ssl.SSLSocket, Any]:
    """Accept a connection on a TLS listener, without a handshake.

    Raises OSError; it is a ConnectionAbortedError if the connection was gone before it could be wrapped.
    """
    connection, address = socket.socket.accept(listener)
    try:
        ragged = getattr(listener, "suppress_ragged_eofs", True)
        if ragged:
            _tolerate_end_of_stream(listener.context)
        return listener.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False,
                                            suppress_ragged_eofs=ragged), address
    except (OSError, ValueError) as error:
        connection.close()
        raise ConnectionAbortedError(f"not wrapped in TLS: {error}") from error


def _tolerate_end_of_stream(context: ssl.SSLContext) -> None:
    """Let a connection be written to after its stream has ended without a close_notify.

    A stop ends the receiving direction. OpenSSL 3 would take that for an attack, send a fatal alert, and fail whatever
    is sent afterwards: a handler that reads to the end could not reply. To its reads nothing changes, since the
    listener suppresses such errors anyway.
    """
    option = getattr(sys.modules["ssl"], "OP_IGNORE_UNEXPECTED_EOF", 0)
    if not context.options & option:
        context.options |= option


def awaits_handshake(connection: Any) -> bool:
    """Return whether ``connection`` is TLS, and its handshake is still to be done."""
    if type(connection) is socket.socket:
        return False
    tls = as_tls(connection)
    return tls is not None and tls.version() is None


def shake_hands(connection: Any, seconds: float | None = None) -> None:
    """Do the handshake that `accept` left out. Does nothing if ``connection`` is not TLS, or has shaken hands.

    Blocks until the client answers or goes, or until ``seconds`` for the whole of it have passed. Raises OSError if the
    handshake fails, in most cases an `ssl.SSLError`; if the time is up, a TimeoutError.
    """
    if not awaits_handshake(connection):
        return
    own = connection.gettimeout()
    try:
        if seconds is not None and (own is None or own > seconds):
            # Nobody else uses the socket yet, as nothing may be sent ahead of the handshake. And for a handshake the
            # time-out is for the whole of it: a client that sends a byte now and then is late all the same.
            connection.settimeout(max(seconds, 0.001))  # 0 would be: do not block
        connection.do_handshake()
    finally:
        connection.settimeout(own)


def receive_at_once(connection: ssl.SSLSocket, size: int) -> tuple[bytes | None, bool]:
    """Receive what is there, without blocking; ``None`` if that is no data yet.

    The second item says whether TLS has to send something before it can receive. Nobody else may use the socket
    meanwhile: whether it blocks concerns sends, too.
    """
    module = sys.modules["ssl"]
    before = connection.gettimeout()
    connection.settimeout(0)
    try:
        return connection.recv(size), False
    except module.SSLWantReadError:
        return None, False
    except module.SSLWantWriteError:
        return None, True
    finally:
        connection.settimeout(before)


def is_tls_error(error: BaseException) -> bool:
    """Return whether ``error`` is an `ssl.SSLError`."""
    module = sys.modules.get("ssl")
    return module is not None and isinstance(error, module.SSLError)


def is_end_of_stream(error: BaseException) -> bool:
    """Return whether ``error`` says that the stream has ended without a close_notify."""
    module = sys.modules.get("ssl")
    return module is not None and isinstance(error, module.SSLEOFError)
