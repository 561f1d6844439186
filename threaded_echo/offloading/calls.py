"""Offloading: run a function elsewhere while the handler's thread waits, in a way that a stop can interrupt.

Invariants:

- Each call that runs has a slot: see `turns`, which has the order in which they begin.
- A call that waits ends at the latest when a stop forces its period: it raises `ServerStopping`, and if it has not
  begun, it never does. When its time is up, or its client's connection is reset or cut, it ends, too: it raises
  TimeoutError or ConnectionAbortedError.
- A function that runs on after its caller has left it keeps its slot until it ends. In an executor of the program's a
  stop takes the slot back all the same, as nothing there ends with the server.
- Each call is counted once: as waiting or running, then as done or failed. A call from inside a function that runs in
  the same thread, or that runs in a worker thread, uses the slot of the outer call, and is counted only at its end.
- A call that waits is listed before it looks whether its period has been forced. So either it sees that, or `give_up`
  finds it and wakes it.
"""
from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from ..clients.period import Period
from ..clients.client import Client
from ..errors import ServerStopping, WorkerDied
from ..options import OPTIONS
from .call import NO_TERMS, Call, CallerLeft, Terms
from .executors import iterate_in_worker, run_in_thread, run_in_worker, run_inline, submit
from .slots import Slots
from .thread_items import iterate_in_thread
from .threads import WorkerThreads
from .turns import Turn
from .waiting import computing

if TYPE_CHECKING:  # it loads multiprocessing
    from .processes import Workers

_TAIL = 1.0  # seconds for worker threads that have nothing left to do but to return


class Offloads(Slots):
    """The offloaded calls of one server, and its worker processes."""

    def __init__(self, lock: threading.RLock, notify: Callable[[], None] = lambda: None) -> None:
        """Make an object without calls. ``lock`` is the server's; ``notify`` tells a stop that a call has ended."""
        super().__init__(lock, notify)
        self._workers: Workers | None = None  # made on first use; changed, as _threads, with the server's lock held
        self._threads: set[WorkerThreads] = set()  # those that this server uses
        self._calling = threading.local()  # is_inside: whether the calling thread is in a function that was offloaded

    # For the server.

    def open(self, executor: object, period: Period,
             unpinned: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Start the workers before the first client, unless ``period`` is stopping.

        Raises WorkerDied, OSError or RuntimeError if one cannot start. ``unpinned``: as in `call`.
        """
        OPTIONS["executor"].check("executor", executor)
        if isinstance(executor, WorkerThreads):
            self._use(executor, period, unpinned)
        if isinstance(executor, int):
            try:
                self._find_workers().start(executor, period, unpinned)
            except WorkerDied:
                if not period.is_stopping():
                    raise

    def interrupt_open(self) -> None:
        """Kill the workers that `open` is waiting for, which may take long to import the program's modules.

        Called by a stop that has stopped their period before.
        """
        if self._workers is not None:
            self._workers.interrupt_start()

    def give_up(self) -> None:
        """Make every waiting call whose period has been forced raise ServerStopping, and kill the worker it runs in."""
        if self._workers is not None:
            self._workers.give_up()
        with self._lock:
            turns = list(self._calls)
        for turn in turns:
            if turn.is_left and turn.is_foreign and turn.call.period.forced:
                self._end(turn, False)
            if (waker := turn.waker) is not None:  # a call whose period has not been forced waits on
                waker.set()
            if turn.work is not None and turn.call.period.forced:
                turn.work.give_up()

    def close(self) -> None:
        """As `give_up`, and end the idle workers. Calls of a period that has not been forced work afterwards."""
        self.give_up()
        if self._workers is not None:
            self._workers.close()
        with self._lock:
            threads, self._threads = self._threads, set()
        for each in threads:
            each.leave(self, _TAIL)
        self._wakers.close()

    # For the callers.

    def call(self, period: Period, client: Client | None, executor: Any, limit: int | None, refuse: bool,
             function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
             unpinned: Callable[[], AbstractContextManager[object]] = nullcontext, terms: Terms = NO_TERMS) -> Any:
        """Call ``function`` in an executor, and return its result or raise its exception.

        ``client``: the one whose handler calls, if it is this server's. ``period``: that client's, or else the server's
        present one. ``limit``: so many calls run at once; ``refuse``: more are refused. ``unpinned`` makes a context in
        which the calling thread may run on every processor: threads and processes that are started inherit its own.
        """
        OPTIONS["executor"].check("executor", executor)
        call = Call(period, client, function, args, kwargs, unpinned, terms)
        turn = self._make_turn(call, executor, limit, refuse)
        succeeded = False
        try:
            if executor is None or isinstance(executor, WorkerThreads) and turn.is_nested:
                result = self._run_inline(turn)
            elif isinstance(executor, WorkerThreads):
                result = self._run_in_thread(turn, executor)
            elif isinstance(executor, int):
                result = self._run_in_worker(turn, executor)
            else:
                result = self._submit(turn, executor)
            succeeded = True
            return result
        finally:
            self._finish(turn, succeeded)

    def iterate(self, period: Period, client: Client | None, executor: Any, limit: int | None, refuse: bool,
                function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
                unpinned: Callable[[], AbstractContextManager[object]] = nullcontext,
                terms: Terms = NO_TERMS) -> Iterator[Any]:
        """Call a generator function, and iterate over what it yields. It has its slot until the iterator is closed.

        All else is as in `call`. Raises TypeError for an executor of the program's.
        """
        OPTIONS["executor"].check("executor", executor)
        if executor is not None and not isinstance(executor, (int, WorkerThreads)):
            raise TypeError("offload_iter needs a number of worker processes, WorkerThreads, or None, as the server's "
                            f"executor: {type(executor).__name__} returns a result, and no items before it")
        call = Call(period, client, function, args, kwargs, unpinned, terms)
        turn = self._make_turn(call, executor, limit, refuse)
        if isinstance(executor, int):
            items = self._items_of_worker(turn, executor)
        elif executor is None or turn.is_nested:
            items = self._items_here(turn)
        else:
            items = self._items_of_thread(turn, executor)
        return self._iterate(turn, items)

    def _iterate(self, turn: Turn, items: Generator[Any, None, None]) -> Iterator[Any]:
        succeeded, client = False, turn.call.client
        try:
            with closing(items):
                while True:
                    with computing(client):
                        try:
                            item = next(items)
                        except StopIteration:
                            break
                    yield item
                    del item  # it may be large
                    if turn.call.period.forced:  # nothing else may look, if the next item is there already
                        raise ServerStopping("the server has ended this call as it stopped")
                    turn.call.check()
            succeeded = True
        except GeneratorExit:  # the handler has left the loop
            succeeded = True
            raise
        finally:
            self._finish(turn, succeeded)

    def _items_here(self, turn: Turn) -> Generator[Any, None, None]:
        """Iterate in this thread."""
        self._wait_for_slot(turn)
        items = self._run_here(lambda: iter(run_inline(turn.call)))
        try:
            while True:
                try:
                    item = self._run_here(lambda: next(items))
                except StopIteration:
                    return
                yield item
                del item
        finally:
            self._run_here(getattr(items, "close", bool))

    def _items_of_thread(self, turn: Turn, threads: WorkerThreads) -> Generator[Any, None, None]:
        self._wait_for_slot(turn)
        self._have_waker(turn)
        with self._using(threads, turn.call):
            yield from iterate_in_thread(turn, threads, self._run_here, partial(self._end, turn, False))

    def _items_of_worker(self, turn: Turn, count: int) -> Generator[Any, None, None]:
        workers = self._find_workers()
        from .messages import ITERATE, pickle_call  # loaded by now
        call = turn.call
        with pickle_call(call.function, call.args, call.kwargs, ITERATE) as message:
            self._wait_for_slot(turn)
            try:
                return (yield from iterate_in_worker(call, message, workers, count, partial(self._end, turn, False)))
            except CallerLeft as left:
                turn.is_left = True
                is_connected = left.is_connected
        call.check(is_connected)
        raise ServerStopping("the server has ended this call as it stopped")

    def _make_turn(self, call: Call, executor: object, limit: int | None, refuse: bool) -> Turn:
        """Make the turn of a call: at most ``limit``, and as many as the executor has workers, run at once."""
        count = executor.count if isinstance(executor, WorkerThreads) else executor
        slots = min(filter(None, (limit, count if isinstance(count, int) else None)), default=None)
        return Turn(call, slots, limit, refuse, self._is_inside(executor))

    def _is_inside(self, executor: object) -> bool:
        """Return whether a call from the calling thread needs no slot of its own, for which it might wait for ever.

        That is so in an offloaded function, which has a slot, and in any thread of the executor, which may also run
        another server's call, or what the program has submitted.
        """
        return getattr(self._calling, "is_inside", False) or (
            isinstance(executor, WorkerThreads) and executor.is_current())

    def _run_here(self, function: Callable[[], Any]) -> Any:
        """Call a function in this thread, in which other calls then need no slots of their own."""
        before = getattr(self._calling, "is_inside", False)
        self._calling.is_inside = True
        try:
            return function()
        finally:
            self._calling.is_inside = before

    def _run_inline(self, turn: Turn) -> Any:
        with self._slot(turn):
            return self._run_here(partial(run_inline, turn.call))

    def _run_in_thread(self, turn: Turn, threads: WorkerThreads) -> Any:
        with self._slot(turn):
            self._have_waker(turn)
            run = partial(self._run_here, partial(run_inline, turn.call))
            with self._using(threads, turn.call):
                return run_in_thread(turn, threads, run, partial(self._end, turn, False))

    def _run_in_worker(self, turn: Turn, count: int) -> Any:
        workers = self._find_workers()
        from .messages import pickle_call  # loaded by now
        call = turn.call
        with pickle_call(call.function, call.args, call.kwargs) as message, self._slot(turn):
            try:
                return run_in_worker(call, message, workers, count, partial(self._end, turn, False))
            except CallerLeft as left:
                turn.is_left = True
                is_connected = left.is_connected
        call.check(is_connected)
        raise ServerStopping("the server has ended this call as it stopped")

    def _submit(self, turn: Turn, executor: Any) -> Any:
        with self._slot(turn):
            turn.is_foreign = True
            self._have_waker(turn)
            return submit(turn, executor, partial(self._end, turn, False))

    def _use(self, threads: WorkerThreads, period: Period,
             unpinned: Callable[[], AbstractContextManager[object]]) -> None:
        """Have worker threads, until `close`. Raises ServerStopping if the period has been forced."""
        if threads not in self._threads:
            with unpinned():
                threads.start()
            with self._lock:
                if period.forced:  # otherwise `close` is still to come, and finds them
                    raise ServerStopping("the server is stopping: it takes no more calls")
                threads.enter(self)
                self._threads.add(threads)

    @contextmanager
    def _using(self, threads: WorkerThreads, call: Call) -> Iterator[None]:
        """Have worker threads for a call. If a stop has ended them in the middle of this, the call's are ended, too."""
        try:
            self._use(threads, call.period, call.unpinned)
            yield
        finally:
            if call.period.forced:
                threads.end_unless_used()

    def _find_workers(self) -> Workers:
        """Return the worker processes' owner, made on first use, since it loads multiprocessing."""
        if self._workers is None:
            from .processes import Workers  # not with the lock held
            made = Workers()
            with self._lock:
                if self._workers is None:
                    self._workers = made
                    # A program may drop its server without closing it. The callback holds the workers only, so that it
                    # keeps no server alive.
                    weakref.finalize(self, made.close).atexit = False
        return self._workers
