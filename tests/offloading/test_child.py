"""What runs in a worker, as far as it can be called here; the rest is seen from `test_workers`."""
from __future__ import annotations

import pickle
import sys
import types

from threaded_echo.offloading.processes import pickle_call
from threaded_echo.offloading.child import run_call

from .. import calls


def outcome(function, /, *args, **kwargs):
    """Run a call as a worker does; return whether it succeeded, what came, and the traceback."""
    return pickle.loads(run_call(pickle_call(function, args, kwargs)))


def test_result_comes_back():
    """With keywords too."""
    assert outcome(calls.square, 12) == (True, 144, "")
    assert outcome(calls.keywords, function=1, self=2) == (True, {"function": 1, "self": 2}, "")


def test_exception_comes_back_with_its_traceback():
    """The lines where it was raised."""
    succeeded, error, text = outcome(calls.fail, "of it")
    assert not succeeded
    assert (type(error), error.args) == (LookupError, ("of it",))
    assert "in fail" in text


def test_exit_of_a_call_comes_back():
    """A handler meets it as if it had called the function itself."""
    succeeded, error, _ = outcome(calls.leave, 3)
    assert not succeeded
    assert (type(error), error.code) == (SystemExit, 3)


def test_module_that_is_not_there_is_an_import_error(monkeypatch):
    """With the function's name."""
    module = types.ModuleType("only_here")
    exec("def function(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    call = pickle_call(module.function, (), {})
    monkeypatch.delitem(sys.modules, "only_here")
    succeeded, error, text = pickle.loads(run_call(call))
    assert not succeeded
    assert isinstance(error, ImportError)
    assert "only_here.function" in str(error)
    assert "ModuleNotFoundError" in text


def test_result_that_cannot_be_sent_is_a_type_error():
    """With the reason."""
    succeeded, error, _ = outcome(calls.return_a_lock)
    assert not succeeded
    assert isinstance(error, TypeError)
    assert "return_a_lock returned" in str(error) and "lock" in str(error)


def test_exception_that_cannot_say_what_it_is_is_told():
    """By its name, at least."""
    succeeded, error, _ = outcome(calls.raise_silent)
    assert not succeeded
    assert isinstance(error, TypeError)
    assert "Silent" in str(error)


def test_exception_that_cannot_be_made_again_is_told():
    """Its own text and traceback are in the TypeError that comes in its place."""
    succeeded, error, text = outcome(calls.raise_picky)
    assert not succeeded
    assert isinstance(error, TypeError)
    assert "Picky: 1 and 2" in str(error)
    assert "in raise_picky" in text
