"""The messages between the server and a worker process: pickled objects, and the descriptors that belong to them.

The pickler is multiprocessing's, as in `concurrent.futures.ProcessPoolExecutor`. Sockets and connections are
sent differently: multiprocessing offers a copy of the descriptor through a listening socket and a thread, both of which
stay until the interpreter ends, and keeps each copy that is never fetched. A client whose connection is kept in this
way never sees its end.
Here the copies follow the message itself through the worker's pipe, and are closed if it is not sent.

The last byte of a message is the number of its descriptors.
"""
from __future__ import annotations

import io
import os
import pickle
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

MOST_DESCRIPTORS = 253
"""As many as Linux sends at once."""

_SENDS_DESCRIPTORS = hasattr(socket, "send_fds")  # elsewhere, on Windows, they go multiprocessing's way
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_loading = threading.local()  # received: the message that the calling thread is unpickling


class Message:
    """A message to send, any number of times. Whoever makes it closes it: it is a context manager."""

    def __init__(self, *objects: Any) -> None:
        self._descriptors: list[int] = []
        buffer = io.BytesIO()
        try:
            for each in objects:
                pickler = ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL)
                if _SENDS_DESCRIPTORS:
                    # The table is this pickler's own.
                    pickler.dispatch_table[socket.socket] = self._reduce_socket
                    pickler.dispatch_table[Connection] = self._reduce_connection
                pickler.dump(each)
        except BaseException:  # whatever an object's own pickling raises
            self.close()
            raise
        buffer.write(bytes([len(self._descriptors)]))
        self.data = buffer.getvalue()

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, connection: Connection) -> None:
        """Send the message. Raises OSError if the process at the other end has ended."""
        connection.send_bytes(self.data)
        if self._descriptors:
            with _as_socket(connection) as pipe:
                socket.send_fds(pipe, [b"\0"], self._descriptors)

    def close(self) -> None:
        """Close the descriptors. May be called again."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _reduce_socket(self, each: socket.socket) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        index = self._add(each.fileno())
        return _receive_socket, (index, each.family, each.type, each.proto, each.gettimeout())

    def _reduce_connection(self, each: Connection) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _receive_connection, (self._add(each.fileno()), each.readable, each.writable)

    def _add(self, descriptor: int) -> int:
        if len(self._descriptors) == MOST_DESCRIPTORS:
            raise ValueError(f"it holds more than {MOST_DESCRIPTORS} sockets and connections")
        self._descriptors.append(os.dup(descriptor))  # which nobody else can close meanwhile
        return len(self._descriptors) - 1


class Received:
    """A message that has been received. Whoever receives it closes it: it is a context manager."""

    def __init__(self, connection: Connection, wait: Callable[[], object] = lambda: None) -> None:
        """Receive a message, with ``wait`` called before each part. Raises EOFError or OSError if the sender ends."""
        wait()
        data = connection.recv_bytes()
        self._stream = io.BytesIO(data)
        self._descriptors: list[int] = []
        if data[-1]:
            wait()
            with _as_socket(connection) as pipe:
                self._descriptors = socket.recv_fds(pipe, 1, data[-1], _CLOSE_ON_EXEC)[1]
            if len(self._descriptors) != data[-1]:  # the sender has ended, or this process is out of descriptors
                self.close()
                raise EOFError

    def __enter__(self) -> Received:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> Any:
        """Unpickle the next object. Raises whatever an object's own unpickling raises."""
        _loading.received = self
        try:
            return pickle.load(self._stream)
        finally:
            del _loading.received

    def take(self, index: int) -> int:
        """Take over a descriptor."""
        descriptor, self._descriptors[index] = self._descriptors[index], -1
        return descriptor

    def close(self) -> None:
        """Close the descriptors that no object has taken over."""
        for descriptor in self._descriptors:
            with suppress(OSError):  # -1: it was taken over
                os.close(descriptor)
        self._descriptors.clear()


def _as_socket(connection: Connection) -> socket.socket:
    """Make a socket of a connection between two processes, for the caller to close. The connection stays open."""
    return socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


def _receive_socket(index: int, family: int, kind: int, protocol: int, timeout: float | None) -> socket.socket:
    received: Received = _loading.received
    made = socket.socket(family, kind, protocol, fileno=received.take(index))
    made.settimeout(timeout)  # whether it blocks is a property of both copies, and stays as it was
    return made


def _receive_connection(index: int, readable: bool, writable: bool) -> Connection:
    received: Received = _loading.received
    return Connection(received.take(index), readable, writable)
