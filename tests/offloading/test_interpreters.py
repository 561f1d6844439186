"""Calls in the interpreters of an InterpreterPoolExecutor, which Python has from 3.14 on."""
from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import InterpreterPoolExecutor
from concurrent.interpreters import NotShareableError

import pytest

from threaded_echo import ServerStopping, ThreadedTCPServer
from threaded_echo.offloading.call import Call

from .. import calls
from ..tools import LOOPBACK, connect
from .tools import calling, meeting_server, reset, wait_for


@pytest.fixture
def server() -> Iterator[ThreadedTCPServer]:
    """Have a server with one interpreter to compute in."""
    with InterpreterPoolExecutor(1) as executor, ThreadedTCPServer(LOOPBACK, executor=executor) as made:
        yield made


@pytest.mark.parametrize("function, arguments", [
    (calls.same, (calls.return_a_lock(),)), (calls.return_a_lock, ()), (calls.raise_picky, ()),
    (calls.Silent(1, 2).__str__, ()),
], ids=["argument", "result", "exception", "function"])
def test_what_cannot_be_sent_is_an_error_that_names_the_function(server, function, arguments):
    """The interpreter is there for the next call."""
    with pytest.raises(NotShareableError) as caught:
        server.offload(function, *arguments)
    [note] = caught.value.__notes__
    assert note.startswith(f"In a call of tests.calls.{function.__qualname__}: ")
    assert isinstance(caught.value, TypeError)
    assert server.offload(calls.square, 3) == 9


@pytest.mark.parametrize("function, argument, kind", [(calls.fail, "of it", LookupError), (calls.leave, 3, SystemExit)])
def test_exception_is_raised_in_the_handler(server, function, argument, kind):
    """With what the interpreter says as its cause."""
    with pytest.raises(kind, match=str(argument)) as caught:
        server.offload(function, argument)
    assert kind.__name__ in str(caught.value.__cause__)


def test_interpreter_has_modules_of_its_own(server):
    """In the same process; and each call in it finds them as the one before has left them."""
    server.offload(calls.keep, "once")
    assert server.offload(calls.read_loaded) == (os.getpid(), ["once"])
    assert calls.read_loaded() == (os.getpid(), [])


def test_iteration_is_refused(server):
    """The error says which executors can."""
    with pytest.raises(TypeError, match="WorkerThreads, or None.*InterpreterPoolExecutor returns a result"):
        server.offload_iter(calls.numbers, 3)


def test_call_whose_time_is_up_runs_on_and_keeps_its_place(meeting, monkeypatch, caplog):
    """Nothing ends it. That is logged."""
    caplog.set_level(logging.WARNING, "threaded_echo")
    has_begun = threading.Event()
    monkeypatch.setattr(Call, "is_late", lambda _: has_begun.is_set())
    monkeypatch.setattr(Call, "seconds_left", lambda _: 0.001)
    with meeting_server("interpreters", meeting) as server:
        with calling(server.offload_within, 0.05, calls.meet, meeting.address) as outcome:
            meeting.welcome()
            has_begun.set()
        assert isinstance(outcome[0], TimeoutError)
        assert server.stats().offloads_running == 1
        [record] = caplog.records
        assert "tests.calls.meet runs on after its 0.05 s" in record.getMessage()
        meeting.dismiss()
        wait_for(server, lambda stats: not stats.offloads_running)


def test_stop_gives_a_running_call_up(meeting):
    """The pool is the program's, and goes on."""
    with InterpreterPoolExecutor(1) as executor:
        with ThreadedTCPServer(LOOPBACK, executor=executor) as server:
            with calling(server.offload, calls.meet, meeting.address) as outcome:
                meeting.welcome()
                assert server.stop(0).clean
            assert isinstance(outcome[0], ServerStopping)
            assert server.stats().offloads_running == 0
        meeting.dismiss()
        with ThreadedTCPServer(LOOPBACK, executor=executor) as another:
            assert another.offload(calls.square, 3) == 9


def test_handler_whose_client_has_gone_is_told(meeting):
    """The function is left to end, and keeps its place until then."""
    with meeting_server("interpreters", meeting) as server:
        client = connect(server)
        client.sendall(b"\n")
        meeting.welcome()
        reset(client)
        wait_for(server, lambda stats: not stats.live)
        assert server.stats().offloads_running == 1
        meeting.dismiss()
        wait_for(server, lambda stats: not stats.offloads_running)
