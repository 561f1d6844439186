"""Accepting from one listener without what `socket.socket.accept` works out anew for each connection.

That method makes enumeration members of the listener's family and type, of which nothing is left in the connection; it
is an eighth of all the instructions that a short connection costs the server. It is left out only for a plain socket of
the standard library, on a platform whose accepted sockets block whatever their listener does: there the result is the
same.
"""
from __future__ import annotations

import _socket
import socket
from typing import Any

_PLAIN, _ACCEPT = socket.socket, socket.socket.accept
_CAN_ACCEPT = hasattr(_socket.socket, "_accept") and hasattr(socket, "SOCK_NONBLOCK")


class Acceptor:
    """Accepts connections from one listener."""

    def __init__(self, listener: Any) -> None:
        self.listener = listener
        self._accept = listener._accept
        self._kind = int(listener.family), int(listener.type), listener.proto

    def accept(self) -> tuple[Any, Any]:
        """Accept a connection, and return it with its peer's address. Raises OSError."""
        descriptor, address = self._accept()
        return _PLAIN(*self._kind, descriptor), address


def acceptor_for(listener: Any) -> Acceptor | None:
    """Return an acceptor; ``None`` if only the listener's own ``accept`` will do."""
    # Somebody may have put another class in the place of the standard library's, as gevent does, or another method.
    is_plain = (type(listener) is _PLAIN is socket.socket and _PLAIN.__bases__ == (_socket.socket,)
                and _PLAIN.accept is _ACCEPT)
    return Acceptor(listener) if _CAN_ACCEPT and is_plain and listener.fileno() >= 0 else None
