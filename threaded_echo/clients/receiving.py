"""Receiving whole messages, each under a deadline: so many bytes, or all up to a separator.

What has arrived beyond a message is kept for the next one. So is an unfinished message whose time is up: the next call
goes on with it.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..errors import LineTooLong, ReceiveTimeout, StreamEnded
from ..options import check_seconds
from ..transport import tls
from ..transport.deadline import Deadline, wait_for

_CHUNK, _LARGE_CHUNK = 16384, 65536  # as in handlers.py


class Receiver:
    """Receives the messages of one client. *Thread safety*: for one thread, the handler's."""

    def __init__(self, sending: threading.Lock) -> None:
        """Make one without data; ``sending`` is the lock that the client's senders hold."""
        self._sending = sending
        self._request: Any = None
        self._buffer = bytearray()

    def exactly(self, request: Any, size: int, timeout: float | None) -> bytes:
        """Return the next ``size`` bytes. Raises StreamEnded or ReceiveTimeout."""
        if size < 0:
            raise ValueError(f"the number of bytes must not be negative: {size!r}")
        deadline = self._begin(request, timeout)
        is_first = True
        while (length := len(self._buffer)) < size:
            self._receive(size - length, deadline, is_first, f"{length:,} of {size:,} bytes")
            is_first = False
        return self._take(size)

    def until(self, request: Any, separator: bytes, limit: int, timeout: float | None) -> bytes:
        """Return what comes up to ``separator``, and that. Raises StreamEnded, ReceiveTimeout or LineTooLong."""
        if not separator:
            raise ValueError("the separator must not be empty")
        deadline = self._begin(request, timeout)
        is_first = True
        searched = 0
        while True:
            found = self._buffer.find(separator, searched)
            length = len(self._buffer)
            if found > limit or found < 0 and length - len(separator) >= limit:
                raise LineTooLong(f"a message of more than {limit} bytes before {separator!r}")
            if found >= 0:
                return self._take(found + len(separator))
            searched = max(0, length - len(separator) + 1)
            self._receive(0, deadline, is_first, f"{length:,} bytes without {separator!r}")
            is_first = False

    def rest_of(self, request: Any) -> Callable[[int], bytes]:
        """Return what receives on as ``request.recv`` does, beginning with what has come beyond the last message."""
        recv: Callable[[int], bytes] = request.recv
        if request is not self._request:  # see _begin
            return recv
        return lambda size: self._take(size) if self._buffer else recv(size)

    def _begin(self, request: Any, timeout: float | None) -> Deadline:
        """Return the deadline of the message that begins.

        What has come over another connection is forgotten. The handler may have wrapped its own in TLS since: bytes
        that a stranger has slipped in ahead of the handshake must not pass for the client's.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if request is not self._request:
            self._request = request
            self._buffer.clear()
        return Deadline(timeout)

    def _take(self, size: int) -> bytes:
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        return taken

    def _receive(self, missing: int, deadline: Deadline, is_first: bool, so_far: str) -> None:
        """Receive more. With a deadline of 0 seconds, what has arrived already still counts."""
        size = _CHUNK if missing <= _CHUNK else _LARGE_CHUNK
        if deadline.seconds is None:
            data = self._request.recv(size)
        elif not is_first and deadline.remaining() == 0.0:
            data = None
        elif tls.as_tls(self._request) is not None:
            data = self._receive_tls(size, deadline)
        else:
            data = self._request.recv(size) if wait_for(self._request, deadline.remaining()) else None
        if data is None:
            raise ReceiveTimeout(f"{so_far} have come within {deadline.seconds} seconds")
        if not data:
            raise StreamEnded(f"the stream has ended after {so_far}")
        self._buffer += data

    def _receive_tls(self, size: int, deadline: Deadline) -> bytes | None:
        """Receive what a TLS connection has; ``None`` if the time is up.

        A part of a record is not data yet, and a read would block until the rest has come. So the socket must not
        block, but it is one for receiving and sending: meanwhile no other thread is let in to send.
        """
        while self._sending.acquire(timeout=deadline.remaining() or 0.0):
            try:
                data, has_to_send = tls.receive_at_once(self._request, size)
            finally:
                self._sending.release()
            if data is not None or not wait_for(self._request, deadline.remaining(), has_to_send):
                return data
        return None
