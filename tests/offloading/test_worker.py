"""One worker process: started, called, killed, collected."""
from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
import sys
import termios
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from threaded_echo import ServerStopping, WorkerDied
from threaded_echo.clients.period import Period
from threaded_echo.offloading import worker
from threaded_echo.offloading.processes import Workers
from threaded_echo.offloading.worker import Worker

from .. import calls
from ..tools import until
from .tools import call_in, calling, pool


def test_worker_is_another_process_that_yields():
    """It has none of the server's descriptors and a lower priority, and it ignores a terminal's interrupt."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pool(1) as workers:
        found = call_in(workers, calls.describe)
        assert os.readlink(f"/proc/self/fd/{listener.fileno()}") not in found["descriptors"]
    assert found["process"] != os.getpid() == found["parent"]
    assert found["niceness"] == min(os.nice(0) + 10, 19)
    assert found["interrupt"] and not found["blocked"]


def test_worker_may_have_processes_of_its_own():
    """Libraries that compute start some."""
    with pool(1) as workers:
        assert call_in(workers, calls.run_a_process) == "hello\n"


def test_exception_has_the_workers_traceback_as_its_cause():
    """The standard library's executors do the same."""
    with pool(1) as workers:
        with pytest.raises(LookupError, match="of it") as raised:
            call_in(workers, calls.fail, "of it")
        assert "in fail" in str(raised.value.__cause__)
        assert call_in(workers, calls.square, 2) == 4


def test_result_that_cannot_be_loaded_is_a_type_error():
    """It costs this call only: the worker is used again."""
    with pool(1) as workers:
        with pytest.raises(TypeError, match="cannot be loaded: not here"):
            call_in(workers, calls.return_a_traveller)
        assert call_in(workers, calls.square, 2) == 4


def test_module_that_a_worker_cannot_import_is_an_import_error(monkeypatch):
    """The error comes at once, and has the function's name."""
    module = types.ModuleType("only_here")
    exec("def function(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pool(1) as workers, pytest.raises(ImportError, match="only_here.function"):
        call_in(workers, module.function)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_worker_that_is_killed_costs_its_call_only(meeting, number):
    """The call in another worker returns, and the next call works."""
    with pool(2) as workers, calling(call_in, workers, calls.meet, meeting.address) as kept:
        meeting.welcome()
        with calling(call_in, workers, calls.meet, meeting.address) as lost:
            os.kill(meeting.welcome(), number)
        [error] = lost
        assert isinstance(error, WorkerDied)
        assert f"exit code -{int(number)}" in str(error)
        assert call_in(workers, calls.square, 3) == 9
        meeting.dismiss()
    assert kept == [b"go"]


def test_worker_that_ends_in_a_call_is_reported_with_its_exit_code():
    """It may have called os._exit, or crashed in C."""
    with pool(1) as workers, pytest.raises(WorkerDied, match="exit code 3"):
        call_in(workers, calls.die, 3)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only the kernel can report it")
def test_death_is_noticed_though_a_forked_child_keeps_the_pipes(meeting):
    """The pipes do not end with the worker."""
    with pool(1) as workers, pytest.raises(WorkerDied, match="exit code 4"):
        call_in(workers, calls.die_with_a_child, meeting.address)
    meeting.welcome()
    meeting.dismiss()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_child_of_a_worker_keeps_nobody_waiting(meeting):
    """A call that is larger than a pipe notices the worker's death, and a child that returns as well does no harm."""
    with pool(1) as workers:
        os.kill(call_in(workers, calls.fork_and_return, meeting.address), signal.SIGKILL)
        assert call_in(workers, len, bytes(5_000_000)) == 5_000_000
        assert call_in(workers, calls.fork_and_return_twice) == 1
        assert call_in(workers, calls.square, 2) == 4
    meeting.welcome()
    meeting.dismiss()


def test_transfer_is_given_up_if_the_process_has_ended():
    """A process that it has forked may keep the other end open."""
    with pool(1) as workers:
        [made] = workers._idle
        assert not made._has_no_time()
        made.end()
        assert made._has_no_time()


def test_signals_are_blocked_as_before(monkeypatch):
    """multiprocessing changes the mask when it starts a process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        monkeypatch.setattr("multiprocessing.resource_tracker.ensure_running",
                            lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM}))
        with pool(1):
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGINT, signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_interrupted_call_gives_its_answer_to_nobody(meeting, monkeypatch):
    """What a signal handler raises ends the worker, so that the next call does not get the late answer."""
    def interrupt(ends, seconds, *rest):
        """Raise as a signal handler does while the call runs."""
        if seconds is None:
            meeting.welcome()
            raise KeyboardInterrupt
        return look(ends, seconds, *rest)

    look = worker.look
    with pool(1) as workers:
        monkeypatch.setattr(worker, "look", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call_in(workers, calls.meet, meeting.address)
        monkeypatch.undo()
        assert call_in(workers, calls.square, 6) == 36


def test_interrupted_wait_for_a_worker_ends_it(monkeypatch):
    """What it sends when it is ready must not be taken for an answer."""
    def interrupt(ends, seconds, *rest):
        """Raise as a signal handler does while the worker starts."""
        if seconds == worker.START_TIMEOUT:
            raise KeyboardInterrupt
        return look(ends, seconds, *rest)

    look = worker.look
    with pool() as workers:
        monkeypatch.setattr(worker, "look", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call_in(workers, calls.square, 1)
        monkeypatch.undo()
        assert call_in(workers, calls.square, 2) == 4


def test_worker_that_ends_as_it_starts_is_an_error(monkeypatch):
    """The error says what scripts forget. None of the other workers is left."""
    monkeypatch.setattr(worker, "work", calls.end_as_it_starts)
    workers = Workers()
    with pytest.raises(WorkerDied, match="__main__"):
        workers.start(2, Period(), nullcontext)
    with pytest.raises(WorkerDied, match="__main__"):
        call_in(workers, calls.square, 1)


def test_worker_that_is_never_ready_is_an_error(monkeypatch):
    """The wait for it has an end, and the worker is killed."""
    monkeypatch.setattr(worker, "work", calls.say_nothing)
    monkeypatch.setattr(worker, "START_TIMEOUT", 0.01)
    with pytest.raises(WorkerDied, match="is not ready after"), pool(1):
        pass


LARGE = 20_000_000


def test_worker_that_dies_in_the_middle_of_a_large_call_is_reported():
    """It has begun to unpickle, and may have done anything: the call is not tried again."""
    with pool(1) as workers:
        with pytest.raises(WorkerDied, match="exit code 7"):
            call_in(workers, calls.same, [calls.Deadly(), bytes(LARGE)])
        assert call_in(workers, calls.square, 2) == 4


def test_worker_that_dies_in_the_middle_of_a_large_result_is_reported():
    """A part of it has been received."""
    with pool(1) as workers:
        with pytest.raises(WorkerDied, match="exit code -9"):
            call_in(workers, calls.return_and_be_killed, LARGE)
        assert call_in(workers, calls.square, 2) == 4


@contextmanager
def sending(workers: Workers, period: Period) -> Iterator[tuple[Worker, list[Any]]]:
    """Be in the middle of a large call to a worker that does not read; have its outcome afterwards."""
    [stuck] = workers._idle
    os.kill(stuck._process.pid, signal.SIGSTOP)
    with calling(call_in, workers, len, bytes(LARGE), period=period) as outcome:
        until(lambda: unread_by(stuck))
        yield stuck, outcome


def unread_by(stuck: Worker) -> int:
    """Count the bytes that a worker has not read."""
    number = bytearray(4)
    fcntl.ioctl(stuck._channel.fileno(), termios.TIOCOUTQ, number)
    return int.from_bytes(number, sys.byteorder)


def test_worker_that_dies_as_it_does_not_read_has_not_begun():
    """The call is tried again in another one."""
    with pool(1) as workers, sending(workers, Period()) as (stuck, outcome):
        stuck.kill()
    assert outcome == [LARGE]


def test_stop_ends_a_call_to_a_worker_that_does_not_read():
    """Its thread does not wait for ever."""
    period = Period()
    with pool(1) as workers, sending(workers, period) as (_, outcome):
        period.force()
        workers.give_up()
    assert isinstance(outcome[0], ServerStopping)


def test_result_whose_loading_is_interrupted_ends_the_worker():
    """A signal handler has raised: what is left of the result must not be taken for an answer."""
    with pool(1) as workers:
        with pytest.raises(KeyboardInterrupt):
            call_in(workers, calls.return_interrupting)
        assert call_in(workers, calls.square, 2) == 4


def children() -> set[str]:
    """Find the children of this process, zombies included."""
    return {child for tasks in Path("/proc/self/task").glob("*/children") for child in tasks.read_text().split()}


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are watched by a pidfd")
def test_worker_that_cannot_be_watched_is_not_left(monkeypatch):
    """The process has started when there is no descriptor for the pidfd."""
    def fail(*_):
        """Be out of descriptors."""
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(worker, "_HAS_PIDFD", True)  # whatever a sandbox allows
    monkeypatch.setattr(os, "pidfd_open", fail)
    before = children()
    for _ in range(5):
        with pytest.raises(OSError, match="Too many"):
            Worker()
    assert children() == before


def test_worker_process_that_cannot_start_leaves_nothing(monkeypatch):
    """It is not counted as held, and its pipe is closed."""
    def fail(*_):
        """Be out of processes."""
        raise OSError(11, "Resource temporarily unavailable")

    workers = Workers()
    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", fail)
    with pytest.raises(OSError, match="temporarily"):
        workers.start(2, Period(), nullcontext)
    assert not workers._held


def test_idle_worker_that_does_not_return_is_killed(monkeypatch):
    """A thread that a call has left behind keeps the process from ending, but not the server."""
    monkeypatch.setattr("threaded_echo.offloading.processes.END_TIMEOUT", 0.2)
    with pool(1) as workers:
        call_in(workers, calls.leave_a_thread)
        [process] = multiprocessing.active_children()
        [idle] = workers._idle
    assert idle.exitcode == -signal.SIGKILL
    assert process not in multiprocessing.active_children()


def test_pidfd_is_used_only_if_the_kernel_has_it(monkeypatch):
    """A kernel may lack what the library has, and a library what the kernel has."""
    def fail(*_):
        """Be an older kernel."""
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", fail, raising=False)
    assert not worker.has_pidfd()
    monkeypatch.delattr(os, "pidfd_open")
    assert not worker.has_pidfd()


@pytest.mark.parametrize("missing", ["pidfd", "sigmask"])
def test_platform_without_it_has_workers(monkeypatch, missing):
    """The code asks for what it needs, not for the platform's name."""
    if missing == "pidfd":
        monkeypatch.setattr(worker, "_HAS_PIDFD", False)
    else:
        monkeypatch.delattr(signal, "pthread_sigmask")
    with pool(1) as workers:
        assert call_in(workers, calls.square, 8) == 64
        with pytest.raises(WorkerDied, match="exit code 3"):
            call_in(workers, calls.die, 3)


def test_forked_process_has_a_fresh_lock():
    """Another thread's would never be released there."""
    lock = worker._children_lock
    try:
        worker._renew_lock()
        assert worker._children_lock is not lock
        assert isinstance(worker._children_lock, type(threading.RLock()))
    finally:
        worker._children_lock = lock


def test_process_that_is_just_ending_is_waited_for(monkeypatch):
    """Its sentinel is readable a moment before the process has ended."""
    answers = []

    def is_running(made):
        """Be running at the first look."""
        answers.append(made)
        return len(answers) == 1

    with pool(1) as workers:
        monkeypatch.setattr(Worker, "_is_running", is_running)
        assert call_in(workers, calls.square, 3) == 9
    assert len(answers) == 2
