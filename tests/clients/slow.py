"""Clients for whom a little is too much: their kernel's buffers are small, so that what they do not read waits."""
from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from ..tools import GUARD, receive, until

SMALL = 4096
"""Bytes of a buffer. The kernel takes several times as much, all in all."""

PIECE = b"p" * 200_000
"""More than the kernel takes for a slow client."""


def hold_little(server: Any) -> Any:
    """Have the kernel take little for the clients of a server that is about to get some; return the server."""
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return server


def connect_slowly(server: Any) -> socket.socket:
    """Connect with a small buffer; the caller closes. The handler has begun."""
    address, before = server.server_address, server.stats().accepted
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    client.settimeout(GUARD)
    client.connect(address)
    until(lambda: (found := server.clients.get(before + 1)) is not None and found.state == "serving")
    return client


def waiting(client: Any) -> int:
    """Count the bytes that wait for a client, besides what the kernel has taken."""
    backlog = client._connection.backlog()
    return 0 if backlog is None else backlog.size


_HEAD = struct.Struct("!BIIL")


def frame(sender: int, number: int, size: int) -> bytes:
    """Make a message that tells who has sent it, which one it is, and whether it is whole."""
    body = bytes([sender]) * size
    return _HEAD.pack(sender, number, size, zlib.crc32(body)) + body


def frames(client: socket.socket) -> Iterator[tuple[int, int]]:
    """Receive messages until the end of the stream; yield who has sent each, and which one it is. Each is whole."""
    while head := receive(client, _HEAD.size):
        sender, number, size, checksum = _HEAD.unpack(head)
        body = receive(client, size)
        assert len(body) == size and zlib.crc32(body) == checksum, "it is not whole"
        yield sender, number
