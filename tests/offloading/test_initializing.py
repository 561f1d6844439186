"""Worker processes that are prepared before their first call."""
from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from contextlib import nullcontext

import pytest

from threaded_echo import ThreadedTCPServer, WorkerDied, WorkerProcesses
from threaded_echo.clients.period import Period
from threaded_echo.offloading.messages import Received
from threaded_echo.offloading.processes import Workers
from threaded_echo.offloading.wire import Disconnected

from .. import calls
from ..conftest import LOOPBACK
from ..tools import GUARD, connect, running, until
from .tools import calling, pickle_call


def serving(executor) -> ThreadedTCPServer:
    """Serve with an executor; leaving the context stops it."""
    return ThreadedTCPServer(LOOPBACK, executor=executor).start()


def test_number_of_processes_is_a_number():
    """Wherever a number of processes is taken, it is, too. Its text tells the initializer."""
    made = WorkerProcesses(3, initializer=calls.load, initargs=[1, 2])
    assert made == 3 and isinstance(made, int)
    assert made.initargs == (1, 2)
    assert repr(made).startswith("WorkerProcesses(3, initializer=<function load")


@pytest.mark.parametrize(("arguments", "keywords", "error"), [
    (("2",), {}, TypeError), ((True,), {}, TypeError), ((0,), {}, ValueError), ((1,), {"initializer": 5}, TypeError),
])
def test_wrong_argument_is_named(arguments, keywords, error):
    """It is an error where it is given."""
    with pytest.raises(error, match="n must|initializer must"):
        WorkerProcesses(*arguments, **keywords)


def test_each_process_calls_the_initializer_once():
    """What it has loaded is there in every call. What it returns stays there."""
    with serving(WorkerProcesses(2, initializer=calls.load, initargs=("model", 5))) as server:
        for _ in range(3):
            assert server.offload(calls.read_loaded)[1] == ["model", 5]


def test_without_an_initializer_it_is_as_the_number():
    """Nothing is called."""
    with serving(WorkerProcesses(1)) as server:
        assert server.offload(calls.read_loaded)[1] == []
        server.executor = 1
        process, _ = server.offload(calls.read_loaded)
        server.executor = WorkerProcesses(1)
        assert server.offload(calls.read_loaded)[0] == process


def test_global_state_of_a_module_stays_in_a_worker():
    """A call finds what an earlier one has left there."""
    with serving(1) as server:
        process = server.offload(os.getpid)
        for number in range(3):
            with pytest.raises(TypeError, match="load returned"):
                server.offload(calls.load, number)
        assert server.offload(calls.read_loaded) == (process, [0, 1, 2])


def test_process_that_replaces_another_calls_the_initializer():
    """The call waits for it."""
    with serving(WorkerProcesses(1, initializer=calls.load, initargs=(7,))) as server:
        before, _ = server.offload(calls.read_loaded)
        os.kill(before, signal.SIGKILL)
        after, loaded = server.offload(calls.read_loaded)
        assert after != before and loaded == [7]


def test_initializer_that_fails_fails_the_start():
    """The error has the initializer's own as its cause, with the worker's traceback, and no process is left."""
    server = ThreadedTCPServer(LOOPBACK, executor=WorkerProcesses(2, initializer=calls.fail, initargs=("no model",)))
    with server, pytest.raises(WorkerDied, match=r"initializer .* LookupError\('no model'\)") as raised:
        server.start()
    assert isinstance(raised.value.__cause__, LookupError)
    assert "in fail" in str(raised.value.__cause__.__cause__)
    assert not multiprocessing.active_children()


def test_initializer_whose_exception_cannot_be_loaded_fails_the_start():
    """The error says what cannot be loaded, and is no other than that of any initializer."""
    executor = WorkerProcesses(1, initializer=calls.fail_with_a_traveller)
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server, pytest.raises(WorkerDied, match="not here"):
        server.start()
    assert not multiprocessing.active_children()


def test_process_that_ends_as_it_tells_of_its_initializer_fails_the_start(monkeypatch):
    """A part of the exception has come."""
    def end(outcome):
        raise Disconnected

    monkeypatch.setattr(Received, "load", end)
    executor = WorkerProcesses(1, initializer=calls.fail, initargs=("no model",))
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server, pytest.raises(WorkerDied, match="as it started"):
        server.start()


def test_initializer_that_exits_fails_the_start():
    """SystemExit does not go on to end this process."""
    executor = WorkerProcesses(1, initializer=calls.leave, initargs=(3,))
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server, pytest.raises(WorkerDied, match="SystemExit"):
        server.start()


def test_initializer_that_ends_its_process_fails_the_start():
    """The process has started already."""
    executor = WorkerProcesses(1, initializer=calls.die, initargs=(3,))
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server, pytest.raises(WorkerDied, match="as it started"):
        server.start()


def test_initializer_that_fails_later_fails_the_calls(tmp_path):
    """As when a process cannot start. The server goes on, and tries again with the next call."""
    path = str(tmp_path / "file")
    with serving(WorkerProcesses(1, initializer=calls.fail_the_second_time, initargs=(path,))) as server:
        os.kill(server.offload(os.getpid), signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerDied, match="not again"):
                server.offload(calls.square, 3)
        os.unlink(path)
        assert server.offload(calls.square, 3) == 9


def test_initializer_that_cannot_be_pickled_is_named():
    """The error says what to do."""
    with ThreadedTCPServer(LOOPBACK, executor=WorkerProcesses(1, initializer=lambda: None)) as server:
        with pytest.raises(TypeError, match="<lambda> cannot be sent .*: use a function of a module"):
            server.start()
    executor = WorkerProcesses(1, initializer=calls.load, initargs=(threading.Lock(),))
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        with pytest.raises(TypeError, match="load cannot be sent .*: its arguments"):
            server.start()


def test_process_that_cannot_start_leaves_nothing_of_its_initializer(monkeypatch):
    """The socket that it would have got is closed. The fixture of every test looks for it."""
    def fail(*_):
        """Be out of processes."""
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", fail)
    one, other = socket.socketpair()
    other.settimeout(GUARD)
    executor = WorkerProcesses(1, initializer=calls.load, initargs=(one,))
    with one, other, ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        with pytest.raises(OSError, match="temporarily"):
            server.start()
        one.close()
        assert other.recv(1) == b""


def test_socket_is_handed_over_to_the_initializer():
    """As to a call."""
    one, other = socket.socketpair()
    other.settimeout(GUARD)
    with one, other, serving(WorkerProcesses(1, initializer=calls.write, initargs=(one, b"hello"))):
        assert other.recv(5) == b"hello"


def test_initializers_run_at_the_same_time(meeting):
    """No process waits for another one's. A client is accepted when all are done."""
    server = ThreadedTCPServer(LOOPBACK, executor=WorkerProcesses(2, initializer=calls.meet,
                                                                  initargs=(meeting.address,)))
    with server, running(server.start):
        assert meeting.welcome() != meeting.welcome()
        meeting.dismiss()
        meeting.dismiss()
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_stop_interrupts_an_initializer(meeting):
    """However long that takes."""
    executor = WorkerProcesses(1, initializer=calls.meet, initargs=(meeting.address,))
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        with calling(server.start) as outcome:
            meeting.welcome()
            server.stop(0)
        assert isinstance(outcome[0], RuntimeError)
    assert not multiprocessing.active_children()


def test_large_arguments_do_not_keep_a_stop_waiting(monkeypatch):
    """The process never reads them: it is still importing the program."""
    monkeypatch.setattr("threaded_echo.offloading.worker.work", calls.say_nothing)
    executor = WorkerProcesses(2, initializer=calls.load, initargs=(bytes(5_000_000),))
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        offloads = server._threaded_state.offloads
        with calling(server.start) as outcome:
            until(lambda: offloads._workers is not None and len(offloads._workers._starting) == 2)
            server.stop(0)
        assert isinstance(outcome[0], RuntimeError)


def test_idle_process_with_another_initializer_is_replaced():
    """The program has set the option anew."""
    workers, period = Workers(), Period()

    def loaded(count: int):
        """Ask a worker."""
        with pickle_call(calls.read_loaded, (), {}) as message:
            return workers.call(message, count, period, nullcontext)[1]

    one, other = (WorkerProcesses(1, initializer=calls.load, initargs=(number,)) for number in (1, 2))
    try:
        assert [loaded(count) for count in (1, one, one, other, 1)] == [[], [1], [1], [2], []]
        assert len(multiprocessing.active_children()) == 1
    finally:
        workers.close()
