"""The worker processes: started, called, killed, ended."""
from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from threaded_echo import WorkerDied
from threaded_echo.offloading import processes as workers
from threaded_echo.offloading.processes import Worker, Workers, pickle_call

from .. import calls
from ..tools import GUARD, running, together


@contextmanager
def pool(count: int = 0) -> Iterator[Workers]:
    """Have workers; end them."""
    made = Workers(threading.RLock())
    try:
        made.start(count)
        yield made
    finally:
        made.close()


def call(made: Workers, function, /, *args, **kwargs):
    """Call in a worker."""
    return made.call(pickle_call(function, args, kwargs), 3)


@contextmanager
def calling(made: Workers, function, *args) -> Iterator[list[object]]:
    """Call in a thread; its outcome is in the list once the context is left."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call(made, function, *args))
        except Exception as error:
            outcome.append(error)

    with running(run):
        yield outcome


def test_worker_is_another_process_that_yields():
    """Spawned: without the descriptors of the server. At a lower priority, and deaf to a terminal's interrupt."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pool(1) as made:
        told = call(made, calls.describe)
        assert os.readlink(f"/proc/self/fd/{listener.fileno()}") not in told["descriptors"]
    assert told["process"] != os.getpid() == told["parent"]
    assert told["niceness"] == min(os.nice(0) + 10, 19)  # there is no more
    assert told["interrupt"] and not told["blocked"]


def test_worker_may_have_processes_of_its_own():
    """As libraries do that compute."""
    with pool(1) as made:
        assert call(made, calls.run_a_process) == "hello\n"


def test_workers_are_used_again():
    """One after the other, by one process."""
    with pool(1) as made:
        assert len({call(made, calls.describe)["process"] for _ in range(3)}) == 1


def test_calls_at_once_have_a_worker_each(meeting):
    """One that is missing is started."""
    with pool(1) as made:
        with calling(made, calls.meet, meeting.address) as one, calling(made, calls.meet, meeting.address) as other:
            assert meeting.welcome() != meeting.welcome()
            meeting.dismiss(b"one")
            meeting.dismiss(b"other")
        assert sorted([*one, *other]) == [b"one", b"other"]


def test_exception_has_the_workers_traceback_as_its_cause():
    """As with the standard library's executors."""
    with pool(1) as made:
        with pytest.raises(LookupError, match="of it") as caught:
            call(made, calls.fail, "of it")
        assert "in fail" in str(caught.value.__cause__)
        assert call(made, calls.square, 2) == 4


def test_call_that_cannot_be_sent_is_a_type_error():
    """With its name and the reason."""
    for function, args in ((lambda: None, ()), (calls.square, (threading.Lock(),))):
        with pytest.raises(TypeError, match="cannot be sent to a worker process"):
            pickle_call(function, args, {})


def test_result_that_cannot_be_loaded_is_a_type_error():
    """And costs no more than its call."""
    with pool(1) as made:
        with pytest.raises(TypeError, match="cannot be loaded: not here"):
            call(made, calls.return_a_traveller)
        assert call(made, calls.square, 2) == 4


def test_module_that_a_worker_cannot_import_is_an_import_error(monkeypatch):
    """At once, with the function's name."""
    module = types.ModuleType("only_here")
    exec("def function(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pool(1) as made, pytest.raises(ImportError, match="only_here.function"):
        call(made, module.function)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_worker_that_is_killed_costs_its_call_only(meeting, number):
    """The other call returns, and the next one works."""
    with pool(2) as made, calling(made, calls.meet, meeting.address) as kept:
        meeting.welcome()
        with calling(made, calls.meet, meeting.address) as lost:
            os.kill(meeting.welcome(), number)
        [error] = lost
        assert isinstance(error, WorkerDied)
        assert f"exit code -{int(number)}" in str(error)
        assert call(made, calls.square, 3) == 9
        meeting.dismiss()
    assert kept == [b"go"]


def test_worker_that_dies_by_itself_is_told_with_its_exit_code():
    """As by os._exit, or a crash in C."""
    with pool(1) as made, pytest.raises(WorkerDied, match="exit code 3"):
        call(made, calls.die, 3)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only the kernel can tell")
def test_death_is_noticed_though_a_forked_child_keeps_the_pipes(meeting):
    """Its descriptors do not end with the worker."""
    with pool(1) as made, pytest.raises(WorkerDied, match="exit code 4"):
        call(made, calls.die_with_a_child, meeting.address)
    meeting.welcome()
    meeting.dismiss()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_child_of_a_worker_keeps_nobody_waiting(meeting):
    """Neither a call that is larger than a pipe, when the worker has died, nor one whose child returns as well."""
    with pool(1) as made:
        os.kill(call(made, calls.fork_and_return, meeting.address), signal.SIGKILL)
        assert call(made, len, bytes(5_000_000)) == 5_000_000
        assert call(made, calls.fork_and_return_twice) == 1
        assert call(made, calls.square, 2) == 4
    meeting.welcome()
    meeting.dismiss()


def test_no_more_workers_than_wanted_are_kept(meeting):
    """However many were needed at once."""
    with pool(1) as made:
        with calling(made, calls.meet, meeting.address), calling(made, calls.meet, meeting.address):
            for _ in range(2):
                meeting.welcome()
            for _ in range(2):
                meeting.dismiss()
        made.call(pickle_call(calls.square, (2,), {}), 1)
        assert len(made._idle) == 1


def test_two_that_start_the_same_workers_start_them_once():
    """The second one waits, and finds them there."""
    with pool() as made:
        together(2, lambda: made.start(2))
        assert len(made._idle) == 2


def test_signals_are_blocked_as_before(monkeypatch):
    """Whatever starting a process does to them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        monkeypatch.setattr("multiprocessing.resource_tracker.ensure_running",
                            lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM}))
        with pool(1):
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGINT, signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_function_is_named_without_its_repr():
    """Which may take long, or fail."""
    class Mute:
        """Says nothing."""

        def __repr__(self) -> str:
            """Fail."""
            raise ValueError("no words")

        def __call__(self) -> None:
            """Do nothing."""

    with pytest.raises(TypeError, match="Mute cannot be sent"):
        pickle_call(Mute(), (), {})


def test_worker_that_died_while_idle_costs_nothing():
    """Its next call begins in a new one, however late the death is noticed."""
    with pool(1) as made:
        for _ in range(10):
            os.kill(call(made, calls.describe)["process"], signal.SIGKILL)
            assert call(made, calls.square, 5) == 25


def test_killing_in_a_loop_mixes_up_no_answers():
    """Every call returns its own result, or raises WorkerDied."""
    over = threading.Event()

    def use() -> tuple[int, int]:
        """Call until the end; count the answers and the deaths."""
        answers = deaths = 0
        while not over.is_set():
            try:
                assert call(made, calls.square, answers) == answers * answers
                answers += 1
            except WorkerDied:
                deaths += 1
        return answers, deaths

    def kill() -> tuple[int, int]:
        """Kill what is idle, what is held, and what takes a call."""
        for _ in range(6):
            with pytest.raises(WorkerDied):
                call(made, calls.die, 1)
            with made._lock:
                victims = [*made._held, *made._idle]
            for victim in victims[:1]:
                victim.kill()
        over.set()
        return 1, 0

    roles = iter([kill, use, use])
    with pool(3) as made:
        counts = together(3, lambda: next(roles)())
    assert all(answers > 0 for answers, _ in counts)


def test_call_that_kills_even_a_new_worker_is_not_tried_for_ever(monkeypatch):
    """One that is too large to be received, for example."""
    monkeypatch.setattr(Worker, "call", refuse)
    with pool() as made, pytest.raises(WorkerDied, match="as it received a call"):
        call(made, calls.square, 1)


def refuse(worker: Worker, message: bytes) -> None:
    """End ahead of a call."""
    worker.kill()
    raise workers._NotBegun


def test_interrupted_call_leaves_its_answer_to_nobody(meeting, monkeypatch):
    """What a signal handler raises ends the worker: the next call must not get the late answer."""
    def interrupt(connections, timeout=None):
        """Stand for a signal that comes while the call runs."""
        if timeout is None:
            meeting.welcome()
            raise KeyboardInterrupt
        return wait(connections, timeout)

    wait = workers.wait
    with pool(1) as made:
        monkeypatch.setattr(workers, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(made, calls.meet, meeting.address)
        monkeypatch.undo()
        assert call(made, calls.square, 6) == 36


def test_worker_that_ends_as_it_starts_is_an_error(monkeypatch):
    """Which says what scripts forget; none of the others is left."""
    monkeypatch.setattr(workers, "work", calls.end_as_it_starts)
    made = Workers(threading.RLock())
    with pytest.raises(WorkerDied, match="__main__"):
        made.start(2)
    with pytest.raises(WorkerDied, match="__main__"):
        call(made, calls.square, 1)


def test_worker_that_never_gets_ready_is_an_error(monkeypatch):
    """After a time, and it does not stay."""
    monkeypatch.setattr(workers, "work", calls.say_nothing)
    monkeypatch.setattr(workers, "_START", 0.01)
    with pytest.raises(WorkerDied, match="is not ready after"), pool(1):
        pass


def children() -> set[str]:
    """Find the children of this process, those included that nobody has collected."""
    return {child for tasks in Path("/proc/self/task").glob("*/children") for child in tasks.read_text().split()}


def test_worker_that_cannot_be_watched_is_not_left(monkeypatch):
    """Out of descriptors."""
    def fail(*_):
        """Fail."""
        raise OSError(24, "Too many open files")

    if hasattr(os, "pidfd_open"):
        monkeypatch.setattr(os, "pidfd_open", fail)
        before = children()
        for _ in range(5):
            with pytest.raises(OSError, match="Too many"):
                Worker()
        assert children() == before


def test_worker_process_that_cannot_start_leaves_nothing(monkeypatch):
    """Neither descriptors nor a worker that is held."""
    def fail(*_):
        """Fail."""
        raise OSError(11, "Resource temporarily unavailable")

    made = Workers(threading.RLock())
    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", fail)
    with pytest.raises(OSError, match="temporarily"):
        made.start(2)
    assert not made._held


def test_given_up_calls_end(meeting):
    """Those that run, and those that come later, until it is opened again."""
    with pool(1) as made:
        with calling(made, calls.meet, meeting.address) as lost:
            meeting.welcome()
            made.give_up()
        assert isinstance(lost[0], WorkerDied)
        with pytest.raises(WorkerDied):
            call(made, calls.meet, meeting.address)
        made.reopen()
        assert call(made, calls.square, 7) == 49


def test_interpreters_end_kills_all(meeting, monkeypatch):
    """Those that are held, and those that are idle."""
    monkeypatch.setattr(workers, "_all", weakref.WeakSet())
    monkeypatch.setattr(workers, "_exiting", False)
    with pool(2) as made:
        with calling(made, calls.meet, meeting.address) as lost:
            meeting.welcome()
            workers._kill_all()
        assert isinstance(lost[0], WorkerDied)
        [idle] = made._idle
        assert workers.wait([idle._death], GUARD)


def test_forked_process_forgets_all(monkeypatch):
    """And does not wait for locks that threads of its parent hold."""
    monkeypatch.setattr(workers, "_all", weakref.WeakSet())
    monkeypatch.setattr(workers, "_books", books := workers._books)
    with pool(1) as made:
        [worker] = made._idle
        workers._forget_all()
        assert workers._books is not books
        assert not made._idle
        worker.kill()
        worker.end()
        assert worker._process.is_alive()
        assert call(made, calls.square, 2) == 4
        worker._process.kill()
        worker._process.join()


def test_interrupted_wait_for_a_worker_ends_it(monkeypatch):
    """What it says when it is ready must not be taken for an answer."""
    def interrupt(connections, timeout=None):
        """Stand for a signal that comes while the worker starts."""
        if timeout == workers._START:
            raise KeyboardInterrupt
        return wait(connections, timeout)

    wait = workers.wait
    with pool() as made:
        monkeypatch.setattr(workers, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(made, calls.square, 1)
        monkeypatch.undo()
        assert call(made, calls.square, 2) == 4


def test_worker_that_says_something_else_is_not_used(monkeypatch):
    """It is ended, and the call begins in another one."""
    with pool(1) as made:
        monkeypatch.setattr(workers, "BEGUN", b"another word")
        with pytest.raises(WorkerDied, match="as it received"):
            call(made, calls.square, 1)


def test_stop_as_a_worker_is_taken_ends_it():
    """In a signal handler, say, that comes in between."""
    class Held(set):
        """Where a stop comes."""

        def add(self, worker):
            """Let it come now."""
            super().add(worker)
            made.give_up()

    with pool(1) as made:
        made._held = Held()
        with pytest.raises(WorkerDied, match="have ended"):
            call(made, calls.square, 1)


def test_start_that_was_given_up_leaves_nothing(monkeypatch):
    """A stop came first."""
    monkeypatch.setattr(workers, "work", calls.say_nothing)
    made = Workers(threading.RLock())
    made.give_up()
    with pytest.raises(WorkerDied):
        made.start(2)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_start_that_is_over_starts_no_more(monkeypatch, asked):
    """A stop came when no worker was known yet that it could have ended, and need not wait for any."""
    answers = iter([False] * asked + [True] * 9)
    monkeypatch.setattr(workers, "work", calls.say_nothing)
    with pytest.raises(WorkerDied):
        Workers(threading.RLock()).start(2, lambda: next(answers))


def test_idle_worker_that_does_not_return_is_killed(monkeypatch):
    """A thread that a call has left does not keep it."""
    monkeypatch.setattr(workers, "_END", 0.2)
    with pool(1) as made:
        call(made, calls.leave_a_thread)


def test_pidfd_is_looked_for(monkeypatch):
    """A kernel may not have what the library has."""
    def fail(*_):
        """Fail."""
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", fail, raising=False)
    assert not workers.has_pidfd()
    monkeypatch.delattr(os, "pidfd_open")
    assert not workers.has_pidfd()


@pytest.mark.parametrize("missing", ["pidfd", "sigmask"])
def test_platform_without_it_will_do(monkeypatch, missing):
    """Guarded by what is there, not by the platform's name."""
    monkeypatch.setattr(workers, "_HAS_PIDFD", missing != "pidfd")
    if missing == "sigmask":
        monkeypatch.delattr(signal, "pthread_sigmask")
    with pool(1) as made:
        assert call(made, calls.square, 8) == 64
        with pytest.raises(WorkerDied, match="exit code 3"):
            call(made, calls.die, 3)
