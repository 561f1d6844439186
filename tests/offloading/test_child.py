"""The worker's side, as far as it can be called in this process. The rest is seen from `test_worker`."""
from __future__ import annotations

import sys
import types

import pytest

from threaded_echo.offloading.child import run_call
from threaded_echo.offloading.messages import CALL, RESULT, Message, Received, pickle_call
from threaded_echo.offloading.wire import HEADER, Disconnected

from .. import calls
from .tools import channels


def outcome_of(message: Message) -> tuple[bool, object, str]:
    """Run a call as a worker does. Return whether it succeeded, its result or exception, and the traceback."""
    with channels() as (server, worker), message:
        message.send(server)
        with Received(worker) as call, run_call(call) as reply:
            reply.send(worker)
        with Received(server) as received:
            return (True, received.load(), "") if received.kind == RESULT else (False, *received.load())


def outcome(function, /, *args, **kwargs):
    """Pickle a call and run it."""
    return outcome_of(pickle_call(function, args, kwargs))


def test_result_comes_back():
    """Keywords may have any name."""
    assert outcome(calls.square, 12) == (True, 144, "")
    assert outcome(calls.keywords, function=1, self=2) == (True, {"function": 1, "self": 2}, "")


def test_exception_comes_back_with_its_traceback():
    """The traceback has the lines where it was raised."""
    succeeded, error, text = outcome(calls.fail, "of it")
    assert not succeeded
    assert (type(error), error.args) == (LookupError, ("of it",))
    assert "in fail" in text


def test_exit_of_a_call_comes_back():
    """The handler's thread raises SystemExit, as if the function had been called there."""
    succeeded, error, _ = outcome(calls.leave, 3)
    assert not succeeded
    assert (type(error), error.code) == (SystemExit, 3)


def test_module_that_is_not_there_is_an_import_error(monkeypatch):
    """The error has the function's name."""
    module = types.ModuleType("only_here")
    exec("def function(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    call = pickle_call(module.function, (), {})
    monkeypatch.delitem(sys.modules, "only_here")
    succeeded, error, text = outcome_of(call)
    assert not succeeded
    assert isinstance(error, ImportError)
    assert "only_here.function" in str(error)
    assert "ModuleNotFoundError" in text


def test_result_that_cannot_be_sent_is_a_type_error():
    """The error has the function's name and the reason."""
    succeeded, error, _ = outcome(calls.return_a_lock)
    assert not succeeded
    assert isinstance(error, TypeError)
    assert "return_a_lock returned" in str(error) and "lock" in str(error)


def test_exception_whose_text_cannot_be_made_is_named():
    """The name of its class is known all the same."""
    succeeded, error, _ = outcome(calls.raise_silent)
    assert not succeeded
    assert isinstance(error, TypeError)
    assert "Silent" in str(error)


def test_exception_that_cannot_be_unpickled_is_described():
    """A TypeError comes in its place, with its text and its traceback."""
    succeeded, error, text = outcome(calls.raise_picky)
    assert not succeeded
    assert isinstance(error, TypeError)
    assert "Picky: 1 and 2" in str(error)
    assert "in raise_picky" in text


def test_call_that_does_not_come_whole_is_no_call():
    """The server has ended as it was sending, and nobody waits for an outcome."""
    with channels() as (server, worker), pickle_call(calls.same, (bytes(100_000),), {}) as message:
        server._socket.sendall(b"".join((HEADER.pack(CALL, 0, 0, 100_000), message._buffers[0])))
        server.close()
        with Received(worker) as call, pytest.raises(Disconnected):
            run_call(call)
