"""What worker threads do: calls that a program has submitted, and those that a server's handlers wait for.

Invariants:

- A call of a handler's is taken up by a thread, or cancelled by its caller, and never both; it is ended by its thread,
  or left by its caller before that, and never both.
- Nothing here refers to an exception for longer than somebody waits for it: its traceback refers to a frame that refers
  back.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from ..transport.waker import Waker


class Work(Protocol):
    """What the threads do."""

    def run(self) -> None:
        """Do it; raises nothing."""

    def cancel(self) -> None:
        """Do not do it: the executor is shut down."""

    def fail(self, error: BaseException) -> None:
        """Do not do it: the threads cannot work."""

    def is_over(self) -> bool:
        """Return whether it is done."""

    def is_left(self) -> bool:
        """Return whether it is not done, and nobody waits for it."""


class Submitted:
    """Work that a program has submitted."""

    def __init__(self, future: Future[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._future = future
        self._call = function, args, kwargs

    def run(self) -> None:
        future, (function, args, kwargs) = self._future, self._call
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # whoever waits for the future gets it, SystemExit too
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del self._future, self._call, future  # it may refer to an exception, whose traceback refers to this frame

    def cancel(self) -> None:
        self._future.cancel()
        self._future.set_running_or_notify_cancel()

    def fail(self, error: BaseException) -> None:
        if self._future.set_running_or_notify_cancel():
            self._future.set_exception(error)

    def is_over(self) -> bool:
        future = getattr(self, "_future", None)
        return future is None or future.done()

    def is_left(self) -> bool:
        return False


class ThreadCall:
    """Work that a server's handler waits for: what a Future would cost is saved."""

    __slots__ = ("thread", "is_done", "_function", "_waker", "_taken", "_ended", "_succeeded", "_value", "_when_over")

    def __init__(self, function: Callable[[], Any], waker: Waker) -> None:
        """Make a call of ``function``; ``waker`` is set when it is done."""
        self.thread: threading.Thread | None = None
        """The one in which the function runs; ``None`` before."""
        self.is_done = False
        self._function: Callable[[], Any] | None = function
        self._waker = waker
        self._taken = threading.Lock()  # acquired once, by the thread that takes the call up, or to cancel it
        self._ended = threading.Lock()  # acquired once, by the thread that has ended the call, or to leave it
        self._succeeded = False
        self._value: Any = None
        self._when_over: Callable[[], None] | None = None  # refers to the turn, which refers to this

    def run(self) -> None:
        """Call the function; whatever it raises is its outcome."""
        if not self._taken.acquire(blocking=False):
            return
        self.thread = threading.current_thread()
        function, self._function = self._function, None
        assert function is not None
        try:
            self._value = function()
            self._succeeded = True
        except BaseException as error:  # the handler's thread raises it, SystemExit included
            self._value = error
        del function
        self._end()

    def _end(self) -> None:
        is_awaited = self._ended.acquire(blocking=False)
        self.is_done = True
        if is_awaited:
            self._waker.set()
        else:
            self._value, when_over, self._when_over = None, self._when_over, None
            assert when_over is not None
            when_over()

    def cancel(self) -> None:
        """End the call by CancelledError, if it has not been taken up."""
        self.fail(CancelledError())

    def fail(self, error: BaseException) -> None:
        """End the call by an error, if it has not been taken up."""
        if self._taken.acquire(blocking=False):
            self._function, self._value = None, error
            self._end()

    def is_over(self) -> bool:
        """Return whether it is done."""
        return self.is_done

    def is_left(self) -> bool:
        """Return whether its handler waits no longer, but it runs."""
        return self._ended.locked() and not self.is_done

    def give_up(self) -> None:
        """Be told that a stop has given the call up. A function that runs cannot be ended."""

    # For the handler's thread.

    def is_taken(self) -> bool:
        """Return whether a thread has taken the call up."""
        return self._taken.locked()

    def leave(self, when_over: Callable[[], None]) -> bool:
        """Wait no longer: cancel the call, or have ``when_over`` called in its thread at its end.

        Returns whether it runs on. If it has just ended, it does not.
        """
        self._when_over = when_over
        if self._taken.acquire(blocking=False):
            self._function = self._when_over = None
            return False
        if self._ended.acquire(blocking=False):
            return True
        self._when_over = None
        return False

    def forget(self) -> None:
        """Drop the result of a call that has just ended, in place of `result`."""
        self._value = None

    def result(self) -> Any:
        """Return what the function has returned, or raise what it has raised. Only once, when the call is done."""
        value, self._value = self._value, None  # this object must not refer to the exception, which refers to it
        if self._succeeded:
            return value
        try:
            raise value
        finally:
            del value
