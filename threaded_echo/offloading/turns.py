"""Whose turn it is: the calls that run and that wait, and the hosts that they come from.

Invariants:

- At most ``slots`` calls run at once, and at most ``per_host`` of one host: each call that runs has a slot.
- Turns go round the hosts that wait: a host that gets a turn is the last one then. So between two turns of a waiting
  host every other host has at most one, however many calls wait. Among those of one host, the first one goes first.
- A call gets its slot when another one ends, from the thread that ends that, which then wakes it. If it does not want
  the slot any more, it gives it back as it ends: none is lost.

All methods of `Turns` are called with the server's lock held.
"""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable

from ..clients.client import Client
from ..errors import OffloadRefused
from ..transport.hosts import host_of
from ..transport.waker import Waker
from .call import Call
from .thread_work import ThreadCall


class Turn:
    """A call's place among the others.

    ``host``, ``has_slot``, ``began`` and ``is_over`` are changed by any thread, with the server's lock held. All the
    others are changed by the caller's thread alone, before or after its wait; any thread may read them.
    """

    __slots__ = ("call", "slots", "limit", "refuses", "is_nested", "host", "has_slot", "began", "waker", "work",
                 "is_foreign", "is_left", "is_over")

    def __init__(self, call: Call, slots: int | None, limit: int | None, refuses: bool, is_nested: bool) -> None:
        self.call = call
        self.slots = slots  # it begins when fewer calls are running
        self.limit = limit
        self.refuses = refuses  # it is refused if so many calls as limit, or per_host, are running or waiting
        self.is_nested = is_nested  # inside a call that has a slot, and would wait for itself
        self.host: _Host | None = None
        self.has_slot = False
        self.began = 0.0  # when it got its slot
        self.waker: Waker | None = None  # set when it has a slot, when it is over, and when it is given up
        self.work: ThreadCall | None = None  # in WorkerThreads
        self.is_foreign = False  # in an executor of the program's, which does not end with the server
        self.is_left = False  # its caller waits no longer, but it is running
        self.is_over = False

    @property
    def thread(self) -> threading.Thread | None:
        """The thread of WorkerThreads in which it runs."""
        return None if self.work is None else self.work.thread

    def per_host(self) -> int | None:
        """Return the share of its host; ``None`` for a call of the program's own, which has no host."""
        return None if self.call.client is None else self.call.terms.per_host


class _Host:
    """What the calls of one host have in common."""

    __slots__ = ("key", "running", "waiting")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.running = 0
        self.waiting: deque[Turn] = deque()

    def has_room(self, turn: Turn) -> bool:
        """Return whether its share allows that one more of its calls runs."""
        share = turn.per_host()
        return share is None or self.running < share


class Turns:
    """The calls of one server that run and that wait."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self._hosts: dict[Hashable, _Host] = {}  # those with a call
        self._ring: dict[_Host, None] = {}  # those with a call that only needs a slot; the first one's turn is next

    def begin(self, turn: Turn) -> bool:
        """Begin a call at once if it has to wait for nobody, or return False. Raises OffloadRefused at its limit."""
        host = turn.host = self._find(turn.call.client)
        if not (self._ring or host.waiting or self._is_full(turn)) and host.has_room(turn):
            self._begin(turn, host)
            return True
        if turn.refuses:
            for most, found, whose in ((turn.limit, self.running + self.waiting, ""),
                                       (turn.per_host(), host.running + len(host.waiting), " of one host")):
                if most is not None and found >= most:
                    self._forget_unless_used(host)
                    raise OffloadRefused(f"no more than {most} offloaded calls{whose} may run or wait at once")
        return False

    def wait(self, turn: Turn) -> None:
        """List a call that could not begin."""
        host = turn.host = self._find(turn.call.client)
        host.waiting.append(turn)
        self.waiting += 1
        self._line_up(host)

    def end(self, turn: Turn) -> None:
        """Take a call's slot, or its place, back, and give the slots that are free to the next ones."""
        host = turn.host
        if host is None:
            return
        turn.host = None
        if turn.has_slot:
            self.running -= 1
            host.running -= 1
        elif turn in host.waiting:
            host.waiting.remove(turn)
            self.waiting -= 1
        self._line_up(host)
        self._forget_unless_used(host)
        while self._ring:
            host = next(iter(self._ring))
            turn = host.waiting[0]
            if self._is_full(turn):
                break
            del self._ring[host]
            host.waiting.popleft()
            self.waiting -= 1
            self._begin(turn, host)
            self._line_up(host)
            assert turn.waker is not None, "it waits"
            turn.waker.set()

    def _begin(self, turn: Turn, host: _Host) -> None:
        self.running += 1
        host.running += 1
        turn.began = time.monotonic()
        turn.has_slot = True

    def _is_full(self, turn: Turn) -> bool:
        return turn.slots is not None and self.running >= turn.slots

    def _line_up(self, host: _Host) -> None:
        """Keep a host in the ring while its first call could begin; a new one comes last."""
        if host.waiting and host.has_room(host.waiting[0]):
            self._ring.setdefault(host)
        else:
            self._ring.pop(host, None)

    def _find(self, client: Client | None) -> _Host:
        """Find the record of a client's host. A client whose address names none is one by itself."""
        key: Hashable = None if client is None else host_of(client.address) or client
        return self._hosts.get(key) or self._hosts.setdefault(key, _Host(key))

    def _forget_unless_used(self, host: _Host) -> None:
        if not host.running and not host.waiting:
            self._hosts.pop(host.key, None)
