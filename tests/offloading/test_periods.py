"""Offloaded calls and their periods of serving, without a server: what is given up, dropped, and forgotten."""
from __future__ import annotations

import multiprocessing
import threading
import weakref

import pytest

from threaded_echo import ServerStopping
from threaded_echo.clients.period import Period
from threaded_echo.offloading.calls import Offloads
from threaded_echo.offloading.processes import Workers

from .. import calls
from ..tools import until
from .tools import calling, executor_of


@pytest.mark.parametrize("kind", ["inline", "workers", "worker threads", "threads"])
def test_forced_period_ends_its_calls_only(kind, meeting):
    """A waiting call of a newer period is woken as well, and waits on."""
    old, new = Period(), Period()
    offloads = Offloads(threading.RLock())
    with executor_of(kind) as executor:
        def call(period: Period, function, *args):
            """Call without a client, one call at a time."""
            return offloads.call(period, None, executor, 1, False, function, args, {})

        with calling(call, new, calls.meet, meeting.address) as running_call:
            meeting.welcome()
            with calling(call, new, calls.square, 3) as waiting_call:
                with calling(call, old, calls.square, 2) as lost:
                    until(lambda: offloads.count()[1] == 2)
                    old.force()
                    offloads.give_up()
                assert isinstance(lost[0], ServerStopping)
                assert offloads.count() == (1, 1, 0, 1)
                meeting.dismiss()
        assert (running_call, waiting_call) == ([b"go"], [9])
        with pytest.raises(ServerStopping):
            call(old, calls.square, 2)
        new.force()
        offloads.close()


def test_dropped_offloads_leave_no_worker():
    """What ends the idle workers refers to nothing that leads back to the server."""
    offloads = Offloads(threading.RLock())
    assert offloads.call(Period(), None, 1, None, False, calls.square, (3,), {}) == 9
    assert len(multiprocessing.active_children()) == 1
    dropped = weakref.ref(offloads)
    del offloads
    assert dropped() is None
    assert not multiprocessing.active_children()


def test_two_first_calls_use_the_same_workers(monkeypatch):
    """The second thread comes while the first one loads what worker processes need."""
    class Late(Workers):
        """Workers whose making another thread overtakes."""

        def __init__(self) -> None:
            super().__init__()
            offloads._workers = first

    first, offloads, period = Workers(), Offloads(threading.RLock()), Period()
    monkeypatch.setattr("threaded_echo.offloading.processes.Workers", Late)
    assert offloads.call(period, None, 1, None, False, calls.square, (3,), {}) == 9
    assert len(first._idle) == 1
    period.force()
    offloads.close()
