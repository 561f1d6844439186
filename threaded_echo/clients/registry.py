"""The live clients: their numbers, waking them, cutting them off.

Guarantees:

- A number is given once: 1, 2, 3 … in the order of accepting.
- A client is in the registry from its accept until its connection is about to be closed, so that whoever sees the
  connection end finds it gone from the registry too.
- A client's connection is closed by the thread that serves or has refused it, and nothing that other threads do to a
  connection can reach another one that was given the same descriptor (see `Client._shut` and `Client.release`).
- Adding, finding and removing cost the same with one client and with ten thousand.

Order of locks: a client's ``_sending`` before its ``_lock``. The server's lock (`HandlerRegistry.lock`) is never held
together with either.
"""
from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from ..transport.tcp_info import Traffic, read_traffic


class Client:
    """One connection, from accept to close.

    Made by the server only. Every attribute and method may be used from any thread, also after the client has gone.

    ``number``: 1, 2, 3 …, never used twice by one server. ``address``: what the server's ``get_request`` returned for
    it. ``thread``: the `threading.Thread` that its handler runs in; ``None`` before the handler starts, and once the
    client has gone.
    """

    __slots__ = ("number", "address", "registry", "thread", "stopping", "failed", "refused", "announced", "pooled",
                 "computing",
                 "_request", "_accepted_request", "_descriptor", "_lock", "_sending", "_cut",
                 "_accepted", "_accepted_at", "_ended", "_final")

    def __init__(self, request: Any, address: Any, stopping: threading.Event) -> None:
        self.number = 0
        self.address = address
        self.registry: HandlerRegistry | None = None  # of the server that has numbered it
        self.thread: threading.Thread | None = None
        # The event of the serving that accepted it: a survivor of a stop goes on seeing that stop.
        self.stopping = stopping
        self.failed = False
        self.refused = False
        self.announced = False  # client_connected has been called
        self.pooled = False  # served by one of the server's own handler threads
        self.computing = False  # its handler waits for an offloaded call
        # Guards _descriptor, _final and _cut. Re-entrant for the same reason as the server's.
        self._lock = threading.RLock()
        self._sending = threading.Lock()  # held during one whole send
        self._cut = False
        self._final: Traffic | None = None
        self._ended: float | None = None
        self._accepted = time.monotonic()
        self._accepted_at = time.time()
        self._accepted_request = self._request = request
        self._descriptor = _descriptor_of(request)

    def __repr__(self) -> str:
        return f"<Client {self.number} {self.state} {self.address!r}>"

    @property
    def connected_at(self) -> datetime:
        """When the client was accepted, in UTC."""
        return datetime.fromtimestamp(self._accepted_at, timezone.utc)

    @property
    def age(self) -> float:
        """Seconds since the client was accepted; once it has gone, the seconds that it stayed."""
        return (self._ended or time.monotonic()) - self._accepted

    @property
    def state(self) -> str:
        """``"accepted"``, then ``"serving"`` while its handler runs; ``"disconnecting"``; ``"gone"``.

        ``"computing"`` while its handler waits for a call that it has offloaded.
        """
        if self._ended is not None:
            return "gone"
        if self._cut:
            return "disconnecting"
        if self.computing:
            return "computing"
        return "accepted" if self.thread is None else "serving"

    @property
    def bytes_received(self) -> int | None:
        """Bytes received from the client, by the kernel's count; ``None`` where it cannot tell."""
        traffic = self.traffic()
        return traffic and traffic.received

    @property
    def bytes_sent(self) -> int | None:
        """Bytes sent to the client, by the kernel's count; ``None`` where it cannot tell."""
        traffic = self.traffic()
        return traffic and traffic.sent

    @property
    def idle(self) -> float | None:
        """Seconds since a byte passed either way; ``None`` where the kernel cannot tell."""
        traffic = self.traffic()
        return traffic and traffic.idle

    @property
    def request(self) -> Any:
        """The connection's socket, or what the program's ``get_request`` made of it; ``None`` once it has gone."""
        return self._request

    def fileno(self) -> int:
        """Return the connection's descriptor, to wait on; -1 once it has gone, or where its handler has closed it."""
        with self._lock:
            return _descriptor_of(self._request) if self._descriptor >= 0 else -1

    def traffic(self) -> Traffic | None:
        """Read the bytes and the idle time at once; of a client that has gone, what they were at its end."""
        with self._lock:
            if self._descriptor < 0 or self._final is not None:
                return self._final
            return read_traffic(self._request)

    def send(self, data: Any) -> None:
        """Send all of ``data`` (bytes-like), and return when the kernel has taken it.

        Raises OSError when the client has gone or goes meanwhile: a ConnectionError in the usual case. *Thread safety*:
        any thread; whole sends by several threads never interleave, each waits for the one before. Blocks while the
        client reads nothing.
        """
        with self._sending:
            if self._ended is not None:
                raise ConnectionAbortedError(f"client {self.number} has gone")
            self._request.sendall(data)

    def disconnect(self) -> None:
        """End the connection in both directions, at once.

        Its handler meets end of file, or an error where it sends, and ends by itself; the client sees end of file.
        Does not wait for that. *Thread safety*: any thread, any number of times.
        """
        with self._lock:
            if self._descriptor >= 0 and not self._cut:
                # Afterwards the kernel can no longer tell an end of stream from a byte.
                self._final = read_traffic(self._request)
                self._cut = True
        self._shut(socket.SHUT_RDWR)

    def wake(self) -> None:
        """End the receiving direction: a handler blocked in ``recv`` gets end of file, and can still send."""
        self._shut(socket.SHUT_RD)

    def _shut(self, how: int) -> None:
        """Shut the connection down in direction ``how``, through a duplicate of its descriptor.

        The handler may close its socket, or detach it to wrap it in TLS, at any moment: the duplicate pins one
        connection, which is then known to be the right one, or left alone.
        """
        with self._lock:
            request, descriptor = self._request, self._descriptor
            if descriptor < 0:
                return
            try:
                number = socket.dup(descriptor)
            except OSError:  # out of descriptors, or closed by the handler
                if isinstance(request, socket.socket):
                    with suppress(OSError):
                        # Not an SSLSocket's own shutdown, which would drop its TLS first: a later send would be in
                        # clear.
                        socket.socket.shutdown(request, how)
                return
        try:
            duplicate = socket.socket(fileno=number)
        except OSError:  # the handler has closed it, and its descriptor is a file's now
            os.close(number)
            return
        with duplicate, suppress(OSError):  # an error here: the peer has gone already
            # A request that still has its descriptor had it when it was duplicated. One without was closed or
            # detached by its handler; in the second case the descriptor still leads to the same peer.
            # (An unnamed Unix peer is like any other, and is not looked for.)
            if request.fileno() == descriptor or self.address and duplicate.getpeername() == self.address:
                duplicate.shutdown(how)

    def follow(self, request: Any) -> None:
        """Take ``request`` as the connection, in the place of the one that it was wrapped around."""
        with self._lock:
            if self._ended is None:
                self._request = request
                self._descriptor = _descriptor_of(request)

    def is_taken_over(self) -> bool:
        """Whether the handler has detached the request, to wrap it in TLS for example, or has closed it."""
        with self._lock:
            return self._descriptor >= 0 and _descriptor_of(self._request) < 0

    def is_lost(self) -> bool:
        """Whether the connection has ended in both directions, by whoever's doing."""
        with self._lock:
            if self._cut or self._descriptor < 0:
                return True
            try:
                # Of a Unix socket it tells nothing, and its name is mostly empty: then an error is the client's.
                return not self._request.getpeername()
            except (OSError, AttributeError):  # AttributeError: a request that is no socket
                return True

    def release(self) -> Traffic | None:
        """Let go of the connection, which is about to be closed: from here on, no other thread touches it.

        Returns what has passed over it. May be called twice.
        """
        if not self._sending.acquire(blocking=False):
            # Another thread is in the middle of a send, perhaps for ever: make it fail. Were its descriptor closed
            # under it, it might go on in another client's connection.
            if self.is_taken_over():
                return self._end()  # closed by its handler: the send holds nothing, and nothing would end it
            self._shut(socket.SHUT_RDWR)
            self._sending.acquire()
        try:
            return self._end()
        finally:
            self._sending.release()

    def _end(self) -> Traffic | None:
        with self._lock:
            if self._ended is None:
                if self._descriptor >= 0 and self._final is None:
                    self._final = read_traffic(self._request)
                self._descriptor = -1
                self._ended = time.monotonic()
                self._request = self.thread = None
            return self._final


def _descriptor_of(request: Any) -> int:
    fileno = getattr(request, "fileno", None)  # a datagram's request is a tuple
    return -1 if fileno is None else int(fileno())


class HandlerRegistry:
    """The live clients of one server, and the counts of those that have gone.

    Also the owner of the server's one lock; `changed` is its condition, notified when what a stop waits for may have
    come true.
    """

    def __init__(self) -> None:
        # Re-entrant, so that a stop in a signal handler cannot deadlock with the frame that it interrupted. Guards
        # everything below, and the fields of HandlerThreads, Serving and Stopping.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.awaited = -1  # notify when at most so many clients or threads are left; -1: nobody waits
        self.waking = False  # a stop has begun: who comes now is woken at once
        self.live: dict[int, Client] = {}
        self.closing = 0  # removed, their connections not closed yet; those of handler threads are not counted
        self.accepted = self.refused = self.finished = self.failed = self.peak = 0
        self.bytes_received = self.bytes_sent = 0  # of the clients that have gone
        self.bytes_known = False  # whether the kernel could tell them for any
        self._by_request: dict[int, Client] = {}  # id(request) → client, which keeps the request alive

    def add(self, client: Client) -> None:
        """Number an accepted client, and list it."""
        live = self.live
        client.registry = self
        with self.lock:
            self.accepted += 1
            client.number = self.accepted
            live[client.number] = client
            self._by_request[id(client._accepted_request)] = client
            if len(live) > self.peak:
                self.peak = len(live)
            waking = self.waking
        if waking:
            client.wake()

    def find(self, request: Any) -> Client | None:
        """Find the live client of a request; ``None`` where there is none."""
        return self._by_request.get(id(request))

    def follow(self, client: Client, request: Any) -> None:
        """Take ``request`` as the client's too: it has been wrapped around the one that was accepted."""
        with self.lock:
            if client.number in self.live:
                self._by_request.pop(id(client.request), None)
                self._by_request[id(client._accepted_request)] = self._by_request[id(request)] = client
                client.follow(request)

    def remove(self, client: Client) -> bool:
        """Forget a client, whose connection is about to be closed; False when somebody already has.

        Whoever gets True calls `closed` once the connection is.
        """
        request = client.request
        traffic = client.release()
        with self.lock:
            if self.live.pop(client.number, None) is None:
                return False
            del self._by_request[id(client._accepted_request)]
            self._by_request.pop(id(request), None)
            client._accepted_request = None
            if not client.pooled:
                self.closing += 1
            if client.refused:
                self.refused += 1
            else:
                self.finished += 1
                self.failed += client.failed
            if traffic is not None:
                self.bytes_known = True
                self.bytes_received += traffic.received
                self.bytes_sent += traffic.sent
            if len(self.live) <= self.awaited:
                self.changed.notify_all()
        return True

    def closed(self, client: Client) -> None:
        """Tell that a removed client's connection has been closed."""
        if not client.pooled:  # a stop waits for the handler threads anyway
            with self.lock:
                self.closing -= 1
                if self.awaited >= 0:
                    self.changed.notify_all()

    def snapshot(self) -> dict[int, Client]:
        """Copy the live clients, by number."""
        with self.lock:
            return dict(self.live)
