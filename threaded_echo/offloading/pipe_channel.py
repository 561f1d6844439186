"""The channel between the server and a worker process on a platform without Unix sockets, as Windows."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from .wire import HEADER, Disconnected, Incoming, Whole


class PipeChannel:
    """One end of a channel on a platform without Unix sockets: of two connections, which take whole messages."""

    def __init__(self, connection: Connection, begun: Connection) -> None:
        """Take over both."""
        self._connection, self._begun = connection, begun

    def fileno(self) -> int:
        """Return what `wait` takes."""
        return self._connection.fileno()

    def hasten(self, seconds: float | None) -> None:
        """Do nothing: what is received from a pipe is waited for until its end."""

    def is_ahead(self) -> bool:
        """As `channel.SocketChannel.is_ahead`."""
        return False

    def has_data(self) -> bool:
        """As `channel.SocketChannel.has_data`."""
        return self._connection.poll()

    def tell_begun(self) -> None:
        """As `channel.SocketChannel.tell_begun`."""
        self._begun.send_bytes(b"\0")

    def was_begun(self) -> bool:
        """As `channel.SocketChannel.was_begun`."""
        found = False
        with suppress(EOFError):
            while self._begun.poll():
                found = bool(self._begun.recv_bytes())
        return found

    def send(self, kind: int, name: bytes = b"", buffers: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        """As `channel.SocketChannel.send`, but without descriptors."""
        try:
            self._connection.send_bytes(b"".join((HEADER.pack(kind, 0, len(name), 0), name, *buffers)))
        except OSError as error:
            raise Disconnected from error

    def receive(self) -> Incoming:
        """As `channel.SocketChannel.receive`."""
        try:
            stream = Whole(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise Disconnected from error
        kind, _, length, _ = HEADER.unpack(stream.read(HEADER.size))
        return Incoming(kind, stream.read(length), stream, [])

    def close(self) -> None:
        """Close this end. May be called again."""
        self._connection.close()
        self._begun.close()
