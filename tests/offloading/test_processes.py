"""The worker processes of a server: which of them takes a call, and what a stop, an exit and a fork do to them."""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from threaded_echo import ServerStopping, WorkerDied
from threaded_echo.clients.period import Period
from threaded_echo.offloading import processes, worker
from threaded_echo.offloading.processes import Workers
from threaded_echo.offloading.messages import pickle_call
from threaded_echo.offloading.worker import NotBegun, Worker

from .. import calls
from ..tools import GUARD, together
from .tools import call_in, calling, pool


def test_workers_are_used_again():
    """One process takes one call after the other."""
    with pool(1) as workers:
        assert len({call_in(workers, calls.describe)["process"] for _ in range(3)}) == 1


def test_calls_at_once_have_a_worker_each(meeting):
    """A worker that is missing is started."""
    with pool(1) as workers:
        with (calling(call_in, workers, calls.meet, meeting.address) as one,
              calling(call_in, workers, calls.meet, meeting.address) as other):
            assert meeting.welcome() != meeting.welcome()
            meeting.dismiss(b"one")
            meeting.dismiss(b"other")
        assert sorted([*one, *other]) == [b"one", b"other"]


def test_no_more_workers_than_wanted_are_kept(meeting):
    """However many calls ran at once, the wanted number stays."""
    with pool(1) as workers:
        with (calling(call_in, workers, calls.meet, meeting.address),
              calling(call_in, workers, calls.meet, meeting.address)):
            for _ in range(2):
                meeting.welcome()
            for _ in range(2):
                meeting.dismiss()
        with pickle_call(calls.square, (2,), {}) as message:
            assert workers.call(message, 1, Period(), nullcontext) == 4
        assert len(workers._idle) == 1


def test_two_that_start_the_same_workers_start_them_once():
    """The second one waits, and finds them there."""
    period = Period()
    with pool(period=period) as workers:
        together(2, lambda: workers.start(2, period, nullcontext))
        assert len(workers._idle) == 2


def test_worker_that_died_while_idle_costs_nothing():
    """The next call begins in a new one, whether the death is noticed before or after it is sent."""
    with pool(1) as workers:
        for _ in range(5):
            os.kill(call_in(workers, calls.describe)["process"], signal.SIGKILL)
            assert call_in(workers, calls.square, 5) == 25


def test_killing_in_a_loop_mixes_up_no_answers():
    """Every call returns its own result, or raises WorkerDied."""
    over = threading.Event()

    def use() -> tuple[int, int]:
        """Call until the end, and until there is an answer; count the answers and the deaths."""
        answers = deaths = 0
        while not over.is_set() or not answers:
            try:
                assert call_in(workers, calls.square, answers) == answers * answers
                answers += 1
            except WorkerDied:
                deaths += 1
        return answers, deaths

    def kill() -> tuple[int, int]:
        """Kill a worker by a call, and another from outside, held or idle."""
        for _ in range(4):
            with pytest.raises(WorkerDied):
                call_in(workers, calls.die, 1)
            with workers._lock:
                victims = [*workers._held, *workers._idle]
            for victim in victims[:1]:
                victim.kill()
        over.set()
        return 1, 0

    roles = iter([kill, use, use])
    with pool(3) as workers:
        counts = together(3, lambda: next(roles)())
    assert all(answers > 0 for answers, _ in counts)


def test_call_that_kills_even_a_new_worker_is_not_tried_for_ever(monkeypatch):
    """It may be too large to be received, for example."""
    def refuse(each: Worker, call: object, caller: object) -> None:
        """End before the call begins."""
        each.kill()
        raise NotBegun

    monkeypatch.setattr(Worker, "call", refuse)
    with pool() as workers, pytest.raises(WorkerDied, match="as it received a call"):
        call_in(workers, calls.square, 1)


def test_forced_period_ends_its_calls_only(meeting):
    """A call of another period runs on, in a worker of its own."""
    old, new = Period(), Period()
    with pool(2, new) as workers:
        with calling(call_in, workers, calls.meet, meeting.address, period=new) as kept:
            meeting.welcome()
            with calling(call_in, workers, calls.meet, meeting.address, period=old) as lost:
                meeting.welcome()
                old.force()
                workers.give_up()
            assert isinstance(lost[0], WorkerDied)
            with pytest.raises(ServerStopping):
                call_in(workers, calls.square, 7, period=old)
            assert call_in(workers, calls.square, 7, period=new) == 49
            meeting.dismiss()
        assert kept == [b"go"]


def test_stop_as_a_new_worker_is_started_kills_it(monkeypatch):
    """The worker is not listed yet when the stop kills what is held."""
    period = Period()

    class Late(Worker):
        """A worker whose start a stop overtakes."""

        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            period.force()
            workers.give_up()

    monkeypatch.setattr(worker, "work", calls.say_nothing)
    monkeypatch.setattr(processes, "Worker", Late)
    workers = Workers()
    with pytest.raises(WorkerDied):
        call_in(workers, calls.square, 1, period=period)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_start_in_a_period_that_is_stopping_starts_no_more(monkeypatch, asked):
    """A stop came when it knew of no worker that it could have ended; the start need not wait for any."""
    answers = iter([False] * asked + [True] * 9)
    monkeypatch.setattr(worker, "work", calls.say_nothing)
    period = Period()
    monkeypatch.setattr(Period, "is_stopping", lambda _: next(answers))
    with pytest.raises(WorkerDied):
        Workers().start(2, period, nullcontext)


@contextmanager
def known_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Have a worker, and keep the hooks of the interpreter's end and of a fork from all others."""
    monkeypatch.setattr(processes, "_all", weakref.WeakSet())
    with pool(1) as workers:
        yield workers


def test_interpreters_end_kills_held_and_idle_workers(meeting, monkeypatch):
    """Calls that come later raise WorkerDied, whether a worker is idle or not."""
    monkeypatch.setattr(worker, "interpreter_ends", ends := threading.Event())
    monkeypatch.setattr(processes, "interpreter_ends", ends)
    monkeypatch.setattr(processes, "_all", weakref.WeakSet())
    with pool(2) as workers:
        with calling(call_in, workers, calls.meet, meeting.address) as lost:
            meeting.welcome()
            processes._kill_all()
        assert isinstance(lost[0], WorkerDied)
        [idle] = workers._idle
        assert worker.wait([idle._end], GUARD)
        with pytest.raises(WorkerDied, match="interpreter is ending"):
            call_in(workers, calls.square, 2)


def test_forked_process_forgets_all_workers(monkeypatch):
    """Its locks are new, since no thread would release the old ones, and the workers live on."""
    with known_alone(monkeypatch) as workers:
        [inherited], lock, opening = workers._idle, workers._lock, workers._opening
        processes._forget_all()
        assert not workers._idle and not workers._held
        assert workers._lock is not lock and workers._opening is not opening
        inherited.kill()
        inherited.end()
        assert inherited._process.is_alive()
        assert call_in(workers, calls.square, 2) == 4
        inherited._process.kill()
        inherited._process.join()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform has no processor affinity")
def test_worker_may_run_where_its_server_may_not(monkeypatch):
    """A process inherits its starter's processors, and the server may keep its threads on one."""
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    if everywhere == one:
        pytest.skip("there is one processor only")

    @contextmanager
    def unpinned() -> Iterator[None]:
        """Let the calling thread run everywhere for a while."""
        os.sched_setaffinity(0, everywhere)
        try:
            yield
        finally:
            os.sched_setaffinity(0, one)

    period, workers = Period(), Workers()
    os.sched_setaffinity(0, one)
    try:
        workers.start(1, period, unpinned)
        for _ in range(2):  # in a worker of the start, and in one that replaces it
            with pickle_call(calls.affinity, (), {}) as message:
                assert workers.call(message, 1, period, unpinned) == everywhere
            assert os.sched_getaffinity(0) == one
            for idle in workers._idle:
                idle.kill()
    finally:
        os.sched_setaffinity(0, everywhere)
        workers.close()
    assert not multiprocessing.active_children()
