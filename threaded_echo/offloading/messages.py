"""The messages between the server and a worker process: pickled objects, and the descriptors that belong to them.

Large `bytes`, `bytearray` and the buffers of NumPy arrays are not copied on their way: the pickler passes each one of
64 KiB and more on as it is, for the channel to send from where it lies, and the unpickler receives it into the new
object. That is protocol 5 without its list of buffers, which would leave out `bytes` and `bytearray`.

What multiprocessing knows how to pickle is pickled as it does, as in `concurrent.futures.ProcessPoolExecutor`. Sockets
and connections are sent differently: multiprocessing offers a copy of the descriptor through a listening socket and a
thread, both of which stay until the interpreter ends, and keeps each copy that is never fetched. A client whose
connection is kept in this way never sees its end. Here the copies go with the message itself, and are closed if it is
not sent.
"""
from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from .call import name_of
from .channel import HAS_SOCKETS, MOST_DESCRIPTORS, Channel
from .wire import Disconnected, close_descriptors

READY, INITIALIZE, CALL, ITERATE, NEXT, CLOSE, RESULT, ITEM, ERROR = range(9)
"""The kinds of messages.

From the server: `INITIALIZE`, `CALL` and `ITERATE` have a function to call; `NEXT` says that an item of an iteration
has been used, and `CLOSE` that no more are wanted. From the worker: `READY`, once; `ITEM`, any number of times; and at
the end of what was called its `RESULT` or its `ERROR`, with the traceback.
"""

_loading = threading.local()  # received: the message that the calling thread is unpickling


class Message:
    """A message to send, any number of times. Whoever makes it closes it: it is a context manager."""

    def __init__(self, kind: int, content: Any, name: str = "") -> None:
        """Pickle ``content``. ``name``: what an error is to call it if it cannot be unpickled."""
        self.kind = kind
        self._name = name.encode(errors="backslashreplace")[:65535]
        self._descriptors: list[int] = []
        self._buffers: list[Any] = []
        try:
            _Pickler(self).dump(content)
        except BaseException:  # whatever an object's own pickling raises
            self.close()
            raise

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, channel: Channel) -> None:
        """Send the message. Raises Disconnected if the process at the other end has ended."""
        channel.send(self.kind, self._name, self._buffers, self._descriptors)

    def check(self) -> None:
        """Raise an exception, and close the message, if the content cannot be unpickled."""
        try:
            pickle.loads(b"".join(self._buffers))
        except BaseException:  # whatever an object's own unpickling raises
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors, and give the buffers free. May be called again."""
        self._buffers.clear()
        close_descriptors(self._descriptors)

    # For the pickler.

    def write(self, data: Any) -> None:
        """Take the next bytes. A view on those of another object keeps it from changing its size until `close`."""
        if type(data) is not bytes:
            data = data.raw() if isinstance(data, pickle.PickleBuffer) else memoryview(data)
        self._buffers.append(data)

    def reduce_socket(self, each: socket.socket) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle a socket."""
        index = self._add(each.fileno())
        return _receive_socket, (index, each.family, each.type, each.proto, each.gettimeout())

    def reduce_connection(self, each: Connection) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle a connection of multiprocessing's."""
        return _receive_connection, (self._add(each.fileno()), each.readable, each.writable)

    def _add(self, descriptor: int) -> int:
        if len(self._descriptors) == MOST_DESCRIPTORS:
            raise ValueError(f"it holds more than {MOST_DESCRIPTORS} sockets and connections")
        self._descriptors.append(os.dup(descriptor))  # which nobody else can close meanwhile
        return len(self._descriptors) - 1


class _Pickler(pickle.Pickler):
    """Pickles into a message. multiprocessing's own pickler copies a table for each object, and searches it slowly."""

    def __init__(self, message: Message) -> None:
        super().__init__(message, pickle.HIGHEST_PROTOCOL)
        self._message = message

    def reducer_override(self, each: Any) -> Any:
        """Pickle what is sent with the message, and what multiprocessing, or a library that uses it, registers."""
        kind = type(each)
        if HAS_SOCKETS:
            if kind is socket.socket:
                return self._message.reduce_socket(each)
            if kind is Connection:
                return self._message.reduce_connection(each)
        reduce = ForkingPickler._extra_reducers.get(kind)  # type: ignore[attr-defined]
        return NotImplemented if reduce is None else reduce(each)


def pickle_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
                kind: int = CALL) -> Message:
    """Pickle a call. Raises TypeError, with the reason and what to do, if that is not possible."""
    name = name_of(function)
    try:
        return Message(kind, (function, args, kwargs), name)
    except Exception as error:  # whatever an object's own pickling raises
        advice = ("its arguments have to be objects that can be pickled" if _can_be_pickled(function) else
                  "use a function of a module")
        raise TypeError(f"{name} cannot be sent to a worker process: {advice} ({error})") from error


def _can_be_pickled(function: Callable[..., Any]) -> bool:
    try:
        Message(CALL, function).close()
    except Exception:  # as in pickle_call
        return False
    return True


class Received:
    """A message that is being received. Whoever receives it closes it: it is a context manager."""

    def __init__(self, channel: Channel) -> None:
        """Wait for a message. Raises Disconnected if the process at the other end has ended."""
        self.kind, name, self._stream, self._descriptors = channel.receive()
        self.name = name.decode(errors="replace")  # it may have been cut short

    def __enter__(self) -> Received:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> Any:
        """Receive and unpickle the content. Raises Disconnected, and whatever an object's own unpickling raises.

        After an exception of that kind, the next message can be received.
        """
        before = getattr(_loading, "received", None)  # unpickling an object may make a call of its own
        _loading.received = self
        try:
            return pickle.load(self._stream)
        except Disconnected:
            raise
        except Exception:  # an object's own: the next message has to be found behind this one
            self._stream.skip()
            raise
        finally:
            _loading.received = before

    def skip(self) -> None:
        """Receive the content, and drop it."""
        self._stream.skip()
        self.close()

    def take(self, index: int) -> int:
        """Take over a descriptor."""
        descriptor, self._descriptors[index] = self._descriptors[index], -1
        return descriptor

    def close(self) -> None:
        """Close the descriptors that no object has taken over."""
        close_descriptors(self._descriptors)


def _receive_socket(index: int, family: int, kind: int, protocol: int, timeout: float | None) -> socket.socket:
    received: Received = _loading.received
    made = socket.socket(family, kind, protocol, fileno=received.take(index))
    made.settimeout(timeout)  # whether it blocks is a property of both copies, and stays as it was
    return made


def _receive_connection(index: int, readable: bool, writable: bool) -> Connection:
    received: Received = _loading.received
    return Connection(received.take(index), readable, writable)
