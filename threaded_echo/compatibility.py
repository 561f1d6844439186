"""What stands in for socketserver's own state, which programs and socketserver's methods use by name."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, overload

_Value = TypeVar("_Value")


class NonDataProperty(Generic[_Value]):
    """A property that yields to an attribute of the instance (a non-data descriptor): programs set their own."""

    def __init__(self, read: Callable[[Any], _Value]) -> None:
        self._read = read
        self.__doc__ = read.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> NonDataProperty[_Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...

    def __get__(self, instance: object | None, owner: type) -> NonDataProperty[_Value] | _Value:
        return self if instance is None else self._read(instance)


class ThreadList:
    """Stands in for the list of threads that socketserver's `ThreadingMixIn` keeps as ``_threads``."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._threads = server._threaded_state.threads

    def __len__(self) -> int:
        return len(self._threads.running)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(self._threads.everyone())

    def append(self, thread: threading.Thread) -> None:
        """Adopt a thread that a program's own ``process_request`` has made, so that a stop joins it too."""
        self._threads.adopt([thread])

    def join(self) -> None:
        """Stop, as socketserver's ``server_close`` expects that the threads end."""
        self._server._run_stop()


class ShutDownEvent:
    """Stands in for the event for which socketserver's ``shutdown`` waits, and which its ``serve_forever`` sets."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def wait(self) -> None:
        """Shut the server down. If no loop was found when that was asked for, the next one ends at once."""
        self._server._run_stop(remember=not self._server._threaded_state.loops.was_asked)

    def is_set(self) -> bool:
        """Return whether no loop is running."""
        return not self._server._threaded_state.loops.running

    def set(self) -> None:
        """Do nothing: the loop is over."""

    def clear(self) -> None:
        """Do nothing: the loop begins."""
