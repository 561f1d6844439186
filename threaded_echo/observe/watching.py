"""What a table of a running server shows: read from the server's snapshots and from the kernel's counts.

Nothing is asked of the threads that serve the clients, and nothing is kept for the table in their loops.
"""
from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from .recent import RecentMessages
from .stats import ServerStats

SECONDS = 60
"""How far the history goes back."""


@dataclass(frozen=True, slots=True)
class Row:
    """One client. ``None`` stands for what the platform cannot tell, and ``rate`` is ``None`` at the first look.

    ``rate``: bytes a second, in both directions together, since the look before.
    """

    number: int
    address: str
    state: str
    age: float
    idle: float | None
    received: int | None
    sent: int | None
    rate: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment.

    - ``rows``: some of the clients, in the order of their numbers; ``hidden``: how many there are besides.
    - ``clients``, ``messages``, ``traffic``: one value for each second of the last minute, the newest last: the most
      clients that were seen, the messages that were logged, and the bytes in both directions (empty if unknown).
    - ``left_out``: messages of the last minute that are known not to have been logged.
    """

    stats: ServerStats
    rows: tuple[Row, ...]
    hidden: int
    clients: tuple[int, ...]
    messages: tuple[int, ...]
    traffic: tuple[int, ...]
    left_out: int


class History:
    """A value for each of the last seconds. Its caller makes sure that one thread at a time uses it."""

    def __init__(self, seconds: int = SECONDS) -> None:
        self._values: deque[int] = deque(maxlen=seconds)
        self._second = 0

    def _go_to(self, now: float, missing: int) -> None:
        """Begin the second of ``now``; seconds that nobody has looked at get the value ``missing``."""
        second = math.floor(now)
        if not self._values:
            self._values.append(missing)
        elif second > self._second:
            self._values.extend([missing] * min(second - self._second, self._values.maxlen or 0))
        self._second = second

    def add(self, now: float, amount: int) -> None:
        """Add to the value of the present second, which begins at 0."""
        self._go_to(now, 0)
        self._values[-1] += amount

    def raise_to(self, now: float, value: int) -> None:
        """Keep the greatest value of the present second; a second without one has that of the next."""
        self._go_to(now, value)
        self._values[-1] = max(self._values[-1], value)

    def values(self) -> tuple[int, ...]:
        """Return the values, the newest last: fewer at first."""
        return tuple(self._values)


class Watcher:
    """Looks at a server again and again. Its caller makes sure that one thread at a time uses it.

    ``server`` has ``clients`` and ``stats()``; ``show`` makes text of a client's address. Costs some microseconds for
    each live client.
    """

    def __init__(self, server: Any, recent: RecentMessages, show: Callable[[Any], str],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._recent = recent
        self._show = show
        self._clock = clock
        self._looked = -math.inf
        self._totals: dict[int, int] = {}  # each client's bytes at the look before
        self._clients, self._messages, self._left_out, self._traffic = History(), History(), History(), History()
        self._counted = recent.counts()
        self._bytes: int | None = None

    def look(self, most: int) -> Look:
        """Look now. ``most``: how many lines there are for clients; one of them says how many are not shown, if any.

        If there are more clients, those are shown that were active last.
        """
        now = self._clock()
        clients = [(client, client._connection.traffic()) for client in self._server.clients.values()]
        stats = self._server.stats()
        self._remember(now, len(clients), stats)
        shown = clients
        if len(clients) > most:
            # In whole seconds, and the older client first: so that the rows stay as they are while they can.
            shown = nsmallest(max(1, most - 1), clients, lambda pair: (int(_silence(*pair)), pair[0].number))
            shown.sort(key=lambda pair: pair[0].number)
        elapsed = now - self._looked
        rows = tuple(self._row(client, traffic, elapsed) for client, traffic in shown)
        self._looked = now
        self._totals = {client.number: traffic.received + traffic.sent for client, traffic in clients if traffic}
        live = {client.number for client, _ in clients}
        for number in self._recent.numbers():
            if number not in live:
                self._recent.forget(number)
        return Look(stats, rows, len(clients) - len(rows), self._clients.values(), self._messages.values(),
                    self._traffic.values(), sum(self._left_out.values()))

    def _remember(self, now: float, live: int, stats: ServerStats) -> None:
        """Add to the history what has happened since the look before."""
        logged, left_out = self._recent.counts()
        self._messages.add(now, logged - self._counted[0])
        self._left_out.add(now, left_out - self._counted[1])
        self._counted = logged, left_out
        self._clients.raise_to(now, live)
        if stats.bytes_received is not None and stats.bytes_sent is not None:
            total = stats.bytes_received + stats.bytes_sent
            self._traffic.add(now, max(0, total - (total if self._bytes is None else self._bytes)))
            self._bytes = total

    def _row(self, client: Any, traffic: Any, elapsed: float) -> Row:
        before = self._totals.get(client.number)
        rate = None
        if traffic and before is not None and elapsed > 0:
            rate = max(0, traffic.received + traffic.sent - before) / elapsed
        return Row(client.number, self._show(client.address) if client.address else "", client.state, client.age,
                   traffic and traffic.idle, traffic and traffic.received, traffic and traffic.sent, rate,
                   self._recent.last_of(client.number))


def _silence(client: Any, traffic: Any) -> float:
    """Return for how many seconds a client was not active, as far as that is known."""
    return float(client.age if traffic is None else traffic.idle)
