"""The live clients of a server: their numbers, which of them a request belongs to, and what has become of the others.

Guarantees:

- A number is given once: 1, 2, 3 and so on, in the order of accepting.
- A client is in the registry from its accept until its connection is about to be closed, so that whoever sees the
  connection end finds that the client has gone from the registry too.
- Adding, finding and removing cost the same with one client and with ten thousand.
- A client that leaves takes no lock that another one wants, and changes one dict that others change; but if somebody
  waits for its place, or the clients of each host are counted, it takes the server's lock (see `when_left`). It is
  queued with its outcome in its thread's own queue, and whoever asks for the totals adds the queues up. A client is
  counted there or listed here, and in one snapshot never both.
- A client that is added while a stop is in progress is woken: it either finds that its period is over, or was listed
  before the stop has copied the list, since both go through the same dict.
"""
from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..observe.durations import CONNECTION_BOUNDS, DurationRecorder, Durations
from ..transport.tcp_info import Traffic
from .client import Client
from .period import Period

_LOOK = 0.1  # seconds
_QUEUED = 32  # above this length, a queue of clients that have left is added up by its own thread; each keeps 0.7 KB


@dataclass
class Totals:
    """What has become of the clients that have gone."""

    finished: int = 0
    failed: int = 0
    refused: int = 0
    disconnected: Counter[str] = field(default_factory=Counter)  # of the finished ones, by their reason
    refused_by: Counter[str] = field(default_factory=Counter)
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_known: bool = False  # whether the kernel could tell for any of them
    recorder: DurationRecorder | None = None  # of the finished ones; None: nobody wants to know
    durations: Durations | None = None  # what that has recorded, in a copy

    def copy(self) -> Totals:
        """Copy them as they are now."""
        return replace(self, disconnected=self.disconnected.copy(), refused_by=self.refused_by.copy(), recorder=None,
                       durations=None if self.recorder is None else self.recorder.read())

    def add(self, client: Client) -> None:
        """Count a client that has gone."""
        if client._outcome == "refused":
            self.refused += 1
            self.refused_by[client.reason or ""] += 1
        else:
            self.finished += 1
            self.failed += client._has_failed()
            if client.reason is not None:
                self.disconnected[client.reason] += 1
            if self.recorder is not None:
                self.recorder.add(client.age)
        self._add_traffic(client._connection.traffic() or client._connection.seen)

    def add_live(self, client: Client) -> None:
        """Add what has passed over a live client's connection so far; later it is never less."""
        self._add_traffic(client._connection.last_traffic())

    def _add_traffic(self, traffic: Traffic | None) -> None:
        if traffic is not None:
            self.bytes_known = True
            self.bytes_received += traffic.received
            self.bytes_sent += traffic.sent


class HandlerRegistry:
    """The clients of one server, and the owner of the server's one lock.

    ``changed`` is the condition on that lock. It is notified if what a stop waits for may have come true.
    """

    def __init__(self) -> None:
        # Re-entrant, so that a stop in a signal handler cannot deadlock with the frame that it has interrupted. Guards
        # accepted, peak, arrival, awaited and when_left, and the fields of other classes that say so: of Loops, Limits
        # and Stopping, for instance. The dicts and queues change by single operations, which are atomic on every build
        # of Python.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.arrival: threading.Condition | None = None  # on that lock: somebody waits for a client
        self.awaited = -1  # notify if at most so many clients or threads are left; -1: nobody waits
        # Called with a client that has left, in the thread that has removed it. None: nobody waits for that.
        self.when_left: Callable[[Client], None] | None = None
        self.live: dict[int, Client] = {}  # by the id of the accepted request, in the order of their numbers
        self.closing: dict[Client, None] = {}  # removed outside the handler threads, and not closed yet
        self.accepted = 0
        self.peak = 0
        self.behind_proxy = False  # each client's PROXY header is to be read
        self._wrapped: dict[int, Client] = {}  # by the id of what a program has wrapped around the accepted request
        self._counting = threading.RLock()  # taken after lock, if both are; guards _totals and Client._counted
        self._totals = Totals()
        self._ended: deque[deque[Client]] = deque()  # those of threads that have ended
        self._queues: dict[int, deque[Client]] = {}  # by their ids: the clients that have left, for _totals
        self.elsewhere = self.make_queue()  # of those that have left outside the handler threads

    def make_queue(self) -> deque[Client]:
        """Make the queue of the clients that leave through one thread."""
        queue: deque[Client] = deque()
        self._queues[id(queue)] = queue
        return queue

    def end_queue(self, queue: deque[Client]) -> None:
        """Add up and forget the queue of a thread that ends."""
        self._ended.append(queue)
        self._add_up_unless_busy(queue)

    def add(self, request: Any, address: Any, period: Period) -> Client:
        """Number an accepted client, list it, and return it."""
        live = self.live
        with self.lock:  # it is free in most cases, as one thread accepts at a time
            number, key = self.accepted + 1, id(request)
            client = Client(number, request, address, period, self)
            if self.behind_proxy:
                client._connection.await_header()
            live[key] = client
            self.accepted = number  # not before, or an interrupt in between leaves a client that is nowhere
            if len(live) > self.peak:
                self.peak = len(live)
            arrival = self.arrival  # a stop in a signal handler may end the waiting between the next two lines
            if arrival is not None:
                arrival.notify_all()
        if period.stopping.is_set():
            client._wake()
        return client

    def refuse(self, request: Any, address: Any, period: Period, reason: str) -> Client:
        """Number a client that is turned away at once, count it, and return it: it is never listed.

        The caller then closes its connection, after `Client._end`.
        """
        with self.lock:
            client = Client(self.accepted + 1, request, address, period, self)
            client._refuse(reason)
            self.elsewhere.append(client)
            self.accepted = client.number
            if len(self.elsewhere) > _QUEUED:
                self._add_up_unless_busy(self.elsewhere)
        return client

    def find(self, request: Any) -> Client | None:
        """Find the live client of a request; ``None`` if there is none."""
        client = self.live.get(id(request))
        if client is None and self._wrapped:
            client = self._wrapped.get(id(request))
        return client

    def owns(self, client: Client | None) -> bool:
        """Return whether ``client`` is one of this server's, and live."""
        return client is not None and client._registry is self and client.state != "gone"

    def follow(self, client: Client, request: Any) -> None:
        """Take ``request`` as the client's too: it has been wrapped around the one that was accepted."""
        with self.lock:
            if self.owns(client):
                self._wrapped.pop(id(client._connection.request), None)
                self._wrapped[id(request)] = client
                client._connection.follow(request)

    def remove(self, client: Client, queue: deque[Client]) -> bool:
        """Forget a client whose connection is about to be closed; False if that has been done.

        ``queue`` is the calling thread's.
        """
        connection = client._connection
        request = connection.request
        if not client._end():
            return False
        queue.append(client)  # before it leaves the list, so that it is always found in one of them
        self.live.pop(id(connection.accepted), None)
        if request is not connection.accepted:
            self._wrapped.pop(id(request), None)
        connection.accepted = None
        if len(queue) > _QUEUED:
            self._add_up_unless_busy(queue)
        when_left = self.when_left
        if when_left is not None:
            when_left(client)
        return True

    def hand_on(self, client: Client) -> None:
        """Forget a client whose connection another server serves from now on."""
        self.remove(client, self.elsewhere)
        self.notify_if_awaited()

    def notify_if_awaited(self) -> None:
        """Notify a stop that a client has gone, if it may have been the last one that the stop waits for."""
        if len(self.live) <= self.awaited:
            with self.lock:
                self.changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait until a condition on clients and threads is true, or until ``deadline``, a time of `time.monotonic`.

        A stop that begins meanwhile has the notifications for itself, so this looks again from time to time, too.
        """
        with self.lock:
            while not condition() and (remaining := deadline - time.monotonic()) > 0:
                self.awaited = max(self.awaited, 0)
                self.changed.wait(min(remaining, _LOOK))

    def clients(self) -> list[Client]:
        """Copy the live clients, in the order of their numbers."""
        return list(self.live.copy().values())

    def newest_unserved(self) -> Client | None:
        """Return the client that was accepted last, if no thread serves it yet."""
        newest = next(reversed(self.clients()), None)
        return newest if newest is not None and newest.thread is None else None

    def totals(self) -> tuple[int, int, list[Client], Totals]:
        """Return the number of accepted clients and the peak, the live clients, and what has become of the others."""
        with self.lock, self._counting:
            live = self.clients()
            for queue in self._queues.copy().values():
                self._add_up(queue)
            self._forget_ended()
            return (self.accepted, self.peak, [client for client in live if not client._counted], self._totals.copy())

    def record_durations(self) -> None:
        """Record, from the first call of this on, for how long the clients that finish were connected."""
        with self._counting:
            self._totals.recorder = self._totals.recorder or DurationRecorder(CONNECTION_BOUNDS)

    def gone(self) -> int:
        """Count the clients that have come and gone."""
        totals = self.totals()[3]
        return totals.finished + totals.refused

    def _add_up_unless_busy(self, queue: deque[Client]) -> None:
        """Add up a queue, unless another thread is at it, which may have been interrupted by a signal handler's stop.

        That stop waits for the calling thread; so this waits for nothing. The next one to add up does it.
        """
        if self._counting.acquire(blocking=False):
            try:
                self._add_up(queue)
                self._forget_ended()
            finally:
                self._counting.release()

    def _add_up(self, queue: deque[Client]) -> None:
        """Count the clients of a queue. The caller holds `_counting`."""
        with suppress(IndexError):
            while True:  # not "while queue": a signal handler that asks for the totals may empty it in between
                client = queue.popleft()
                client._counted = True
                self._totals.add(client)

    def _forget_ended(self) -> None:
        """Add up, and forget, the queues of threads that have ended. The caller holds `_counting`."""
        with suppress(IndexError):
            while True:
                queue = self._ended.popleft()
                self._add_up(queue)
                self._queues.pop(id(queue), None)
