"""Who is at the other end of a Unix socket."""
from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

_LAYOUT = struct.Struct("=iII")  # struct ucred of socket(7)


class Credentials(NamedTuple):
    """The process that has connected to a Unix socket, as it was at that moment."""

    pid: int
    """Its process; 0 if that is in a container that this process cannot see into."""
    uid: int
    """Its effective user."""
    gid: int
    """Its effective group."""


def read_credentials(connection: object) -> Credentials | None:
    """Ask the kernel who has connected; ``None`` if it is no Unix socket, or the platform cannot tell.

    The kernel keeps them with the connection (SO_PEERCRED), so that it does not matter when they are asked for.
    """
    if sys.platform != "linux" or not isinstance(connection, socket.socket) or connection.family != socket.AF_UNIX:
        return None
    try:
        return Credentials(*_LAYOUT.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LAYOUT.size)))
    except OSError:  # closed in the meantime
        return None
