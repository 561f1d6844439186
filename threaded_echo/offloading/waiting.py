"""A handler's wait for its offloaded call: what its client's state is meanwhile, and what ends the wait."""
from __future__ import annotations

import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..clients.client import Client
from ..clients.period import Period
from ..transport.waker import Waker
from .call import WAITING, Call, CallerLeft
from .polling import MOST_SECONDS, poll

_KEPT = 32  # wakers that are kept for later calls


def wait_for(files: list[Any], client: Client | None, seconds: float | None) -> tuple[list[Any], bool]:
    """Wait until one of ``files`` is readable, the connection of ``client`` is lost, or ``seconds`` have passed.

    Returns those that are readable, and whether the connection is there. It may return early with neither. A client
    that has only ended its own stream still waits for its answer: its connection is not lost. On a platform without
    `select.poll`, as Windows, nothing reports a lost connection.
    """
    if not hasattr(select, "poll"):
        return select.select(files, [], [], None if seconds is None else min(max(seconds, 0), MOST_SECONDS))[0], True
    return poll(files, seconds, -1 if client is None else client._connection.fileno())


def wait_until_set(waker: Waker, call: Call, interval: float | None = None) -> bool:
    """Wait until ``waker`` is set, or the call has to be looked at; return False if its client's connection is lost.

    ``interval``: wait for no more than so many seconds.
    """
    times = (call.seconds_left(), interval)
    return wait_for([waker], call.client, min((each for each in times if each is not None), default=None))[1]


def wait_with_caller(look: Callable[[Client | None, float | None], tuple[list[Any], bool]], call: Call,
                     timeout: float | None) -> list[Any]:
    """Wait with ``look``, which is like `wait_for`, until something is readable, and return that.

    Raises CallerLeft if the caller of the call waits no longer, and TimeoutError after ``timeout`` seconds.
    """
    client = call.client
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        times = (call.seconds_left(), None if deadline is None else deadline - time.monotonic())
        ready, is_connected = look(client, min((each for each in times if each is not None), default=None))
        if ready and (is_connected or call.period.forced):  # a client that has gone gets no reply, if both come at once
            return ready
        call.tell_if_slow(WAITING)
        if call.is_late() or not is_connected and not call.period.forced:
            raise CallerLeft(is_connected)
        if not is_connected:
            client = None  # a stop has cut it, and ends what is waited for
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError


class Wakers:
    """Wakers to wait with, which are used again: making one costs more than all the rest of a short call.

    A waker may be set once more after it was given back, by what the call before has waited for. So each wait looks
    whether what it waits for is there. *Thread safety*: any thread.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock  # guards _idle
        self._idle: list[Waker] = []
        weakref.finalize(self, _close, self._idle).atexit = False  # a program may drop its server without closing it

    def take(self) -> Waker:
        """Return a waker. Raises OSError if no descriptor is available."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Waker()

    def give(self, waker: Waker, period: Period) -> None:
        """Take a waker back after a call in a period, and keep it unless that period is over."""
        waker.clear()
        with self._lock:
            # `close` comes after a period has been forced: either it finds this waker, or that is seen here.
            if not period.forced and len(self._idle) < _KEPT:
                self._idle.append(waker)
                return
        waker.close()

    def close(self) -> None:
        """Close those that are kept."""
        with self._lock:
            _close(self._idle)


def _close(wakers: list[Waker]) -> None:
    while wakers:
        wakers.pop().close()


@contextmanager
def computing(client: Client | None) -> Iterator[None]:
    """Make a client's state ``"computing"``."""
    if client is None:
        yield
        return
    before = client.state  # "computing" already, if one call is made inside another
    client._move("computing")
    try:
        yield
    finally:
        client._move(before)
