"""Where an offloaded call runs: in the handler's own thread, in a worker process, or in an executor of the program's.

Invariants:

- A call whose period has been forced does not begin, and a wait for one ends: it raises `ServerStopping`.
- Nothing here refers to an exception that it raises: a reference cycle would keep a failed call's arguments alive.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..clients.period import Period
from ..clients.client import Client
from ..errors import ServerStopping, WorkerDied
from ..transport.waker import Waker
from .waiting import wait_until_set

if TYPE_CHECKING:  # these load multiprocessing
    from .messages import Message
    from .processes import Workers


@dataclass(eq=False, slots=True)
class Call:
    """A function to call, the client that waits for it, and the period in which it was called."""

    period: Period
    client: Client | None
    """The client whose handler waits for it, as long as the client is connected."""
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    unpinned: Callable[[], AbstractContextManager[object]]
    """Makes a context in which the calling thread may run on every processor."""


def run_inline(call: Call) -> Any:
    """Run a call in this thread."""
    return call.function(*call.args, **call.kwargs)


def run_in_worker(call: Call, message: Message, workers: Workers, count: int) -> Any:
    """Run a call, which ``message`` holds, in one of ``count`` worker processes."""
    try:
        return workers.call(message, count, call.period, call.unpinned)
    except WorkerDied as error:
        if call.period.forced:
            raise ServerStopping("the server has ended this call as it stopped") from error
        raise


def iterate_in_worker(call: Call, message: Message, workers: Workers, count: int) -> Iterator[Any]:
    """Iterate over what a call, which ``message`` holds, yields in one of ``count`` worker processes."""
    try:
        yield from workers.iterate(message, count, call.period, call.unpinned, call.client)
    except (WorkerDied, ConnectionAbortedError) as error:
        if call.period.forced:
            raise ServerStopping("the server has ended this call as it stopped") from error
        raise


def submit(call: Call, executor: Any, waker: Waker) -> Any:
    """Run a call in an executor of the program's, of which only ``submit`` is used.

    ``waker`` is set when the call's period is forced.
    """
    future = None
    client = call.client
    function = partial(call.function, **call.kwargs) if call.kwargs else call.function
    try:
        with call.unpinned():  # it may start a thread or a process, which inherit the processors of this thread
            future = executor.submit(function, *call.args)
        future.add_done_callback(lambda _: waker.set())
        while not future.done():
            if call.period.forced:
                raise ServerStopping("the server has given up this call as it stopped")
            if not wait_until_set(waker, client) and not call.period.forced:
                if future.cancel():
                    raise ConnectionAbortedError("the client of this call has gone")
                client = None  # the call is running already, and an executor cannot end it
            waker.clear()
        return future.result()
    except Exception as error:  # the function's own, and the executor's
        if is_worker_death(error):
            raise WorkerDied(f"the executor's worker has died in a call: {error!r}") from error
        raise
    finally:
        if future is not None and not future.done():
            future.cancel()  # as far as the executor can
        del future  # it refers to the exception, whose traceback refers to this frame


def is_worker_death(error: Exception) -> bool:
    """Return whether an executor reports by ``error`` that a worker has died."""
    dask = sys.modules.get("distributed")  # loaded if the program uses it
    return isinstance(error, (BrokenExecutor, getattr(dask, "KilledWorker", BrokenExecutor)))
