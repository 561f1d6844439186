"""A TLS connection that several threads use at once: the handler receives, and others send.

OpenSSL wants one thread at a time at a connection, and Python does not see to that. (3.13.6 did, and a send waited for
the other thread's receive.) If a client asks for a new key (TLS 1.3) while one thread receives and another one sends,
its connection breaks, or the process crashes. With a time-out, either may fail by an error that is the other's.

Guarantees:

- One thread at a time is in OpenSSL for a connection, and none waits for the peer there: the descriptor does not block,
  and who has to wait does so outside. Whoever asks for the socket's time-out is told the one that was set.
- What one call of ``send`` has begun is not mixed with another's: OpenSSL wants to go on with the same bytes. A record
  that ``send_at_once`` had to leave in its middle goes ahead of whatever is sent next, by whomever.
- As soon as TLS has ended, by ``unwrap``, the socket is an ordinary one, but for ``send_at_once``, which raises.
  ``shutdown`` does not end TLS, as Python's own does: what another thread sends after a ``shutdown(SHUT_RD)`` would go
  out in the clear.

It is imported when a handshake is done, since it imports `ssl`.
"""
from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .deadline import Deadline, wait_for


def share(connection: ssl.SSLSocket) -> None:
    """Let several threads use a connection whose handshake is done, and which no other thread uses yet.

    A class of the program's own (``sslsocket_class``) is left as it is.
    """
    if type(connection) is ssl.SSLSocket:
        timeout = connection.gettimeout()
        connection.__class__ = SharedTLSSocket
        assert isinstance(connection, SharedTLSSocket)
        connection._using = threading.RLock()
        connection._sending = threading.RLock()
        connection.settimeout(timeout)


_RECORD = 16384
"""Bytes in the longest TLS record. When the kernel says that it has room, it has enough for two in its usual settings.
So a send does not have to stop in the middle of a record: if the client asked for a new key just then, OpenSSL would
break the connection ("bad length")."""

_OVERHEAD = 1024  # bytes that the kernel needs for each send besides its data, at most


class SharedTLSSocket(ssl.SSLSocket):
    """A socket that `share` has changed. The order of its locks: ``_sending``, then ``_using``."""

    _sslobj: Any  # OpenSSL's part, as ssl has it; None without TLS
    _using: threading.RLock  # held while OpenSSL does something for the connection, and while its time-out is changed
    _sending: threading.RLock  # held during one send, which may have to wait in its middle
    _room = 0  # bytes that may be sent before the kernel is asked again whether it has room; guarded by _sending
    # What send_at_once had to leave in its middle. It is guarded by _sending until TLS has ended, after which nobody
    # sends it. A thread that only asks whether there is something need not hold that lock.
    begun: bytes | memoryview | None = None
    _timeout: float | None  # what was set; while it is TLS, the descriptor's own is 0

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Receive, as `ssl.SSLSocket.read`; ``recv``, ``recv_into`` and files end up here, too."""
        waits = False
        if self._timeout != 0:
            with self._using:
                waits = self._sslobj is not None and not self._sslobj.pending()
        return self._do(super().read, (len, buffer), waits)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send, as `ssl.SSLSocket.send`; ``sendall``, ``sendfile`` and files end up here, too."""
        if self._sslobj is None:
            return super().send(data, flags)
        timeout = self._timeout
        if not self._sending.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            if timeout == 0:
                raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "another thread is sending")
            raise TimeoutError("The write operation timed out")
        try:
            if self.begun is not None:
                self._do(self._send, (self.begun, 0), timeout != 0, True)
                self.begun = None
            if type(data) is not bytes or len(data) > _RECORD:
                data = memoryview(data).cast("B")[:_RECORD]
            self._room -= len(data) + _OVERHEAD
            asks = self._room < 0
            if asks:
                self._room = _RECORD
            return int(self._do(self._send, (data, flags), asks and timeout != 0, True))
        finally:
            self._sending.release()

    def send_at_once(self, data: bytes | memoryview) -> int:
        """Send what there is room for without waiting, whatever the time-out; return how many bytes that were.

        A record that is begun counts, though its rest may still have to go out (``begun``): any later send does that
        first, and so does a call of this without data. Raises OSError or ValueError if the socket is closed.
        """
        if not self._sending.acquire(blocking=False):
            return 0
        try:
            taken = 0
            while self.begun is not None or taken < len(data):
                if not wait_for(self, 0.0, to_send=True):
                    break
                self._room = 0
                record = data[taken:taken + _RECORD] if self.begun is None else self.begun
                taken += len(record) if self.begun is None else 0
                self.begun = record
                try:
                    with self._using:
                        self._check_attached()
                        self._send(record, 0)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    break
                self.begun = None
            return taken
        finally:
            self._sending.release()

    def _send(self, data: Any, flags: int) -> int:
        if self._sslobj is None:  # since this send has begun: the rest would go out in the clear
            raise ConnectionAbortedError("TLS has ended in the middle of a send")
        return super().send(data, flags)

    def write(self, data: Any) -> int:
        """Send, as `ssl.SSLSocket.write`."""
        return self.send(data)

    def do_handshake(self, block: bool = False) -> None:
        """Do nothing but what there may be left of it, as after ``verify_client_post_handshake``."""
        self._do(super().do_handshake)

    def verify_client_post_handshake(self) -> None:
        """Ask for the client's certificate, as `ssl.SSLSocket.verify_client_post_handshake`."""
        self._do(super().verify_client_post_handshake)

    def unwrap(self) -> Any:
        """End TLS, as `ssl.SSLSocket.unwrap`."""
        if self.begun is not None:  # OpenSSL would want to go on with that
            self.send(b"")
        plain = self._do(super().unwrap)
        self.begun = None
        self.settimeout(self._timeout)
        return plain

    def shutdown(self, how: int) -> None:
        """Shut down the connection, and nothing of TLS."""
        socket.socket.shutdown(self, how)

    def detach(self) -> int:
        """Give up the descriptor, which blocks or not as it was set."""
        with self._using:
            super().settimeout(self._timeout)
            return super().detach()

    def _real_close(self) -> None:
        """Close, but not while OpenSSL does something, which would go on with whosever descriptor it is by then."""
        with self._using:
            super()._real_close()  # type: ignore[misc]

    def send_close_notify(self) -> None:
        """Say that the stream ends here, without waiting for anything. Raises what ``unwrap`` does."""
        with self._using:
            self._check_attached()
            self._sslobj.shutdown()

    def _check_attached(self) -> None:
        """Raise OSError if the descriptor is closed or given up: OpenSSL would still use it, whosever it is by now."""
        if self.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def settimeout(self, value: float | None) -> None:
        """Set the time-out, as `socket.socket.settimeout`."""
        with self._using:
            super().settimeout(value)
            self._timeout = super().gettimeout()
            if self._sslobj is not None:
                super().settimeout(0)

    def gettimeout(self) -> float | None:
        """Return the time-out that was set."""
        return self._timeout

    timeout = property(gettimeout)

    def setblocking(self, flag: bool) -> None:
        """Set the time-out to ``None`` or 0."""
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        """Return whether the time-out is not 0."""
        return self._timeout != 0

    def _do(self, call: Callable[..., Any], arguments: Sequence[Any] = (), waits: bool = False,
            to_send: bool = False) -> Any:
        """Call a method of `ssl.SSLSocket` until OpenSSL has what it wants, and wait for that outside of it.

        ``waits``: wait ahead of the first call, too, ``to_send`` or to receive.
        """
        timeout = self._timeout
        deadline = Deadline(timeout) if timeout else None
        while True:
            if waits and self.fileno() >= 0:
                if not wait_for(self, None if deadline is None else deadline.remaining(), to_send):
                    raise TimeoutError(f"The {'write' if to_send else 'read'} operation timed out")
            with self._using:
                self._check_attached()
                try:
                    return call(*arguments)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                    if timeout == 0:
                        raise
                    waits, to_send = True, isinstance(error, ssl.SSLWantWriteError)
