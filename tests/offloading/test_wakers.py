"""The wakers that calls use one after the other."""
from __future__ import annotations

import select
import threading

from threaded_echo.clients.period import Period
from threaded_echo.offloading.waiting import Wakers, wait_for


def test_waker_is_used_again():
    """It does not say that it was set for the call before."""
    wakers, period = Wakers(threading.RLock()), Period()
    first = wakers.take()
    first.set()
    wakers.give(first, period)
    assert wakers.take() is first
    assert wait_for([first], None, 0) == ([], True)
    wakers.give(first, period)
    wakers.close()
    assert first.fileno() < 0


def test_waker_that_comes_back_after_the_stop_is_closed():
    """Nobody would close it any more."""
    wakers, period = Wakers(threading.RLock()), Period()
    late = wakers.take()
    period.force()
    wakers.close()
    wakers.give(late, period)
    assert late.fileno() < 0


def test_few_wakers_are_kept():
    """Each is two descriptors."""
    wakers, period = Wakers(threading.RLock()), Period()
    many = [wakers.take() for _ in range(40)]
    for each in many:
        wakers.give(each, period)
    assert sum(each.fileno() >= 0 for each in many) == 32
    wakers.close()


def test_dropped_wakers_are_closed():
    """A program may drop its server without closing it."""
    wakers = Wakers(threading.RLock())
    kept = wakers.take()
    wakers.give(kept, Period())
    del wakers
    assert kept.fileno() < 0


def test_waker_is_waited_for_on_a_platform_without_poll(monkeypatch):
    """Windows has none."""
    monkeypatch.delattr(select, "poll")
    wakers = Wakers(threading.RLock())
    waker = wakers.take()
    assert wait_for([waker], None, 0) == ([], True)
    waker.set()
    assert wait_for([waker], None, None) == ([waker], True)
    waker.close()
