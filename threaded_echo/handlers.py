"""Handlers to subclass: by chunk, by line, and echo."""
from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

from .clients.client import Client
from .clients.deadlines import activity_of, while_busy, while_resting
from .clients.receiving import Receiver
from .clients.telling import tell_connected
from .clients.threads import current_client
from .errors import LineTooLong
from .observe import logs
from .observe.logs import LogLimit, about

logger = logging.getLogger("threaded_echo")

_CHUNK, _LARGE_CHUNK = 16384, 65536
"""Bytes to receive at once, and the number after a chunk that was full. `recv` allocates the whole buffer: for small
messages a large one costs more than it saves, and the C library maps each buffer above 128 KiB anew."""

_TOGETHER = 0.001  # seconds that a reply may wait for the replies to lines that arrived with its own


class ClientHandler(socketserver.BaseRequestHandler):
    """Serve a client by `process`, which a subclass overrides. Needs a server built on `ThreadedMixIn`.

    ``setup``, ``handle`` and ``finish`` mean what they mean in socketserver. ``self.client`` is the `Client`,
    ``self.server`` the server, and ``self.stopping`` the event that a stop sets: wait on it instead of sleeping. They
    are set before ``setup`` is called. All methods run in the handler's thread. The server closes the connection.

    Put last among the bases, it adds these to any other handler class: ``class App(BaseHTTPRequestHandler,
    ClientHandler)``. In an order in which it would hide that class's ``handle``, defining the class is a TypeError.
    """

    client: Client
    stopping: threading.Event

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        ours = [base for base in cls.__mro__ if "handle" in vars(base)]
        for base in ours[1:-1]:  # the last one is socketserver's, the first one is used
            if issubclass(ours[0], ClientHandler) and ours[0] is not cls and not issubclass(base, ClientHandler):
                raise TypeError(f"{cls.__name__}: {ours[0].__name__} hides the handle() of {base.__name__}; "
                                f"put {ours[0].__name__} last among the bases")

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        client = current_client()
        if client is None:
            raise TypeError(f"{type(self).__name__} needs a server built on threaded_echo.ThreadedMixIn")
        self.client = client
        self.stopping = client._period.stopping
        try:
            # A reply must not wait for the acknowledgement of the one before (RFC 896).
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, AttributeError):  # not TCP; a datagram's request is a tuple
            pass
        super().__init__(request, client_address, server)

    def process(self, data: bytes) -> bytes | None:
        """Take a chunk that has arrived, and return what to send back (bytes-like); ``None`` or ``b""``: nothing.

        Chunks are as the network delivers them: a message may come in two, or two in one. What this raises ends the
        client; it is logged with the client's number. So is a TypeError if it returns anything else. It is not called
        any more after the server has cut the connection, as `Client.disconnect` does, whatever has arrived before that.
        """
        return None

    def handle(self) -> None:
        """Process each chunk until the client ends its stream, or a stop does."""
        receive = self.request.recv if self._received is None else self._received.rest_of(self.request)
        send = self._sender()
        process: Callable[[Any], Any] = self.process
        client = self.client
        activity = activity_of(client, self.server)
        size = _CHUNK
        while data := receive(size):
            if client.reason is not None and client._is_cut():  # what had arrived before is still there to receive
                break
            size = _CHUNK if len(data) < _CHUNK else _LARGE_CHUNK
            if activity is None:
                reply = process(data)
            else:  # as `while_busy`, but for the price of a call
                activity.busy = True
                try:
                    reply = process(data)
                finally:
                    activity.rested = monotonic()
                    activity.busy = False
            if reply:
                try:
                    send(reply)
                except TypeError:
                    self._check_reply(reply)
                    raise
            elif reply is not None:
                self._check_reply(reply)

    def send(self, data: Any) -> None:
        """Send all of ``data`` (bytes-like) to the client.

        Raises OSError if the client has gone. *Thread safety*: as `Client.send`: any thread, never interleaved.
        """
        self.client.send(data)

    def receive_exactly(self, n: int, timeout: float | None = None) -> bytes:
        """Receive exactly ``n`` bytes, for ``setup`` and a ``handle`` of one's own.

        ``timeout``: seconds for all of them; ``None``: no limit. Raises EOFError if the stream ends before, which a
        stop or a disconnect does, too, and TimeoutError if the time is up. After a TimeoutError the connection is as
        it was, and the next call goes on with what has come so far. If ``handle`` lets them pass, the client is ended;
        an EOFError is not counted as a failure.

        What arrives beyond the message is kept for the next call of this method or `receive_until`. What is left after
        ``setup`` is what `process` is called with first. Whoever reads ``self.request`` itself misses it. On a TLS
        connection a call with a time-out waits for another thread's `Client.send` to end. *Thread safety*: the
        handler's own thread.
        """
        return self._receiver().exactly(self.request, n, timeout)

    def receive_until(self, separator: bytes = b"\n", limit: int = 65536, timeout: float | None = None) -> bytes:
        """Receive all bytes up to and including ``separator``, for ``setup`` and a ``handle`` of one's own.

        ``limit``: the most bytes ahead of the separator. Raises `LineTooLong` if there are more, and otherwise what
        `receive_exactly` does; the rest of what is said there is true here, too.
        """
        return self._receiver().until(self.request, separator, limit, timeout)

    _received: Receiver | None = None  # made if ``setup``, or a ``handle`` of one's own, receives messages

    def _receiver(self) -> Receiver:
        if self._received is None:
            self._received = Receiver(self.client._connection.sending)
        return self._received

    def offload(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` in the server's `executor`, and return its result; this thread waits.

        Raises what the server's ``offload`` does. *Thread safety*: the handler's own thread.
        """
        return self.server._threaded_state.offload(self.server, function, args, kwargs)  # type: ignore[attr-defined]

    def offload_within(self, seconds: float | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do as `offload`, but raise TimeoutError if the call has not returned ``seconds`` after it was made.

        ``None``: wait for as long as it takes. *Thread safety*: the handler's own thread.
        """
        state = self.server._threaded_state  # type: ignore[attr-defined]
        return state.offload_within(self.server, seconds, function, args, kwargs)

    def offload_iter(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Iterate over what a generator function yields in a worker process of the server's, as it comes.

        See the server's ``offload_iter``. *Thread safety*: the handler's own thread.
        """
        state = self.server._threaded_state  # type: ignore[attr-defined]
        items: Iterator[Any] = state.offload_iter(self.server, function, args, kwargs)
        return items

    def _sender(self) -> Callable[[Any], None]:
        """Return what sends a reply: the connection itself, unless a subclass has a ``send`` of its own."""
        if getattr(self.send, "__func__", None) is ClientHandler.send:
            return self.client._connection.send
        return self.send

    def _check_reply(self, reply: object) -> None:
        """Raise TypeError, naming `process`, unless what it has returned is bytes-like."""
        try:
            memoryview(reply)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{type(self).__name__}.process must return bytes or None, not {reply!r}") from None


class LineHandler(ClientHandler):
    r"""Serve a client by `process`, called with each line. Needs a server built on `ThreadedMixIn`.

    A line ends with ``\n`` or ``\r\n``; one of more than ``max_line`` bytes, line end not counted, ends the client
    with `LineTooLong`. A last line without an end is also processed if the client has ended its stream, but
    never if the server has (by a stop, or `Client.disconnect`), since the rest of the line may be missing.

    Replies to lines that have arrived together are sent together, so that a hundred lines cost one
    system call, not a hundred. That delays no reply by more than a millisecond and one call of ``process``.
    """

    max_line = 65536

    _pieces: list[bytes]  # the pieces of a line whose end has not come yet
    _pieces_length: int

    def process(self, line: bytes) -> bytes | None:
        """Take a line without its end, and return the reply (bytes-like) without its end; ``None``: no reply."""
        return None

    def handle(self) -> None:
        """Process each line until the client ends its stream, or a stop does."""
        self._replies: list[bytes] = []
        receive = self.request.recv if self._received is None else self._received.rest_of(self.request)
        send, limit = self._sender(), self.max_line
        process: Callable[[Any], Any] = self.process
        process_lines: Callable[[Any], Any] = self._process_lines
        self._reply = self._flush
        client = self.client
        activity = activity_of(client, self.server)
        if activity is not None:
            process_lines, self._reply = while_busy(activity, process_lines), while_resting(activity, self._flush)
        rest = self._pieces = []
        self._pieces_length = 0
        size = _CHUNK
        while data := receive(size):
            if client.reason is not None and client._is_cut():  # as above
                break
            size = _CHUNK if len(data) < _CHUNK else _LARGE_CHUNK
            if data.find(b"\n") == len(data) - 1 <= limit and not rest:  # one whole line: the usual case
                line = data[:-2] if data.endswith(b"\r\n") else data[:-1]
                if activity is None:
                    reply = process(line)
                else:  # as `while_busy`, but for the price of a call
                    activity.busy = True
                    try:
                        reply = process(line)
                    finally:
                        activity.rested = monotonic()
                        activity.busy = False
                if reply is not None:
                    send(self._ended(reply))
            else:
                self._take_lines(data, process_lines)
        if rest and client._has_ended_its_stream():
            process_lines([b"".join(rest)])

    def send(self, data: Any) -> None:
        """Send the replies that are ready, then all of ``data`` (bytes-like), to the client.

        Raises OSError if the client has gone. *Thread safety*: the handler's own thread; others use `Client.send`.
        """
        self._flush()
        self.client.send(data)

    def offload(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Send the replies that are ready, then do as `ClientHandler.offload`."""
        self._flush()
        return super().offload(function, *args, **kwargs)

    def offload_within(self, seconds: float | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Send the replies that are ready, then do as `ClientHandler.offload_within`."""
        self._flush()
        return super().offload_within(seconds, function, *args, **kwargs)

    def offload_iter(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Send the replies that are ready, then do as `ClientHandler.offload_iter`."""
        self._flush()
        return super().offload_iter(function, *args, **kwargs)

    def _take_lines(self, data: bytes, process_lines: Callable[[list[bytes]], None]) -> None:
        """Process the lines that are whole by now, and keep the rest."""
        lines = data.split(b"\n")
        tail = lines.pop()
        if lines:
            if self._pieces:
                lines[0] = b"".join((*self._pieces, lines[0]))
                self._pieces.clear()
                self._pieces_length = 0
            process_lines([line[:-1] if line.endswith(b"\r") else line for line in lines])
        if tail:
            self._pieces.append(tail)
            self._pieces_length += len(tail)
            if self._pieces_length > self.max_line + 1:  # the byte above the limit may be a carriage return
                raise self._too_long()

    def _process_lines(self, lines: list[bytes]) -> None:
        """Process lines that have arrived together."""
        process, replies, client = self.process, self._replies, self.client
        oldest = 0.0  # when the first of the waiting replies was made
        try:
            for line in lines:
                if client.reason is not None and client._is_cut():
                    return
                if len(line) > self.max_line:
                    raise self._too_long()
                reply = process(line)
                if reply is not None:
                    if not replies:
                        oldest = monotonic()
                    replies.append(self._ended(reply))
                if replies and monotonic() - oldest > _TOGETHER:
                    self._reply()
        except BaseException:  # whatever process raises; the replies to the lines before it are due all the same
            with suppress(OSError):  # the handler's own error is the one to report
                self._reply()
            raise
        self._reply()

    def _ended(self, reply: Any) -> bytes:
        """Return a reply with its line end."""
        try:
            ended: bytes = reply + b"\n"
        except TypeError:
            self._check_reply(reply)
            ended = bytes(reply) + b"\n"  # a memoryview cannot be added to
        return ended

    def _flush(self) -> None:
        """Send the replies that wait."""
        replies = getattr(self, "_replies", None)
        if replies:
            data = b"".join(replies)
            replies.clear()
            self._sender()(data)

    def _sender(self) -> Callable[[Any], None]:
        if getattr(self.send, "__func__", None) is LineHandler.send:
            return self.client._connection.send
        return self.send

    def _too_long(self) -> LineTooLong:
        return LineTooLong(f"a line of more than {self.max_line} bytes")


class EchoHandler(ClientHandler):
    """Send back what comes, and log at INFO who comes and goes, and each line, under the client's number.

    At most `logs_per_client` lines are logged in ten seconds. The rest is counted, and the count is logged with the
    next line after that, or when the client goes.
    """

    _log_limit: LogLimit | None = None  # made for the first line that is logged

    def setup(self) -> None:
        """Log that the client has connected; the server then logs its end, too."""
        super().setup()
        if logger.isEnabledFor(logging.INFO):
            tell_connected(self.client)

    def process(self, data: bytes) -> bytes:
        """Return the chunk."""
        if logger.isEnabledFor(logging.INFO):
            self._log(data)
        return data

    def finish(self) -> None:
        """Log how many of the last lines were not logged."""
        super().finish()
        if self._log_limit is not None:
            self._log_left_out(self._log_limit.take_left_out())

    def _log(self, data: bytes) -> None:
        """Log the lines of a chunk, as far as the limit admits them; the others are counted without a look at them."""
        now, client = monotonic(), self.client
        limit = self._log_limit = self._log_limit or LogLimit(self.server.logs_per_client)  # type: ignore[attr-defined]
        self._log_left_out(limit.take_left_out(now))
        start = 0
        while start < len(data):
            if not limit.admit(now):
                limit.leave_out(data.count(b"\n", start, -1))
                break
            end = data.find(b"\n", start)
            line = data[start:] if end < 0 else data[start:end]
            start = len(data) if end < 0 else end + 1
            logger.info("client %d: %s", client.number, printable(line.removesuffix(b"\r")),
                        extra=about(client, "message"))

    def _log_left_out(self, count: int) -> None:
        if count:
            client = self.client
            logger.info("client %d: %s more lines were not logged", client.number, f"{count:,}",
                        extra={**about(client, "omitted"), "count": count})


def printable(message: bytes) -> str:
    """Decode a message for people: what is not printable text is escaped, so that it cannot control a terminal."""
    return logs.printable(message.decode(errors="backslashreplace"))
