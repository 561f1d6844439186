"""The live clients of a server: their numbers, which of them a request belongs to, and what has become of the others.

Guarantees:

- A number is given once: 1, 2, 3 and so on, in the order of accepting.
- A client is in the registry from its accept until its connection is about to be closed, so that whoever sees the
  connection end finds that the client has gone from the registry too.
- Adding, finding and removing cost the same with one client and with ten thousand.
- A client that leaves takes no lock that another one wants. It is queued with its outcome, and whoever asks for the
  totals adds the queue up. A client is counted there or listed here, and in one snapshot never both.
- A client that is added while a stop is in progress is woken: it either finds that its period is over, or was listed
  before the stop has copied the list, since both go through the same dict.
"""
from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from .client import Client
from .period import Period

_QUEUED = 256  # clients that have left, and whose outcomes nobody has added up yet; then one of them does


@dataclass
class Totals:
    """What has become of the clients that have gone."""

    finished: int = 0
    failed: int = 0
    refused: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_known: bool = False  # whether the kernel could tell for any of them

    def add(self, client: Client) -> None:
        """Count a client that has gone."""
        if client._outcome == "refused":
            self.refused += 1
        else:
            self.finished += 1
            self.failed += client._has_failed()
        self.add_traffic(client)

    def add_traffic(self, client: Client) -> None:
        """Add what has passed over a client's connection so far."""
        traffic = client._connection.traffic()
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
        # accepted, peak, awaited and _totals, and the fields of HandlerThreads, Loops and Stopping that say so. The
        # dicts and the deque change by single operations, which are atomic on every build of Python.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.awaited = -1  # notify if at most so many clients or threads are left; -1: nobody waits
        self.live: dict[int, Client] = {}
        self.closing: dict[int, Client] = {}  # removed, and their connections not closed yet
        self.accepted = 0
        self.peak = 0
        self._by_request: dict[int, Client] = {}  # id(request) → client, which keeps the request alive
        self._left: deque[Client] = deque()  # removed, and not added to _totals yet
        self._totals = Totals()

    def add(self, request: Any, address: Any, period: Period) -> Client:
        """Number an accepted client, list it, and return it."""
        live = self.live
        with self.lock:  # only the thread that accepts comes here, and whoever reads the totals
            self.accepted = number = self.accepted + 1
            client = Client(number, request, address, period, self)
            live[number] = client
            if len(live) > self.peak:
                self.peak = len(live)
        self._by_request[id(request)] = client
        if period.stopping.is_set():
            client._wake()
        return client

    def find(self, request: Any) -> Client | None:
        """Find the live client of a request; ``None`` if there is none."""
        return self._by_request.get(id(request))

    def owns(self, client: Client | None) -> bool:
        """Return whether ``client`` is one of this server's, and live."""
        return client is not None and client._registry is self and client.number in self.live

    def follow(self, client: Client, request: Any) -> None:
        """Take ``request`` as the client's too: it has been wrapped around the one that was accepted."""
        with self.lock:
            if self.owns(client):
                connection = client._connection
                if connection.request is not connection.accepted:
                    self._by_request.pop(id(connection.request), None)
                self._by_request[id(request)] = client
                connection.follow(request)

    def remove(self, client: Client) -> bool:
        """Forget a client whose connection is about to be closed; False if that has been done.

        If it returns True, the caller calls `closed` after it has closed the connection.
        """
        connection = client._connection
        request = connection.request
        if not client._end():
            return False
        self.closing[client.number] = client
        self._left.append(client)
        self._by_request.pop(id(connection.accepted), None)
        if request is not connection.accepted:
            self._by_request.pop(id(request), None)
        connection.accepted = None
        self.live.pop(client.number, None)
        if len(self._left) > _QUEUED:
            with self.lock:
                self._add_up_locked()
        return True

    def closed(self, client: Client) -> None:
        """Take note that a removed client's connection is closed."""
        self.closing.pop(client.number, None)
        if len(self.live) <= self.awaited:
            with self.lock:
                self.changed.notify_all()

    def snapshot(self) -> dict[int, Client]:
        """Copy the live clients, by number."""
        return self.live.copy()

    def totals(self) -> tuple[int, int, list[Client], Totals]:
        """Return the number of accepted clients and the peak, the live clients, and what has become of the others."""
        with self.lock:
            live = self.live.copy()
            self._add_up_locked()
            clients = [client for client in live.values() if not client._counted]
            totals = Totals(**vars(self._totals))
            return self.accepted, self.peak, clients, totals

    def gone(self) -> int:
        """Count the clients that have come and gone."""
        totals = self.totals()[3]
        return totals.finished + totals.refused

    def _add_up_locked(self) -> None:
        while self._left:
            client = self._left.popleft()
            client._counted = True
            self._totals.add(client)
