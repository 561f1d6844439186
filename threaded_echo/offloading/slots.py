"""The calls of one server from their first moment to their last: the wait for a slot, the end, and the counts.

`turns` has the order in which calls get their slots. The invariants are those of `calls`.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..clients.client import Client
from ..errors import ServerStopping
from ..observe.durations import DurationRecorder, Durations
from .call import ENDED, OffloadedCall
from .turns import Turn, Turns
from .waiting import Wakers, computing, wait_until_set


class Slots:
    """The slots of one server's calls, and what it tells of them."""

    def __init__(self, lock: threading.RLock, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._lock = lock  # guards what follows
        self._done = self._failed = 0
        self._turns = Turns()
        self._calls: dict[Turn, None] = {}  # those that are waiting or running, in the order in which they came
        self._waits, self._runs = DurationRecorder(), DurationRecorder()
        self._wakers = Wakers(lock)

    def left(self) -> list[tuple[Client | None, threading.Thread | None]]:
        """Find the calls that run on though their callers wait no longer: their clients, and their threads if any."""
        with self._lock:
            return [(turn.call.client, turn.thread) for turn in self._calls if turn.is_left and not turn.is_foreign]

    def runs_in(self, thread: threading.Thread) -> bool:
        """Return whether a call runs in a thread of WorkerThreads."""
        with self._lock:
            return any(turn.thread is thread for turn in self._calls)

    def count(self) -> tuple[int, int, int, int]:
        """Count the calls that are running, are waiting, are done, and have failed."""
        with self._lock:
            return self._turns.running, self._turns.waiting, self._done, self._failed

    def durations(self) -> tuple[Durations, Durations]:
        """Return how long the calls have waited for their slots, and how long they have then run."""
        with self._lock:
            return self._waits.read(), self._runs.read()

    def snapshot(self) -> tuple[OffloadedCall, ...]:
        """Describe the calls that are running or waiting, in the order in which they came."""
        return tuple(call for call, _ in self.with_threads())

    def with_threads(self) -> list[tuple[OffloadedCall, threading.Thread | None]]:
        """The same, each with the thread of WorkerThreads in which it runs, if it is in one."""
        with self._lock:
            turns = [(turn.call, turn.has_slot or turn.is_nested, turn.thread) for turn in self._calls]
        return [(call.describe(runs), thread) for call, runs, thread in turns]

    # For the calls.

    def _have_waker(self, turn: Turn) -> None:
        if turn.waker is None:
            turn.waker = self._wakers.take()

    @contextmanager
    def _slot(self, turn: Turn) -> Iterator[None]:
        """Wait for a slot; while waiting and running, the client's state is ``"computing"``."""
        with computing(turn.call.client):
            self._wait_for_slot(turn)
            yield

    def _wait_for_slot(self, turn: Turn) -> None:
        """Return when a call has its slot. Raises OffloadRefused, or what a call that waits ends by."""
        call = turn.call
        with self._lock:
            if call.period.forced:
                raise ServerStopping("the server is stopping: it takes no more calls")
            self._calls[turn] = None
            if turn.is_nested or self._turns.begin(turn):
                return
            waker = turn.waker = self._wakers.take()
            self._turns.wait(turn)
        is_connected = True
        while True:
            if call.period.forced:
                raise ServerStopping("the server has cancelled this call as it stopped")
            call.check(is_connected)
            if turn.has_slot:
                return
            is_connected = wait_until_set(waker, call)
            waker.clear()

    def _finish(self, turn: Turn, succeeded: bool) -> None:
        """End a call whose caller goes on, unless it runs on without that."""
        if not turn.is_left:
            self._end(turn, succeeded)
        waker, turn.waker = turn.waker, None  # not before: until it has ended, another call may give it its slot
        if waker is not None:
            self._wakers.give(waker, turn.call.period)

    def _end(self, turn: Turn, succeeded: bool) -> None:
        """Take a call's slot, or its place among those that wait, back, and count it. May be called again."""
        now = time.monotonic()
        with self._lock:
            if turn.is_over:
                return
            turn.is_over = True
            self._turns.end(turn)
            self._calls.pop(turn, None)
            if succeeded:
                self._done += 1
            else:
                self._failed += 1
            if turn.has_slot:
                self._runs.add(now - turn.began)
            if not turn.is_nested:
                self._waits.add((turn.began or now) - turn.call.made)
        turn.call.tell_if_slow(ENDED)
        if turn.is_left:
            self._notify()
