"""TLS on a server's connections: the server wraps each one, or the program has wrapped the listener.

`ssl.SSLSocket.accept` shakes hands before it returns, so that one client that never does keeps everybody else out.
Here a connection is wrapped as it is accepted, and the handshake waits for the handler's thread.
"""
from __future__ import annotations

import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class TLSDetails:
    """What a handshake has agreed on.

    - ``version``: such as ``"TLSv1.3"``; ``cipher``: the name of the cipher.
    - ``alpn``: the protocol that both sides have agreed on, or ``None``.
    - ``certificate``: the client's, as `ssl.SSLSocket.getpeercert` returns it; ``None`` if it was not asked for one.
    """

    version: str
    cipher: str
    alpn: str | None
    certificate: dict[str, Any] | None = field(hash=False)


def as_tls(connection: Any) -> ssl.SSLSocket | None:
    """Return ``connection`` if it is a TLS socket, else ``None``. Does not import `ssl`."""
    module = sys.modules.get("ssl")
    return connection if module is not None and isinstance(connection, module.SSLSocket) else None


def wrap(context: ssl.SSLContext, connection: socket.socket, ragged: bool = True) -> ssl.SSLSocket:
    """Wrap a connection that was accepted, without a handshake. ``ragged`` is ssl's ``suppress_ragged_eofs``.

    Raises ConnectionAbortedError, with the connection closed, if it was gone before it could be wrapped, or cannot be.
    """
    if not isinstance(connection, socket.socket):
        raise ConnectionAbortedError(f"not wrapped in TLS: {connection!r} is no socket")
    try:
        connection.getpeername()  # if it was reset, wrap_socket would lose it unclosed (seen on 3.11)
        if ragged:
            _tolerate_end_of_stream(context)
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False,
                                   suppress_ragged_eofs=ragged)
    except (OSError, ValueError, NotImplementedError) as error:  # the last one: of a socket that is no stream
        connection.close()
        raise ConnectionAbortedError(f"not wrapped in TLS: {error}") from error


def _tolerate_end_of_stream(context: ssl.SSLContext) -> None:
    """Let a connection be written to after its stream has ended without a close_notify.

    A stop ends the receiving direction. OpenSSL 3 would take that for an attack, send a fatal alert, and fail whatever
    is sent afterwards: a handler that reads to the end could not reply. To its reads nothing changes, since the
    socket suppresses such errors anyway.
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


def shake_hands(connection: Any, seconds: float | None = None) -> TLSDetails | None:
    """Do the handshake, unless it is done already, and return what it has agreed on; ``None`` without TLS.

    Several threads may use the connection from then on: see `share`.

    Blocks until the client answers or goes, or until ``seconds`` for the whole of it have passed. Raises OSError if the
    handshake fails, in most cases an `ssl.SSLError`; if the time is up, a TimeoutError.
    """
    if awaits_handshake(connection):
        _shake_hands(connection, seconds)
    tls = as_tls(connection)
    if tls is None:
        return None
    share(tls)
    cipher = tls.cipher()
    return TLSDetails(tls.version() or "", cipher[0] if cipher else "", tls.selected_alpn_protocol(),
                      tls.getpeercert() or None)


def share(connection: Any) -> bool:
    """Let several threads use a connection, if it is TLS; False, if its handshake is to be done before that.

    No other thread may use it yet: see `tls_sharing`.
    """
    tls = as_tls(connection)
    if tls is None:
        return True
    if tls.version() is None:
        return False
    from . import tls_sharing  # which imports ssl

    tls_sharing.share(tls)
    return True


def _shake_hands(connection: ssl.SSLSocket, seconds: float | None) -> None:
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


def send_close_notify(connection: ssl.SSLSocket) -> None:
    """Tell the peer that the stream ends here; never waits, not for the peer's own close_notify either.

    Nothing is sent if the handshake is not done, if the connection is broken, or if the kernel has no room for it.
    """
    if awaits_handshake(connection):
        return
    from .tls_sharing import SharedTLSSocket  # which imports ssl

    with suppress(OSError, ValueError):  # broken, closed, no room; or sent, and the peer's own has not come
        if isinstance(connection, SharedTLSSocket):
            return connection.send_close_notify()
        timeout = connection.gettimeout()
        connection.settimeout(0)
        try:
            # Not unwrap(), which drops the TLS object: what another thread sends then would go out in the clear.
            connection._sslobj.shutdown()  # type: ignore[attr-defined]
        finally:
            connection.settimeout(timeout)


def is_tls_error(error: BaseException) -> bool:
    """Return whether ``error`` is an `ssl.SSLError`."""
    module = sys.modules.get("ssl")
    return module is not None and isinstance(error, module.SSLError)


def is_end_of_stream(error: BaseException) -> bool:
    """Return whether ``error`` says that the stream has ended without a close_notify."""
    module = sys.modules.get("ssl")
    return module is not None and isinstance(error, module.SSLEOFError)
