"""Where an offloaded call runs: in the handler's own thread, in a worker, or in an executor of the program's.

Invariants:

- A call whose period has been forced does not begin, and a wait for one ends: it raises `ServerStopping`.
- Nothing here refers to an exception that it raises: a reference cycle would keep a failed call's arguments alive.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ServerStopping, WorkerDied
from ..transport.waker import Waker
from .call import Call
from .dask import CHECK_INTERVAL, find_cluster
from .thread_work import ThreadCall
from .threads import WorkerThreads
from .turns import Turn
from .waiting import wait_until_set

if TYPE_CHECKING:  # these load multiprocessing
    from .messages import Message
    from .processes import Workers


def run_inline(call: Call) -> Any:
    """Run a call in this thread. Raises ServerStopping if its period has been forced."""
    if call.period.forced:  # a stop came when it was on its way to its thread
        raise ServerStopping("the server has cancelled this call as it stopped")
    return call.function(*call.args, **call.kwargs)


def run_in_worker(call: Call, message: Message, workers: Workers, count: int, when_over: Callable[[], None]) -> Any:
    """Run a call, which ``message`` holds, in one of ``count`` worker processes.

    Raises CallerLeft if the caller waits no longer: ``when_over`` is then called when the worker is free again.
    """
    try:
        return workers.call(message, count, call.period, call.unpinned, call, when_over)
    except WorkerDied as error:
        if call.period.forced:
            raise ServerStopping("the server has ended this call as it stopped") from error
        raise


def iterate_in_worker(call: Call, message: Message, workers: Workers, count: int,
                      when_over: Callable[[], None]) -> Iterator[Any]:
    """Iterate over what a call, which ``message`` holds, yields in one of ``count`` worker processes.

    Raises CallerLeft if the caller waits no longer for a new process: as `run_in_worker`.
    """
    try:
        yield from workers.iterate(message, count, call.period, call.unpinned, call, when_over)
    except (WorkerDied, ConnectionAbortedError) as error:
        if call.period.forced:
            raise ServerStopping("the server has ended this call as it stopped") from error
        raise


def run_in_thread(turn: Turn, threads: WorkerThreads, run: Callable[[], Any], when_over: Callable[[], None]) -> Any:
    """Run a call in a worker thread, by ``run``. If that runs on without its caller, the turn is left to its thread."""
    assert turn.waker is not None
    call, work = turn.call, ThreadCall(run, turn.waker)
    turn.work = work
    threads.put(work)
    try:
        wait_until_done(call, turn.waker, lambda: work.is_done)
    except BaseException as error:  # the caller's, or a signal handler has raised
        turn.is_left = True
        if work.leave(when_over):
            if isinstance(error, TimeoutError):
                call.tell_that_it_runs_on()
        else:
            turn.is_left = False
            work.forget()
        raise
    return work.result()


def submit(turn: Turn, executor: Any, when_over: Callable[[], None]) -> Any:
    """Run a call in an executor of the program's, of which only ``submit`` is used.

    If the function runs on without its caller, the turn is left until the executor says that it has ended.
    """
    assert turn.waker is not None
    call, future = turn.call, None
    function = partial(call.function, **call.kwargs) if call.kwargs else call.function
    cluster = find_cluster(executor)
    place: Any = cluster or executor
    try:
        with call.unpinned():  # it may start a thread or a process, which inherit the processors of this thread
            future = place.submit(function, *call.args)
        future.add_done_callback(lambda _, waker=turn.waker: waker.set())
        wait_until_done(call, turn.waker, future.done, None if cluster is None else CHECK_INTERVAL)
        return future.result()
    except Exception as error:  # the function's own, and the executor's
        if is_worker_death(error):
            raise WorkerDied(f"the executor's worker has died in a call: {type(error).__name__}: {error}") from error
        if is_not_shareable(error):
            error.add_note(f"In a call of {call.name}: an interpreter takes a function of a module; its arguments, its "
                           "result and its exception have to be objects that can be pickled")
        if isinstance(error, TimeoutError) and not (future is None or future.done() or future.cancel()):
            call.tell_that_it_runs_on()
        raise
    finally:
        if future is not None and not future.done() and not future.cancel() and not call.period.forced:
            turn.is_left = True  # the executor cannot end it
            future.add_done_callback(lambda _: when_over())
        del future  # it refers to the exception, whose traceback refers to this frame


def wait_until_done(call: Call, waker: Waker, is_done: Callable[[], bool], interval: float | None = None) -> None:
    """Wait until an executor has done a call, which sets ``waker``.

    ``interval``: seconds after which to look again, if not every end sets the waker; ``None``: each one does.
    Raises ServerStopping, TimeoutError or ConnectionAbortedError if its caller waits no longer.
    """
    is_connected = True
    while not is_done():
        if call.period.forced:
            raise ServerStopping("the server has given up this call as it stopped")
        call.check(is_connected)
        is_connected = wait_until_set(waker, call, interval)
        waker.clear()


def is_worker_death(error: Exception) -> bool:
    """Return whether an executor reports by ``error`` that a worker has died."""
    dask = sys.modules.get("distributed")  # loaded if the program uses it
    return isinstance(error, (BrokenExecutor, getattr(dask, "KilledWorker", BrokenExecutor)))


def is_not_shareable(error: Exception) -> bool:
    """Return whether `concurrent.futures.InterpreterPoolExecutor` reports by ``error`` what it cannot send."""
    interpreters = sys.modules.get("concurrent.interpreters")  # loaded if the program uses it, from Python 3.14 on
    return isinstance(error, getattr(interpreters, "NotShareableError", ()))
