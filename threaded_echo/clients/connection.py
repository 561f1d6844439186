"""A client's connection: its socket, in a way that is safe from any thread.

Guarantees:

- The thread that serves or refuses a client closes its connection. Whatever another thread does to a connection affects
  that connection or nothing, even if its descriptor has been given to a new connection meanwhile (see
  `Connection.shut` and `Connection.end_sends`).
- Whole sends never interleave, and after one that has failed, perhaps in the middle, every later one raises.

Order of locks: `sending`, then the client's lock. Neither is held together with the server's lock.
"""
from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from typing import Any

from ..transport import tls
from ..transport.credentials import Credentials, read_credentials
from ..transport.listeners import is_same_peer
from ..transport.tcp_info import Traffic, read_traffic


_HANDSHAKE = "its TLS handshake is not done yet"
_HEADER = "its PROXY header has not come yet"

# What the kernel reports if a peer has vanished from the network, besides the subclasses of ConnectionError.
_VANISHED = frozenset(getattr(errno, name) for name in ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN")
                      if hasattr(errno, name))


class Connection:
    """The socket of one client, or whatever the program's ``get_request`` has made of it."""

    __slots__ = ("request", "accepted", "sending", "awaits_header", "_address", "_lock", "_descriptor", "_unsendable",
                 "_final", "seen", "_credentials")

    def __init__(self, request: Any, address: Any, lock: threading.RLock) -> None:
        self.request = request  # None after release
        self.accepted = request  # the same, unless a subclass has wrapped it since
        self._address = address
        self._lock = lock  # guards all fields but _unsendable
        self._final: Traffic | None = None
        self.seen: Traffic | None = None  # by `last_traffic`
        self._credentials: Credentials | None = None  # once they have been asked for, or the client has gone
        self.sending = threading.Lock()  # held during one whole send; guards _unsendable
        self._unsendable: str | None = None  # why nothing can be sent
        self.awaits_header = False  # a proxy's, to be read by the thread that serves the client
        if type(request) is socket.socket:
            self._descriptor = request.fileno()
        else:
            self._descriptor = _descriptor_of(request)
            if not tls.share(request):
                self._unsendable = _HANDSHAKE

    def fileno(self) -> int:
        """Return the descriptor; -1 after release, or if the handler has closed or detached its socket."""
        with self._lock:
            return _descriptor_of(self.request) if self._descriptor >= 0 else -1

    def traffic(self) -> Traffic | None:
        """Read the bytes and the idle time at once; after the end, what they were then."""
        with self._lock:
            if self._descriptor < 0 or self._final is not None:
                return self._final
            return read_traffic(self.request)

    def last_traffic(self) -> Traffic | None:
        """Do as `traffic`; but if the handler has closed or detached its socket, return what the last call returned."""
        with self._lock:
            self.seen = self.traffic() or self.seen
            return self.seen

    def credentials(self) -> Credentials | None:
        """Return who is at the other end of a Unix socket."""
        with self._lock:
            if self._credentials is None and self._descriptor >= 0:
                self._credentials = read_credentials(self.request)
            return self._credentials

    def send(self, data: Any) -> None:
        """Send all of ``data``. Raises OSError if the connection has ended or ends meanwhile."""
        with self.sending:
            if self._unsendable is not None:
                raise ConnectionAbortedError(self._unsendable)
            try:
                self.request.sendall(data)
            except TypeError:  # it is not bytes-like: nothing was sent
                raise
            except BaseException:  # whatever it is, the client may have received a part of the message
                self._unsendable = "an earlier send has failed"
                raise

    def await_header(self) -> None:
        """Allow no sends until the PROXY header has come. Called before any other thread knows of the connection."""
        self.awaits_header = True
        self._unsendable = _HEADER

    def allow_sending(self) -> None:
        """Allow sends from now on, since the header has come and the handshake is done."""
        if self._unsendable is _HANDSHAKE or self._unsendable is _HEADER:
            self._unsendable = None

    def end_tls(self) -> None:
        """Tell the peer by TLS that its stream ends here, unless this is not TLS or something has failed before.

        Never waits. The thread that is about to close the connection calls this; from here on, every send raises.
        """
        request = self.request
        if tls.as_tls(request) is None or not self.sending.acquire(blocking=False):
            return  # a send that is in the way is about to be cut, see end_sends
        try:
            if self._unsendable in (None, _HANDSHAKE, _HEADER):  # not None: verify_request has refused it
                self._unsendable = "the client has gone"
                tls.send_close_notify(request)
        finally:
            self.sending.release()

    def cut(self) -> None:
        """End the connection in both directions."""
        with self._lock:
            if self._descriptor >= 0 and self._final is None:
                # Afterwards the kernel can no longer tell an end of stream from a byte.
                self._final = read_traffic(self.request)
        self.shut(socket.SHUT_RDWR)

    def shut(self, how: int) -> None:
        """Shut the connection down in direction ``how``, through a duplicate of its descriptor.

        The handler may close its socket, or detach it to wrap it in TLS, at any moment. The duplicate pins one
        connection, which is then either known to be the right one or left alone.
        """
        with self._lock:
            request, descriptor = self.request, self._descriptor
            if descriptor < 0:
                return
            try:
                number = socket.dup(descriptor)
            except OSError:  # out of descriptors, or closed by the handler
                if isinstance(request, socket.socket):
                    with suppress(OSError):
                        # Not an SSLSocket's own shutdown, which would drop its TLS first: a later send would go out in
                        # the clear.
                        socket.socket.shutdown(request, how)
                return
        try:
            if isinstance(request, socket.socket):
                duplicate = socket.socket(request.family, request.type, request.proto, fileno=number)
            else:
                duplicate = socket.socket(fileno=number)
        except OSError:  # the handler has closed it, and its descriptor is a file's now
            os.close(number)
            return
        with duplicate, suppress(OSError):  # an error here: the peer has gone already
            # If the request still has its descriptor, it had it when it was duplicated. If not, its handler has closed
            # or detached it; in the second case the descriptor still leads to the same peer.
            # (An unnamed Unix peer is like any other, and is not looked for.)
            if (request.fileno() == descriptor
                    or self._address and is_same_peer(duplicate.getpeername(), self._address)):
                duplicate.shutdown(how)

    def follow(self, request: Any) -> None:
        """Take ``request`` as the connection, in place of the one that it was wrapped around."""
        with self._lock:
            if self.request is not None:
                if not tls.share(request) and self._unsendable is None:
                    self._unsendable = _HANDSHAKE
                self.request = request
                self._descriptor = _descriptor_of(request)

    def is_taken_over(self) -> bool:
        """Return whether the handler has closed the request, or detached it, for example to wrap it in TLS."""
        with self._lock:
            return self._descriptor >= 0 and _descriptor_of(self.request) < 0

    def is_lost(self) -> bool:
        """Return whether the connection has ended in both directions, whichever side ended it."""
        with self._lock:
            if self._descriptor < 0 or self._final is not None:
                return True
            try:
                # A Unix socket cannot tell, and its peer's name is usually empty: then an error counts as the client's.
                return not self.request.getpeername()
            except (OSError, AttributeError):  # AttributeError: a request that is no socket
                return True

    def release_locked(self) -> None:
        """Let go of the socket, which is about to be closed: from here on, no other thread touches it.

        The caller holds the client's lock, and has called `end_sends` before that.
        """
        if self._descriptor >= 0 and self._final is None:
            self._final = read_traffic(self.request)
            if self._final is None:  # not TCP
                self._credentials = self._credentials or read_credentials(self.request)
        self._descriptor = -1
        self.request = None

    def end_sends(self) -> None:
        """Make every send fail from now on, and wait until nobody is in the middle of one."""
        if not self.sending.acquire(blocking=False):
            # Another thread is in the middle of a send, perhaps for ever: make it fail. If its descriptor were closed
            # under it, the send could go on in another client's connection.
            if self.is_taken_over():
                return  # closed by its handler: the send holds nothing, and nothing would end it
            self.shut(socket.SHUT_RDWR)
            self.sending.acquire()
        self._unsendable = "the client has gone"
        self.sending.release()


def _descriptor_of(request: Any) -> int:
    fileno = getattr(request, "fileno", None)  # a datagram's request is a tuple
    return -1 if fileno is None else int(fileno())


def means_gone(error: BaseException | None) -> bool:
    """Return whether a peer that has gone may have caused an error; in that case the connection `is_lost`, too."""
    return (isinstance(error, ConnectionError) or isinstance(error, OSError) and error.errno in _VANISHED
            or error is not None and tls.is_tls_error(error))
