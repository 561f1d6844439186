"""Iterating over what a function yields in a thread of WorkerThreads: what differs from a worker process."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext

import pytest

from threaded_echo import ServerStopping, WorkerThreads
from threaded_echo.clients.period import Period
from threaded_echo.offloading import thread_items
from threaded_echo.offloading.call import AHEAD, Call
from threaded_echo.offloading.executors import run_inline
from threaded_echo.offloading.turns import Turn
from threaded_echo.transport.waker import Waker

from .. import calls
from ..tools import GUARD, Gate, connect, receive, running, until, wait_until
from .test_iterations import rows, serving
from .tools import calling, occupied, reset, wait_for


@pytest.fixture
def threads() -> Iterator[WorkerThreads]:
    """Have one worker thread."""
    with WorkerThreads(1) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Wait next to no time for a generator to close."""
    monkeypatch.setattr(thread_items, "CLOSE_TIMEOUT", 0.01)


class Slow:
    """A generator function (`produce`) that yields ``count`` items, waits at a gate, and notes that it was closed."""

    def __init__(self, count: int) -> None:
        self.gate = Gate()
        self.closed = threading.Event()
        self.count = count

    def produce(self) -> Iterator[int]:
        """Yield, wait, and yield once more."""
        try:
            yield from range(self.count)
            self.gate.entered.set()
            wait_until(self.gate.release)
            yield self.count
        finally:
            self.closed.set()


def test_worker_thread_iterates(threads):
    """Items, exceptions and places are as in a worker process; nothing is pickled."""
    with serving(threads) as server:
        assert list(server.offload_iter(calls.numbers, 20)) == list(range(20))
        assert list(server.offload_iter(lambda: [lambda: 5]))[0]() == 5
        items = server.offload_iter(calls.numbers_and_fail, 2)
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(LookupError, match="no more"):
            next(items)
        assert server.offload(lambda: list(server.offload_iter(calls.numbers, 2))) == [0, 1]
        wait_for(server, lambda stats: (stats.offloads_done, stats.offloads_failed) == (4, 1))


def test_worker_thread_is_only_a_few_items_ahead(threads):
    """It is free again when the loop is left; the generator has been closed."""
    produced, closed = [], []

    def produce():
        """Note what it yields."""
        try:
            for number in range(100):
                produced.append(number)
                yield number
        finally:
            closed.append(True)

    with serving(threads) as server:
        items = server.offload_iter(produce)
        assert [next(items), next(items)] == [0, 1]
        until(lambda: len(produced) == AHEAD + 1)
        items.close()
        assert closed and len(produced) == AHEAD + 1
        assert server.offload(calls.square, 3) == 9


def test_what_a_generator_raises_as_it_closes_in_a_thread_is_logged(threads, caplog):
    """Nobody is there to catch it."""
    with serving(threads) as server:
        with closing(server.offload_iter(calls.fail_as_it_closes)) as items:
            next(items)
        assert "a call of the program's own: what an iteration raised after it was left: as it closes" in caplog.text


def test_thread_that_does_not_close_in_time_runs_on_without_its_caller(threads, impatient):
    """It keeps its place until then."""
    slow = Slow(1)
    with serving(threads) as server:
        items = server.offload_iter(slow.produce)
        next(items)
        wait_until(slow.gate.entered)
        items.close()
        assert [call.state for call in server.offloads()] == ["running"]
        with calling(server.offload, calls.square, 3) as outcome:
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            slow.gate.release.set()
        assert outcome == [9] and slow.closed.is_set()
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_done, stats.offloads_failed) == (0, 1, 1)
        assert (stats.offload_wait.count, stats.offload_run.count) == (2, 2)


def test_time_that_is_up_leaves_a_thread_at_once(threads, caplog):
    """It is not waited for; the log says that it runs on, and the next call waits for it."""
    slow = Slow(2)
    with serving(threads, offload_timeout=0.02) as server:
        items = server.offload_iter(slow.produce)
        with pytest.raises(TimeoutError, match="produce has not returned within"):
            for _ in items:
                wait_until(slow.gate.entered)
        assert "produce runs on after its 0.02 s" in caplog.text
        assert server.stats().offloads_running == 1
        slow.gate.release.set()
        wait_for(server, lambda stats: stats.offloads_failed == 1)
        assert slow.closed.is_set()


def test_iteration_that_no_thread_has_taken_up_never_begins(threads):
    """Another server's call has the thread. Nobody waits for a generator that there is not."""
    gate, begun = Gate(), threading.Event()
    with serving(threads) as one, serving(threads, offload_timeout=0.02) as other, occupied(one, gate):
        with pytest.raises(TimeoutError):
            next(other.offload_iter(begun.set))
        assert other.stats().offloads_failed == 1
        gate.release.set()
        assert one.offload(calls.square, 3) == 9
    assert not begun.is_set()


@pytest.mark.parametrize("leave", [reset, None], ids=["reset", "disconnect"])
def test_client_that_goes_ends_the_iteration_in_a_thread(threads, meeting, leave):
    """Its handler is told when the generator is closed."""
    handler = rows(meeting)
    with serving(threads, handler) as server, connect(server) as client:
        client.sendall(b"9\n")
        meeting.welcome()
        meeting.dismiss(b"one")
        assert receive(client, 4) == b"one\n"
        meeting.welcome()
        [turn] = server._threaded_state.offloads._calls
        if leave is None:
            server.clients[1].disconnect()
        else:
            leave(client)
        until(lambda: turn.work._is_closed)
        meeting.dismiss(b"two")
        meeting.welcome()  # as it closes
        meeting.dismiss()
        assert isinstance(handler.outcomes.get(timeout=GUARD), ConnectionAbortedError)
        assert server.offload(calls.square, 3) == 9
        assert server.stats().offloads_running == 0


def test_stop_ends_an_iteration_in_a_thread(threads):
    """Its caller gets ServerStopping at once. The function is a survivor until its next item, which closes it."""
    slow = Slow(0)
    with serving(threads) as server:
        with calling(lambda: next(server.offload_iter(slow.produce))) as outcome:
            wait_until(slow.gate.entered)
            server.stop(0, 0)
        assert isinstance(outcome[0], ServerStopping)
        [survivor] = server.stop(0, 0.01).survivors
        assert "worker thread" in str(survivor)
        slow.gate.release.set()
        survivor.thread.join(GUARD)
        assert slow.closed.is_set()


def test_stop_ends_a_thread_that_waits_for_its_caller(threads):
    """The caller may never ask for the next item. If it does, it is told."""
    slow = Slow(100)
    with serving(threads) as server:
        items = server.offload_iter(slow.produce)
        assert next(items) == 0
        report = server.shutdown() or server.stop()
        wait_until(slow.closed)
        assert not report.survivors
        with pytest.raises(ServerStopping):
            next(items)
        assert server.stats().offloads_failed == 1


def test_stop_between_two_looks_does_not_end_an_iteration_as_if_it_were_complete():
    """The thread has closed the generator because of the stop, and that is what its caller gets."""
    period, waker = Period(), Waker()
    turn = Turn(Call(period, None, calls.numbers, (9,), {}, nullcontext), 1, None, False, False)
    turn.waker = waker
    work = thread_items.ThreadItems(turn, lambda make: make())
    with running(work.run):
        until(work.has_items)
        period.force()
        work.give_up()
    with pytest.raises(ServerStopping):
        work.result()
    waker.close()


def test_call_that_a_stop_has_given_up_on_its_way_to_a_thread_does_not_begin():
    """The thread that has just taken it up looks."""
    period, begun = Period(), threading.Event()
    period.force()
    with pytest.raises(ServerStopping):
        run_inline(Call(period, None, begun.set, (), {}, nullcontext))
    assert not begun.is_set()
