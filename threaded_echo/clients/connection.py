"""A client's connection: its socket, in a way that is safe from any thread.

Guarantees:

- The thread that serves or refuses a client closes its connection. Whatever another thread does to a connection affects
  that connection or nothing, even if its descriptor has been given to a new connection meanwhile (see
  `Connection.shut` and `Connection.hold_sends`).
- An exception: if a handler closes its own plain socket while another thread is about to send to it, nothing keeps the
  descriptor from going to a new connection between Python's look at it and the system call. (Of TLS, `tls_sharing`
  does.)
- Whole sends never interleave, and after one that has failed, perhaps in the middle, every later one raises.
- Who holds `sending` is the only one who sends. What could not be sent without waiting is queued (see `broadcast`), and
  whoever sends next, sends that first: a message is never sent in the middle of another one.
- An ordinary send pays nothing for that: the one attribute that it looks at says that nothing can be sent, or what is
  to go first. Each change of it is made with the client's lock held. A send that has just begun may miss a change by
  which a whole message was queued, and then goes ahead of that; it cannot miss the rest of one that was sent in part,
  since who has queued that held `sending`.

Order of locks: `sending`, then the client's lock. A thread that has one of them does not take the server's lock. One
that has the server's lock may take the client's, but never `sending`.
"""
from __future__ import annotations

import errno
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from ..transport import tls
from ..transport.at_once import can_send_at_once, is_behind, send_at_once
from ..transport.credentials import Credentials, read_credentials
from ..transport.deadline import Deadline, wait_for
from ..transport.listeners import is_same_peer
from ..transport.tcp_info import Traffic, read_traffic
from .backlog import Backlog, Offer

_HANDSHAKE = "its TLS handshake is not done yet"
_HEADER = "its PROXY header has not come yet"
_GONE = "the client has gone"

_TURN = 64  # pieces of a queue that are sent before other clients have their turn
_PAUSE = 0.02  # seconds, if there is room and nothing can be sent: TLS may wait for something else

# What the kernel reports if a peer has vanished from the network, besides the subclasses of ConnectionError.
_VANISHED = frozenset(getattr(errno, name) for name in ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN")
                      if hasattr(errno, name))


class Connection:
    """The socket of one client, or whatever the program's ``get_request`` has made of it."""

    __slots__ = ("request", "accepted", "sending", "awaits_header", "_address", "_lock", "_descriptor", "obstacle",
                 "_final", "seen", "_credentials")

    def __init__(self, request: Any, address: Any, lock: threading.RLock) -> None:
        self.request = request  # None after release
        self.accepted = request  # the same, unless a subclass has wrapped it since
        self._address = address
        self._lock = lock  # the client's; it guards all fields but accepted and awaits_header
        self._final: Traffic | None = None
        self.seen: Traffic | None = None  # by `last_traffic`
        self._credentials: Credentials | None = None  # once they have been asked for, or the client has gone
        self.sending = threading.Lock()  # held during one whole send
        # Why nothing can be sent, or what is to be sent first. None: what is sent goes straight to the socket.
        self.obstacle: str | Backlog | None = None
        self.awaits_header = False  # a proxy's, to be read by the thread that serves the client
        if type(request) is socket.socket:
            self._descriptor = request.fileno()
        else:
            self._descriptor = _descriptor_of(request)
            if not tls.share(request):
                self.obstacle = _HANDSHAKE

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
            request = self.request  # ahead of the obstacle: see `release_locked`
            if self.obstacle is not None:
                self._clear_the_way(request)
            try:
                request.sendall(data)
            except (TypeError, BufferError):  # it is not bytes-like: nothing was sent
                raise
            except BaseException:  # whatever it is, the client may have received a part of the message
                self._fail()
                raise

    def _clear_the_way(self, request: Any) -> None:
        """Send what is queued, and wait for that. Raises OSError if nothing can be sent. The caller holds `sending`."""
        with self._lock:
            backlog = self.obstacle
            if not isinstance(backlog, Backlog):
                raise ConnectionAbortedError(backlog)
            self.obstacle = None  # what is queued from now on may come after the caller's message
        backlog.tell_sender()
        try:
            if not can_send_at_once(request):
                raise ConnectionAbortedError("its TLS has ended, and what waited must not go out in the clear")
            request.sendall(b"".join(backlog.pieces))
            if is_behind(request):  # nothing was queued but the end of a record
                request.send(b"")
        except BaseException:  # whatever it is, the client may have received a part of a message
            self._fail()
            raise

    def _fail(self) -> None:
        """Allow no more sends: the client may have a part of a message."""
        with self._lock:
            backlog, self.obstacle = self.backlog(), "an earlier send has failed"
        if backlog is not None:
            backlog.tell_sender()

    # Sending without waiting: see `broadcast`.

    def offer(self, data: bytes) -> Offer:
        """Send ``data`` as far as the kernel takes it at once, and queue the rest; never wait.

        Raises OSError if the connection has ended.
        """
        if not self.sending.acquire(blocking=False):
            return Offer.BUSY
        try:
            if self.obstacle is not None:
                return self.queue(data)
            request = self.request
            if type(request) is not socket.socket and not can_send_at_once(request):
                return Offer.MISSED
            try:
                taken = send_at_once(request, data)
                if taken == len(data) and not is_behind(request):
                    return Offer.SENT
                with self._lock:
                    backlog = self._find_backlog_locked()
                    if backlog is None:  # the handler has just wrapped the connection
                        return Offer.MISSED
                    # Whole messages may have been queued since the look above: they come after this one.
                    backlog.put_back(memoryview(data)[taken:])
                return Offer.WAITS
            except BaseException as error:
                if not (isinstance(error, OSError) and type(request) is socket.socket):  # else nothing was sent
                    self._fail()
                raise
        finally:
            self.sending.release()

    def queue(self, data: bytes) -> Offer:
        """Queue a whole message."""
        with self._lock:
            backlog = self._find_backlog_locked()
            if backlog is None:
                return Offer.MISSED
            return Offer.WAITS if backlog.add(data) else Offer.FULL

    def _find_backlog_locked(self) -> Backlog | None:
        """Find the queue, or make it; ``None`` if nothing can be sent."""
        made = Backlog() if can_send_at_once(self.request) else None
        self.obstacle = self.obstacle or made  # one step, in which no signal handler can do the same
        return self.backlog()

    def backlog(self) -> Backlog | None:
        """Return what is queued; ``None`` if nothing is."""
        obstacle = self.obstacle
        return obstacle if isinstance(obstacle, Backlog) else None

    def go_on(self) -> Offer:
        """Send what is queued as far as the kernel takes it at once; SENT if nothing is left.

        Raises OSError if the connection has ended.
        """
        if self.backlog() is None:  # also if who has taken it over is still sending it
            return Offer.SENT
        if not self.sending.acquire(blocking=False):
            return Offer.BUSY
        try:
            return self._go_on()
        finally:
            self.sending.release()

    def _go_on(self) -> Offer:
        """The same; the caller holds `sending`."""
        outcome = Offer.WAITS
        for _ in range(_TURN):
            request, backlog = self.request, self.backlog()  # in this order: see `release_locked`
            if backlog is None:  # a send has taken it over, or the client has gone
                return Offer.SENT
            try:
                first = backlog.first()
                taken = send_at_once(request, first)
                with self._lock:
                    is_empty = backlog.take(taken) and not is_behind(request)
                    if is_empty and self.obstacle is backlog and not backlog.pieces:  # as a signal handler may add one
                        self.obstacle = None
                        return Offer.SENT
            except BaseException:  # as above
                self._fail()
                raise
            outcome = Offer.MOVED if taken else outcome
            if taken < len(first) or not first:
                break
        return outcome

    def finish(self, seconds: float | None) -> None:
        """Send what is queued, and wait for that, but at most for so long; ``None``: until the connection is cut.

        If that is not enough, nothing more can be sent. The thread that serves the client calls it. Raises OSError if
        the connection has ended.
        """
        backlog = self.backlog()
        if backlog is not None:
            if not self._finish(Deadline(seconds)):
                self._fail()  # even if another thread is sending: the connection is about to be closed
            backlog.tell_sender()

    def _finish(self, deadline: Deadline) -> bool:
        """Do as `finish`; return whether all of it was sent."""
        while True:
            remaining = deadline.remaining()
            if not self.sending.acquire(timeout=-1 if remaining is None else remaining):
                return False
            try:
                outcome = self._go_on()
            finally:
                self.sending.release()
            if outcome is Offer.SENT:
                return True
            remaining = deadline.remaining()
            if remaining == 0.0 or not wait_for(self.request, remaining, to_send=True):
                return False
            if outcome is Offer.WAITS:
                time.sleep(_PAUSE)  # else this might do nothing but look

    def duplicate(self) -> int:
        """Return a descriptor of the caller's own, to wait with until the client can be sent to. Raises OSError."""
        with self._lock:
            return socket.dup(self.fileno())

    def await_header(self) -> None:
        """Allow no sends until the PROXY header has come. Called before any other thread knows of the connection."""
        self.awaits_header = True
        self.obstacle = _HEADER

    def allow_sending(self) -> None:
        """Allow sends from now on, since the header has come and the handshake is done."""
        if self.obstacle is _HANDSHAKE or self.obstacle is _HEADER:  # which only this thread takes away
            with self._lock:  # else a broadcast that has just read it could put it back: see `_find_backlog_locked`
                self.obstacle = None

    def end_tls(self) -> None:
        """Tell the peer by TLS that its stream ends here, unless this is not TLS or something has failed before.

        Never waits. The thread that is about to close the connection calls this; from here on, every send raises.
        """
        request = self.request
        if tls.as_tls(request) is None or not self.sending.acquire(blocking=False):
            return  # a send that is in the way is about to be cut, see hold_sends
        try:
            with self._lock:
                if self.obstacle not in (None, _HANDSHAKE, _HEADER):  # what has begun can not be ended properly
                    return
                self.obstacle = _GONE  # from HANDSHAKE or HEADER: verify_request has refused it
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
                if not tls.share(request) and not isinstance(self.obstacle, str):
                    backlog, self.obstacle = self.backlog(), _HANDSHAKE
                    if backlog is not None:  # it was for the connection as it was
                        backlog.tell_sender()
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

    def release_locked(self) -> Backlog | None:
        """Let go of the socket, which is about to be closed: from here on, no other thread touches it.

        Returns what was queued, and is lost. The caller holds the client's lock, and has called `hold_sends` before
        that.
        """
        if self._descriptor >= 0 and self._final is None:
            self._final = read_traffic(self.request)
            if self._final is None:  # not TCP
                self._credentials = self._credentials or read_credentials(self.request)
        self._descriptor = -1
        backlog, self.obstacle = self.obstacle, _GONE
        self.request = None  # after that: who reads it, and then finds no obstacle, has a socket
        return backlog if isinstance(backlog, Backlog) else None

    def hold_sends(self) -> bool:
        """Wait until nobody is in the middle of a send, and hold `sending`; False if there is nothing to hold."""
        if not self.sending.acquire(blocking=False):
            # Another thread is in the middle of a send, perhaps for ever: make it fail. If its descriptor were closed
            # under it, the send could go on in another client's connection.
            if self.is_taken_over():
                return False  # closed by its handler: the send holds nothing, and nothing would end it
            self.shut(socket.SHUT_RDWR)
            self.sending.acquire()
        return True


def _descriptor_of(request: Any) -> int:
    fileno = getattr(request, "fileno", None)  # a datagram's request is a tuple
    return -1 if fileno is None else int(fileno())


def means_gone(error: BaseException | None) -> bool:
    """Return whether a peer that has gone may have caused an error; in that case the connection `is_lost`, too."""
    return (isinstance(error, ConnectionError) or isinstance(error, OSError) and error.errno in _VANISHED
            or error is not None and tls.is_tls_error(error))
