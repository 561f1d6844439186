"""One client: what programs may know and do, and every step of its life.

A client's life has phases, which it goes through in this order: ``accepted``, ``handshaking`` (a PROXY header, TLS),
``serving`` and ``computing`` in turns, ``disconnecting``, ``gone``. Its *outcome* is ``finished``, ``failed`` or
``refused``. If the server has ended it, its *reason* says why. All transitions are methods of this class; the thread
that serves the client makes most of them, and from ``disconnecting`` on no thread can turn it back.
"""
from __future__ import annotations

import errno
import socket
import threading
import time
from datetime import datetime, timezone
from typing import Any

from ..transport.credentials import Credentials
from ..transport.kernel_timeouts import has_send_timed_out
from ..transport.tcp_info import has_ended_its_stream
from ..transport.tls import TLSDetails
from .backlog import Offer
from .connection import Connection
from .period import Period

_LAST = ("disconnecting", "gone")
_SERVED = ("serving", "computing")
_NEVER = float("-inf")
_RLock = type(threading.RLock())  # the class itself: threading.RLock is a function that calls it

LINGER = 5.0
"""Seconds for which a handler's thread that is done sends what is queued for its client. In a stop that goes on until
the connection is cut."""


class Activity:
    """When a client was not idle, as far as its bytes do not tell. Times are those of `time.monotonic`."""

    __slots__ = ("busy", "rested", "seen")

    def __init__(self) -> None:
        self.busy = False  # its handler is in `process`
        self.rested = _NEVER  # when its handler has ended that, or a computation; set ahead of `busy`
        self.seen = _NEVER  # when a byte has passed, as the kernel said at the last look


class Client:
    """One connection, from accept to close. Only the server makes clients; programs read these and set none:

    - ``number``: 1, 2, 3 and so on; one server never uses a number twice.
    - ``address``: its address, ``(host, port)`` on IPv4, also if the listening socket serves IPv6 as well: what
      ``get_request`` has returned; or, as soon as that is known, what a proxy has told in its PROXY header.
    - ``thread``: the `threading.Thread` that serves it; ``None`` before its handler starts and after it has gone.
    - ``tls``: ``None`` without TLS and before the handshake is done. Afterwards ``tls.version``, such as ``"TLSv1.3"``;
      ``tls.cipher``, its name; ``tls.alpn``, the protocol that both sides have agreed on, or ``None``; and
      ``tls.certificate``, the client's own as a dict (see `ssl.SSLSocket.getpeercert`), or ``None``.
    - ``reason``: why the server has disconnected or refused it; ``None`` if it has not. ``"stop"``;
      ``"disconnect"``, if `disconnect` was called; ``"verify"``, if ``verify_request`` has refused it;
      ``"handshake"``, if that of TLS or the PROXY header has failed or was not done in time; ``"limit"``, if
      ``max_clients`` are there already; ``"host limit"``, if its host has ``max_clients_per_host``; ``"thread"``, if no
      thread could be started; ``"idle"``, ``"lifetime"`` and ``"send"``, if the time of the option of that name (of
      ``idle_timeout``, ``send_timeout``) was up; ``"send"``, too, if too much of what was broadcast waited for it.

    *Thread safety*: every attribute and method may be used from any thread, also after the client has gone.
    """

    __slots__ = ("number", "address", "thread", "reason", "tls", "_connection", "_period", "_registry", "_lock",
                 "_phase", "_outcome", "_announced", "_ended_its_stream", "_counted", "_told", "_accepted",
                 "_accepted_at", "_ended", "_activity", "_data", "_peer")

    def __init__(self, number: int, request: Any, address: Any, period: Period, registry: Any) -> None:
        self.number = number
        self.address = address
        self.thread: threading.Thread | None = None
        self.reason: str | None = None
        self.tls: TLSDetails | None = None
        # Guards reason, _phase, _outcome and _data, the making of _activity, and the fields of the connection.
        # Re-entrant, as a stop in a signal handler may interrupt the thread that holds it.
        self._lock = _RLock()
        self._connection = Connection(request, address, self._lock)
        self._period = period
        self._registry = registry
        self._phase = "accepted"
        self._outcome: str | None = None
        self._announced = False  # client_connected has been called
        self._ended_its_stream = False  # the client itself, before the server has
        self._counted = False  # its outcome is in the registry's totals, whose lock guards this, too
        self._told = False  # its coming has been logged, so its going is to be, too
        self._accepted = time.monotonic()
        self._accepted_at = time.time()
        self._ended: float | None = None
        self._activity: Activity | None = None  # what an idle time-out has to know of it, once that may matter
        self._data: dict[Any, Any] | None = None
        self._peer: Any = None  # the proxy's address, if address is not the peer's

    def __repr__(self) -> str:
        return f"<Client {self.number} {self.state} {self.address!r}>"

    @property
    def peer(self) -> Any:
        """The address of whoever has connected: of the proxy, if the client came by one, else the same as `address`."""
        peer = self._peer
        return self.address if peer is None else peer

    @property
    def connected_at(self) -> datetime:
        """The time at which the client was accepted: an aware `datetime.datetime` in UTC."""
        return datetime.fromtimestamp(self._accepted_at, timezone.utc)

    @property
    def age(self) -> float:
        """Seconds since the client was accepted; after it has gone, the seconds for which it was connected."""
        return (self._ended or time.monotonic()) - self._accepted

    @property
    def state(self) -> str:
        """``"accepted"``, ``"handshaking"``, ``"serving"``, ``"computing"``, ``"disconnecting"`` or ``"gone"``.

        It is ``"computing"`` while the handler waits for a call that it has offloaded, and ``"disconnecting"`` after
        the server has cut the connection, until the handler has ended.
        """
        return self._phase

    @property
    def bytes_received(self) -> int | None:
        """Bytes received from the client, as the kernel counts them; ``None`` if the platform cannot tell."""
        traffic = self._connection.traffic()
        return traffic and traffic.received

    @property
    def bytes_sent(self) -> int | None:
        """Bytes sent to the client, as the kernel counts them; ``None`` if the platform cannot tell."""
        traffic = self._connection.traffic()
        return traffic and traffic.sent

    @property
    def idle(self) -> float | None:
        """Seconds since a byte passed in either direction; ``None`` if the platform cannot tell."""
        traffic = self._connection.traffic()
        return traffic and traffic.idle

    @property
    def data(self) -> dict[Any, Any]:
        """A dict for the program's own use, empty at first; always the same one. Nothing here reads it."""
        with self._lock:
            if self._data is None:
                self._data = {}
            return self._data

    @property
    def credentials(self) -> Credentials | None:
        """The peer of a Unix socket, as a tuple (``pid``, ``uid``, ``gid``); ``None`` if the platform cannot tell.

        It is the process that has connected, as the kernel has noted it then; by now another one may have its number,
        or its connection. ``None``, too, for TCP.
        """
        return self._connection.credentials()

    def send(self, data: Any) -> None:
        """Send all of ``data`` (bytes-like), and return when the kernel has taken it.

        What was broadcast before, and waits, goes first. Blocks while the client reads nothing. Raises TypeError, or
        BufferError for a `memoryview` with gaps, if ``data`` is not bytes-like; OSError, in most cases a
        ConnectionError, if the client has gone or goes meanwhile, or if its TLS handshake is not done yet; a
        TimeoutError if it takes nothing for ``send_timeout`` seconds, which disconnects it. After a send that has
        failed, which may have sent a part of its message, every later one raises, too. *Thread safety*: any thread;
        whole sends never interleave, nor with what the handler sends by ``self.send`` or as a reply.
        """
        try:
            self._connection.send(data)
        except ConnectionError as error:
            if error.errno is None:  # the connection's own words, which do not know the number
                raise type(error)(f"client {self.number}: {error}") from None
            raise
        except OSError as error:
            if not self._cut_if_send_timed_out(error):
                raise
            raise TimeoutError(errno.ETIMEDOUT, f"client {self.number} takes nothing of what is sent to it") from error

    def disconnect(self) -> None:
        """End the connection in both directions, at once.

        The client sees end of file. So does its handler, or an error if it sends, and it then ends by itself; this does
        not wait for it. *Thread safety*: any thread, any number of times.
        """
        self._cut("disconnect")

    # The transitions. They are the server's.

    def _begin(self, thread: threading.Thread, phase: str) -> None:
        """Set the thread that serves the client, and its first phase: ``"handshaking"`` or ``"serving"``."""
        with self._lock:
            if self._phase != "gone":
                self.thread = thread
                if self._phase not in _LAST:
                    self._phase = phase

    def _came_through(self, address: Any) -> None:
        """Take the address that a proxy has told; ``None``: it has told none, or there is no proxy."""
        if address is not None:
            self._peer = self.address  # first: who reads both never takes the new address for the peer's
            self.address = address
        self._connection.awaits_header = False

    def _shook_hands(self, tls: TLSDetails | None) -> None:
        """Note what the TLS handshake has agreed on; ``None``: there was none."""
        self.tls = tls

    def _move(self, phase: str) -> None:
        """Set the phase to ``"serving"`` or ``"computing"``, unless the client is being disconnected."""
        with self._lock:
            if self._phase == "computing" != phase:
                self._observe().rested = time.monotonic()
            if self._phase not in _LAST:
                self._phase = phase
            self._connection.allow_sending()  # in one step with the phase, by which a broadcast knows whom it reaches

    def _wake(self) -> None:
        """End the receiving direction: a handler that is blocked in ``recv`` gets end of file, and can still send."""
        with self._lock:
            if self._phase == "gone":
                return
            self._end_for("stop")
        self._connection.shut(socket.SHUT_RD)

    def _cut(self, reason: str) -> None:
        """End both directions, for ``reason``."""
        with self._lock:
            if self._phase == "gone":
                return
            self._end_for(reason)
            self._phase = "disconnecting"
        self._connection.cut()

    def _cut_if_send_timed_out(self, error: BaseException | None) -> bool:
        """End both directions if ``error`` means that a send has made no progress for too long; return whether so."""
        if not has_send_timed_out(self._connection.request, error):
            return False
        self._cut("send")
        return True

    def _end_for(self, reason: str) -> None:
        """Set the reason before the stream ends, so that the handler knows which side has ended it."""
        if self.reason is None:
            self._ended_its_stream = has_ended_its_stream(self._connection.request)
            self.reason = reason

    def _refuse(self, reason: str) -> None:
        """Note that the client is turned away before a handler has served it."""
        with self._lock:
            self.reason = self.reason or reason
            self._outcome = "refused"

    def _fail(self, reason: str | None = None) -> None:
        """Note that the handler has failed, or could not start."""
        with self._lock:
            self.reason = self.reason or reason
            if self._outcome is None:
                self._outcome = "failed"

    def _end(self) -> bool:
        """Note that the client has gone: its connection is about to be closed. False if it had gone already."""
        connection = self._connection
        holds = connection.hold_sends()
        try:
            with self._lock:
                if self._phase == "gone":
                    return False
                backlog = connection.release_locked()
                self._phase = "gone"
                self.thread = None
                self._outcome = self._outcome or "finished"
                self._ended = time.monotonic()
        finally:
            if holds:
                connection.sending.release()
        if backlog is not None:
            backlog.tell_sender()
        return True

    def _observe(self) -> Activity:
        """Return what is known of its activity, made on first use."""
        with self._lock:
            if self._activity is None:
                self._activity = Activity()
            return self._activity

    # What is sent without waiting.

    def _offer(self, data: bytes, queues: bool) -> Offer:
        """Send ``data`` at once, or queue what has to wait: SENT, WAITS or MISSED. Never waits.

        ``queues``: queue it, too, if another thread is sending; else that is BUSY.
        """
        if self._phase not in _SERVED:
            return Offer.MISSED
        try:
            outcome = self._connection.offer(data)
        except (OSError, ValueError) as error:  # ValueError: of a descriptor that the handler has closed
            self._cut_if_send_timed_out(error)
            return Offer.MISSED
        if outcome is Offer.SENT:
            return outcome
        if outcome is Offer.BUSY and queues:
            outcome = self._connection.queue(data)
        if outcome is Offer.FULL:
            self._cut("send")
            return Offer.MISSED
        return outcome

    def _go_on(self) -> Offer:
        """Send what is queued as far as that goes at once; SENT if nothing is left, or nothing can be sent."""
        try:
            return self._connection.go_on()
        except (OSError, ValueError) as error:
            self._cut_if_send_timed_out(error)
            return Offer.SENT

    def _finish_sending(self) -> None:
        """Send what is queued: the handler is done, and the thread that has served the client may wait."""
        period = self._period
        if self._phase in _LAST:
            return
        try:
            self._connection.finish(0.0 if period.forced else None if period.is_stopping() else LINGER)
        except (OSError, ValueError) as error:
            self._cut_if_send_timed_out(error)

    # What the server reads.

    def _has_failed(self) -> bool:
        return self._outcome == "failed"

    def _is_cut(self) -> bool:
        """Return whether the server has ended the connection in both directions, so that nothing more is processed."""
        return self.reason is not None and self._phase in _LAST

    def _has_ended_its_stream(self) -> bool:
        """Return whether an end of stream that its handler has seen is the client's own, not the server's."""
        return self.reason is None or self._ended_its_stream
