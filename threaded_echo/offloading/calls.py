"""Offloading: run a function elsewhere while the handler's thread waits, in a way that a stop can interrupt.

Invariants:

- Calls begin in the order in which they came. At most `max_offloads` run at once, and as many as there are workers:
  each call that runs has a slot.
- A call that waits ends at the latest when a stop forces its period: it raises `ServerStopping`, and if it has not
  begun, it never does. When its client's connection is reset or cut, a call that waits for its slot ends, too: it
  raises ConnectionAbortedError.
- Each call is counted once: as waiting or running, then as done or failed. A call from inside a function that runs in
  the same thread uses the slot of the outer call, and is counted only at its end.
- A call that waits is listed before it looks whether its period has been forced. So either it sees that, or `give_up`
  finds it and wakes it.
"""
from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..clients.period import Period
from ..clients.client import Client
from ..errors import OffloadRefused, ServerStopping, WorkerDied
from ..options import OPTIONS
from ..transport.waker import Waker
from .executors import Call, iterate_in_worker, run_in_worker, run_inline, submit
from .waiting import computing, wait_until_set

if TYPE_CHECKING:  # it loads multiprocessing
    from .processes import Workers


class _Turn:
    """A call's place in the queue. Its fields are guarded by the server's lock."""

    __slots__ = ("call", "slots", "limit", "nested", "has_slot", "waker")

    def __init__(self, call: Call, slots: int | None, limit: int | None, nested: bool) -> None:
        self.call = call
        self.slots = slots  # it begins when fewer calls are running
        self.limit = limit  # it is refused if so many calls are running or waiting
        self.nested = nested  # inside a call that has a slot, and would wait for itself
        self.has_slot = False
        self.waker: Waker | None = None  # set when the call may begin, and when it is given up


class Offloads:
    """The offloaded calls of one server, and its worker processes."""

    def __init__(self, lock: threading.RLock) -> None:
        """Make an object without calls. ``lock`` is the server's."""
        self._lock = lock  # guards what follows
        self._running = self._done = self._failed = 0
        self._queue: deque[_Turn] = deque()  # the calls that wait for a slot, each with its waker
        self._submitted: set[Waker] = set()  # of the calls that wait for an executor of the program's
        self._workers: Workers | None = None  # made on first use
        self._calling = threading.local()  # inline: whether the calling thread is in a function that it has offloaded

    # For the server.

    def open(self, executor: object, period: Period,
             unpinned: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Start the worker processes before the first client, unless ``period`` is stopping.

        Raises WorkerDied or OSError if one cannot start. ``unpinned``: as in `call`.
        """
        OPTIONS["executor"].check("executor", executor)
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
            wakers = [turn.waker for turn in self._queue if turn.waker] + list(self._submitted)
        for waker in wakers:  # a call whose period has not been forced waits on
            waker.set()

    def close(self) -> None:
        """As `give_up`, and end the idle workers. Calls of a period that has not been forced work afterwards."""
        self.give_up()
        if self._workers is not None:
            self._workers.close()

    def count(self) -> tuple[int, int, int, int]:
        """Count the calls that are running, are waiting, are done, and have failed."""
        with self._lock:
            return self._running, len(self._queue), self._done, self._failed

    # For the callers.

    def call(self, period: Period, client: Client | None, executor: Any, limit: int | None, refuse: bool,
             function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
             unpinned: Callable[[], AbstractContextManager[object]] = nullcontext) -> Any:
        """Call ``function`` in an executor, and return its result or raise its exception.

        ``client``: the one whose handler calls, if it is this server's. ``period``: that client's, or else the server's
        present one. ``limit``: so many calls run at once; ``refuse``: more are refused. ``unpinned`` makes a context in
        which the calling thread may run on every processor: threads and processes that are started inherit its own.
        """
        OPTIONS["executor"].check("executor", executor)
        count = executor if isinstance(executor, int) else None
        call = Call(period, client, function, args, kwargs, unpinned)
        turn = _Turn(call, min(filter(None, (limit, count)), default=None), limit if refuse else None,
                     getattr(self._calling, "inline", False))
        succeeded = False
        try:
            if executor is None:
                result = self._run_inline(turn)
            elif count is not None:
                result = self._run_in_worker(turn, count)
            else:
                result = self._submit(turn, executor)
            succeeded = True
            return result
        finally:
            self._end(turn, succeeded)

    def iterate(self, period: Period, client: Client | None, executor: Any, limit: int | None, refuse: bool,
                function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
                unpinned: Callable[[], AbstractContextManager[object]] = nullcontext) -> Iterator[Any]:
        """Call a generator function, and iterate over what it yields. It has its slot until the iterator is closed.

        All else is as in `call`. Raises TypeError for an executor of the program's.
        """
        OPTIONS["executor"].check("executor", executor)
        count = executor if isinstance(executor, int) else None
        if count is None and executor is not None:
            raise TypeError("offload_iter needs a number of worker processes, or None, as the server's executor: "
                            f"{type(executor).__name__} returns a result, and no items before it")
        call = Call(period, client, function, args, kwargs, unpinned)
        return self._iterate(_Turn(call, min(filter(None, (limit, count)), default=None), limit if refuse else None,
                                   getattr(self._calling, "inline", False)), count)

    def _iterate(self, turn: _Turn, count: int | None) -> Iterator[Any]:
        succeeded, client = False, turn.call.client
        try:
            items = self._items_here(turn) if count is None else self._items_of_worker(turn, count)
            with closing(items):
                while True:
                    with computing(client):
                        try:
                            item = next(items)
                        except StopIteration:
                            break
                    yield item
                    del item  # it may be large
            succeeded = True
        except GeneratorExit:  # the handler has left the loop
            succeeded = True
            raise
        finally:
            self._end(turn, succeeded)

    def _items_here(self, turn: _Turn) -> Generator[Any, None, None]:
        """Iterate in this thread."""
        self._wait_for_slot(turn)
        items = self._run_here(turn, lambda: iter(run_inline(turn.call)))
        try:
            while True:
                if turn.call.period.forced:
                    raise ServerStopping("the server has ended this call as it stopped")
                try:
                    item = self._run_here(turn, lambda: next(items))
                except StopIteration:
                    return
                yield item
                del item
        finally:
            self._run_here(turn, getattr(items, "close", bool))

    def _items_of_worker(self, turn: _Turn, count: int) -> Generator[Any, None, None]:
        workers = self._find_workers()
        from .messages import ITERATE  # loaded by now
        from .worker import pickle_call
        call = turn.call
        with pickle_call(call.function, call.args, call.kwargs, ITERATE) as message:
            self._wait_for_slot(turn)
            yield from iterate_in_worker(call, message, workers, count)

    def _run_here(self, turn: _Turn, function: Callable[[], Any]) -> Any:
        """Call a function in this thread, in which other calls then need no slots of their own."""
        self._calling.inline = True
        try:
            return function()
        finally:
            self._calling.inline = turn.nested

    def _run_inline(self, turn: _Turn) -> Any:
        with self._slot(turn):
            return self._run_here(turn, lambda: run_inline(turn.call))

    def _run_in_worker(self, turn: _Turn, count: int) -> Any:
        workers = self._find_workers()
        from .worker import pickle_call  # loaded by now
        call = turn.call
        with pickle_call(call.function, call.args, call.kwargs) as message, self._slot(turn):
            return run_in_worker(call, message, workers, count)

    def _submit(self, turn: _Turn, executor: Any) -> Any:
        with self._slot(turn):
            waker = Waker()
            try:
                with self._lock:
                    self._submitted.add(waker)
                return submit(turn.call, executor, waker)
            finally:
                with self._lock:
                    self._submitted.discard(waker)
                waker.close()

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

    # The order of the calls. The call at the head of the queue is woken when there may be a slot, and takes it itself.

    @contextmanager
    def _slot(self, turn: _Turn) -> Iterator[None]:
        """Wait for a slot; while waiting and running, the client's state is ``"computing"``."""
        with computing(turn.call.client):
            self._wait_for_slot(turn)
            yield

    def _wait_for_slot(self, turn: _Turn) -> None:
        """Return when a call has its slot. Raises ServerStopping, OffloadRefused or ConnectionAbortedError."""
        with self._lock:
            if turn.call.period.forced:
                raise ServerStopping("the server is stopping: it takes no more calls")
            if turn.nested or self._take_slot_locked(turn):
                return
            if turn.limit is not None and self._running + len(self._queue) >= turn.limit:
                raise OffloadRefused(f"no more than {turn.limit} offloaded calls may run or wait at once")
            waker = turn.waker = Waker()
            self._queue.append(turn)
        is_connected = True
        while True:
            with self._lock:
                if turn.call.period.forced:
                    raise ServerStopping("the server has cancelled this call as it stopped")
                if not is_connected:
                    raise ConnectionAbortedError("the client of this call has gone")
                if self._take_slot_locked(turn):
                    return
            is_connected = wait_until_set(waker, turn.call.client)
            waker.clear()

    def _take_slot_locked(self, turn: _Turn) -> bool:
        """Take a slot if there is one, and no call has waited longer."""
        if turn.slots is not None and self._running >= turn.slots or self._queue and self._queue[0] is not turn:
            return False
        self._running += 1
        turn.has_slot = True
        if self._queue:
            self._queue.popleft()
            self._wake_next_locked()  # two slots may have become free since this call was woken
        return True

    def _wake_next_locked(self) -> None:
        if self._queue and self._queue[0].waker:
            self._queue[0].waker.set()

    def _end(self, turn: _Turn, succeeded: bool) -> None:
        """Give a call's slot, or its place in the queue, back, and count it."""
        with self._lock:
            if turn.has_slot:
                self._running -= 1
            elif turn in self._queue:
                self._queue.remove(turn)
            self._wake_next_locked()
            if succeeded:
                self._done += 1
            else:
                self._failed += 1
        if turn.waker is not None:
            turn.waker.close()
