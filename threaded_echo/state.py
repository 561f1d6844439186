"""What a server keeps, and how the mix-in comes by it without an ``__init__``."""
from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from .offloading.calls import Offloads
from .clients.period import Period
from .clients.registry import HandlerRegistry
from .accepting.loop import AcceptErrors, Serving
from .stopping import Stopping
from .clients.threads import HandlerThreads, current_client

_Value = TypeVar("_Value")


class Attribute(Generic[_Value]):
    """A computed attribute that, unlike a property, yields to one of the instance: programs set their own."""

    def __init__(self, read: Callable[[Any], _Value]) -> None:
        self._read = read
        self.__doc__ = read.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Attribute[_Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...

    def __get__(self, instance: object | None, owner: type) -> Attribute[_Value] | _Value:
        return self if instance is None else self._read(instance)


class ServerState:
    """The parts of one server."""

    def __init__(self) -> None:
        self.registry = HandlerRegistry()
        self.threads = HandlerThreads(self.registry)
        self.serving = Serving(self.registry)
        self.offloads = Offloads(self.registry.lock)
        self.stopping = Stopping(self.registry, self.threads, self.serving, self.offloads)
        self.accept_errors = AcceptErrors(self.registry)

    @classmethod
    def of(cls, server: object) -> ServerState:
        """Find a server's state, or make it; afterwards the server's own attribute is found first."""
        state = cls()
        found: ServerState = vars(server).setdefault("_threaded_state", state)  # atomic, also without the GIL
        if found is state:
            # A program may drop its server without closing it: idle threads and workers must not outlive it.
            weakref.finalize(server, state.close).atexit = False
        return found

    def close(self) -> None:
        """End what waits for work."""
        self.threads.close()
        self.offloads.close()


def offload(server: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``function`` in a server's executor: see ``ThreadedMixIn.offload``, whose name a program may have taken."""
    state: ServerState = server._threaded_state
    client, period = current_client(), state.stopping.period
    if client is not None and client.registry is not state.registry:
        client = None  # of another server, in whose handler this one is called
    if client is not None and client.stopping is not period.stopping:  # it has survived the stop of an earlier period
        period = Period()
        period.force()
    return state.offloads.call(period, client, server.executor, server.max_offloads,
                               server.at_offload_limit == "refuse", function, args, kwargs)
