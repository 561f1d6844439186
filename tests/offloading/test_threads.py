"""WorkerThreads as an executor of a program's: calls, the end, the priority, the warning."""
from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed

import pytest

from threaded_echo import WorkerThreads
from threaded_echo.offloading import crew, threads
from threaded_echo.offloading.thread_work import ThreadCall
from threaded_echo.transport.waker import Waker

from .. import calls
from ..system.programs import CHECKOUT
from ..tools import GUARD, Gate, together, until, wait_until
from .tools import stay


def names_of_threads() -> list[str]:
    """Name the worker threads that run."""
    return [thread.name for thread in threading.enumerate() if "worker thread" in thread.name]


def test_calls_return_and_raise():
    """What a program submits ends as in any executor, also if that is SystemExit."""
    with WorkerThreads(2) as executor:
        assert isinstance(executor, Executor)
        assert executor.submit(calls.keywords, fn=1, self=2).result(GUARD) == {"fn": 1, "self": 2}
        assert list(executor.map(calls.square, range(20))) == [number * number for number in range(20)]
        assert {each.result() for each in as_completed([executor.submit(calls.square, 3)])} == {9}
        with pytest.raises(LookupError, match="of it"):
            executor.submit(calls.fail, "of it").result(GUARD)
        with pytest.raises(SystemExit):
            executor.submit(calls.leave, 3).result(GUARD)
        assert executor.submit(calls.square, 2).result(GUARD) == 4
        assert repr(executor) == "<WorkerThreads(2)>"
        assert len(names_of_threads()) == 2
    assert not names_of_threads()


def test_so_many_calls_run_at_once():
    """The others wait until one of them has ended."""
    barrier, over = threading.Barrier(3), threading.Event()
    with WorkerThreads(2) as executor:
        futures = [executor.submit(barrier.wait, GUARD) for _ in range(2)]
        futures.append(executor.submit(over.set))
        barrier.wait(GUARD)
        assert over.wait(GUARD)
        assert sorted(future.result(GUARD) for future in futures[:2]) != []


@pytest.mark.parametrize(("wrong", "error", "match"), [
    ({"n": 0}, ValueError, "at least one"), ({"n": True}, TypeError, "number of threads"),
    ({"n": "2"}, TypeError, "number of threads"), ({"n": 1, "initializer": 3}, TypeError, "initializer"),
])
def test_wrong_arguments_are_named(wrong, error, match):
    """At once, not in a thread later."""
    with pytest.raises(error, match=match):
        WorkerThreads(**wrong)


def test_shutdown_does_what_was_submitted():
    """Afterwards a call is a RuntimeError, as in concurrent.futures."""
    gate, executor = Gate(), WorkerThreads(1)
    first, second = executor.submit(stay, gate), executor.submit(calls.square, 3)
    wait_until(gate.entered)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(calls.square, 1)
    gate.release.set()
    executor.shutdown()
    assert (first.result(0), second.result(0)) == (None, 9)
    WorkerThreads(1).shutdown()  # which never had a thread


def test_shutdown_can_cancel():
    """What has begun is waited for."""
    gate, executor = Gate(), WorkerThreads(1)
    first, second = executor.submit(stay, gate), executor.submit(calls.square, 3)
    wait_until(gate.entered)
    executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled() and not first.done()
    gate.release.set()
    executor.shutdown(cancel_futures=True)
    assert first.done()


def test_cancelled_call_never_begins():
    """Its thread goes on with the next one."""
    gate, begun = Gate(), threading.Event()
    with WorkerThreads(1) as executor:
        executor.submit(stay, gate)
        future = executor.submit(begun.set)
        assert future.cancel()
        gate.release.set()
        executor.submit(calls.square, 1).result(GUARD)
    assert not begun.is_set()
    with pytest.raises(CancelledError):
        future.result(0)


def test_shutdown_in_one_of_the_threads_does_not_wait_for_it():
    """It would wait for itself."""
    executor = WorkerThreads(2)
    assert executor.submit(executor.shutdown).result(GUARD) is None
    executor.shutdown()


def test_initializer_runs_in_each_thread():
    """Before the first call, with its arguments."""
    local, barrier = threading.local(), threading.Barrier(2)

    def prepare(value: int) -> None:
        """Keep something in the thread."""
        local.value = value

    def read() -> int:
        """Return it, in both threads at once."""
        barrier.wait(GUARD)
        return local.value

    with WorkerThreads(2, initializer=prepare, initargs=(7,)) as executor:
        assert [future.result(GUARD) for future in [executor.submit(read) for _ in range(2)]] == [7, 7]


def test_initializer_that_fails_fails_the_calls(caplog):
    """Those that wait, and all later ones."""
    gate = Gate()

    def fail() -> None:
        """Fail when there is a call."""
        wait_until(gate.release)
        raise LookupError("no model")

    with WorkerThreads(1, initializer=fail) as executor:
        waiting = executor.submit(calls.square, 1)
        cancelled = executor.submit(calls.square, 2)
        cancelled.cancel()
        gate.release.set()
        with pytest.raises(BrokenExecutor, match="initializer"):
            waiting.result(GUARD)
        with pytest.raises(BrokenExecutor, match="initializer"):
            executor.submit(calls.square, 1)
    assert "no model" in caplog.text and caplog.records[0].levelno == logging.CRITICAL


def test_thread_that_cannot_start_is_missed_only_if_it_is_the_first(monkeypatch, caplog):
    """The others do the work."""
    class Scarce(crew._Thread):
        """There is a last one."""

        def start(self) -> None:
            """Fail beyond that."""
            if not left:
                raise RuntimeError("can't start new thread")
            left.pop()
            super().start()

    left: list[int] = []
    monkeypatch.setattr(crew, "_Thread", Scarce)
    with WorkerThreads(3) as executor:
        with pytest.raises(RuntimeError, match="start new thread"):
            executor.submit(calls.square, 1)
        left.extend([1, 1])
        assert executor.submit(calls.square, 3).result(GUARD) == 9
        assert len(names_of_threads()) == 2
    assert "only 2 of 3" in caplog.text


def test_first_calls_of_several_threads_start_the_threads_once():
    """Each of them finds the same."""
    with WorkerThreads(2) as executor:
        assert together(8, lambda: executor.submit(calls.square, 3).result(GUARD)) == [9] * 8
        assert len(names_of_threads()) == 2


def test_call_as_the_threads_are_told_to_return_starts_others(monkeypatch):
    """A server stops just then, for which it was the last call."""
    with WorkerThreads(1) as executor:
        assert executor.submit(calls.square, 2).result(GUARD) == 4
        found, start = executor._crew, executor.start

        def late() -> crew.Crew:
            """Find the threads, which then return."""
            monkeypatch.undo()
            found.end()
            return found

        monkeypatch.setattr(executor, "start", late)
        assert executor.submit(calls.square, 3).result(GUARD) == 9
        assert start() is executor._crew is not found


def test_dropped_executor_ends_its_threads():
    """Nothing that they hold leads back to it."""
    executor = WorkerThreads(2)
    executor.submit(calls.square, 2).result(GUARD)
    dropped = weakref.ref(executor)
    del executor
    gc.collect()
    assert dropped() is None
    until(lambda: not names_of_threads())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_threads_have_a_lower_priority():
    """That of the process, and of its other threads, stays."""
    def niceness() -> int:
        """Return that of the calling thread."""
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = os.getpriority(os.PRIO_PROCESS, os.getpid())
    with WorkerThreads(1) as executor:
        assert executor.submit(niceness).result(GUARD) == min(before + crew.NICENESS, 19)
        with WorkerThreads(1) as inner:
            # A thread inherits the priority of the one that starts it.
            assert executor.submit(inner.submit, niceness).result(GUARD).result(GUARD) == min(
                before + crew.NICENESS, 19)
    assert niceness() == os.getpriority(os.PRIO_PROCESS, os.getpid()) == before


@pytest.mark.parametrize("what", ["not allowed", "not there"])
def test_threads_work_without_a_lower_priority(monkeypatch, what):
    """A sandbox forbids it, or the platform has none for threads."""
    def forbid(*arguments: int) -> None:
        """Fail."""
        raise PermissionError(1, "Operation not permitted")

    if what == "not allowed":
        monkeypatch.setattr(os, "setpriority", forbid)
    else:
        monkeypatch.setattr(crew, "_is_linux", False)
    with WorkerThreads(1) as executor:
        assert executor.submit(calls.square, 3).result(GUARD) == 9


@pytest.mark.parametrize("has_gil", [True, False])
def test_warning_with_the_gil_is_given_once(monkeypatch, has_gil):
    """Without it there is nothing to warn of. It names the line that has made the object."""
    monkeypatch.setattr(threads, "has_gil", lambda: has_gil)
    monkeypatch.setattr(threads, "warned", threading.Event())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            WorkerThreads(1)
    assert len(found) == has_gil
    if has_gil:
        assert found[0].category is RuntimeWarning and found[0].filename == __file__
        assert "worker processes" in str(found[0].message)


def run_script(script: str) -> str:
    """Run a script in a fresh interpreter; return what it prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True,
                          timeout=GUARD, cwd=CHECKOUT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_end_of_the_interpreter_waits_for_what_was_submitted():
    """As with the standard library's executors."""
    assert run_script("""
import threading
from threaded_echo import WorkerThreads
executor = WorkerThreads(1)
for number in range(1000):
    executor.submit(abs, number)
executor.submit(print, "done")
""") == "done\n"


def test_end_of_the_interpreter_ends_the_threads_of_this_process_only(monkeypatch):
    """A forked child has those of its parent in its list. What a server has left is not waited for."""
    gate, waker = Gate(), Waker()
    with WorkerThreads(1) as executor, WorkerThreads(1) as other, WorkerThreads(1) as parents:
        for each in (executor, other, parents):
            each.submit(calls.square, 2).result(GUARD)
        call = ThreadCall(lambda: stay(gate), waker)
        other.put(call)
        wait_until(gate.entered)
        assert call.leave(lambda: None)
        monkeypatch.setattr(parents._crew, "_process", 0)
        monkeypatch.setattr(crew, "EXIT_TIMEOUT", GUARD)
        crew._finish()
        assert len(names_of_threads()) == 2
        monkeypatch.undo()
        assert parents.submit(calls.square, 3).result(GUARD) == 9
        gate.release.set()
    waker.close()


def test_function_that_never_returns_does_not_keep_the_interpreter_from_ending():
    """What waits behind it is lost."""
    assert run_script("""
import threading
from threaded_echo import WorkerThreads
from threaded_echo.offloading import crew
crew.EXIT_TIMEOUT = 0.1
executor = WorkerThreads(1)
executor.submit(threading.Event().wait)
executor.submit(print, "done")
""") == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_process_has_threads_of_its_own():
    """Those of the parent are not there."""
    with WorkerThreads(1) as executor:
        assert executor.submit(calls.square, 2).result(GUARD) == 4
        child = os.fork()
        if child == 0:
            try:
                os._exit(executor.submit(calls.square, 3).result(GUARD))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert executor.submit(calls.square, 4).result(GUARD) == 16


def test_callback_that_exits_does_not_end_the_thread(caplog):
    """There may be no other one."""
    def leave(_: object) -> None:
        """Exit, in the thread."""
        calls.leave(3)

    gate = Gate()
    with WorkerThreads(1) as executor:
        future = executor.submit(stay, gate)
        future.add_done_callback(leave)
        gate.release.set()
        assert executor.submit(calls.square, 3).result(GUARD) == 9
    assert "SystemExit" in caplog.text
