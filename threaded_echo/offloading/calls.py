"""Offloading: run a function elsewhere while the handler's thread waits, in a way that a stop can interrupt.

Guarantees:

- Calls begin in the order in which they came; at most `max_offloads` at a time, and as many as there are workers.
- A call that waits ends at the latest when a stop cuts the connections: it raises `ServerStopping`, and what has not
  begun never does. So does a call that waits for its turn when its client's connection is reset or cut: it raises
  ConnectionAbortedError.
- Every call is counted once: as waiting or running, then as done or failed. A call from within a function that runs in
  the same thread has the place of the outer one, and is counted at its end only.
"""
from __future__ import annotations

import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from ..options import CHECKS
from ..clients.client import Client
from ..clients.period import Period
from ..errors import OffloadRefused, ServerStopping, WorkerDied
from .processes import Workers, pickle_call


class _Bell:
    """Ends a thread's wait from another thread, also where it rings ahead of the wait."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # excludes the closing from the ringing; a signal handler may ring, too
        self._waker, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)

    def ring(self, *_: object) -> None:
        """End the wait. Any thread, any number of times, also after the closing."""
        with self._lock, suppress(OSError):  # rung often enough, or closed
            self._alarm.send(b"\0")

    def wait(self, client: Client | None) -> bool:
        """Wait until it is rung, or ``client`` has gone: False."""
        connection = -1 if client is None else client._connection.fileno()
        if not hasattr(select, "poll"):  # Windows: select cannot tell that a client has gone
            return bool(self._waker.recv(64))
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        if connection >= 0:
            poll.register(connection, 0)  # an error or the end in both directions; one that is half closed may wait
        ready = [descriptor for descriptor, _ in poll.poll()]
        if connection in ready:
            return False
        self._waker.recv(64)  # it may be rung again
        return True

    def close(self) -> None:
        """Close the descriptors."""
        with self._lock:
            self._waker.close()
            self._alarm.close()


class _Call:
    """One offloaded call. Its fields are guarded by the server's lock."""

    def __init__(self, client: Client | None, limit: int | None, places: int | None, period: Period,
                 nested: bool) -> None:
        self.client = client
        self.limit = limit  # refused where so many run or wait
        self.places = places  # begins where fewer run
        self.period = period
        self.nested = nested  # in a call that has its place, and would wait for itself
        self.begun = False  # has a place
        self.bell: _Bell | None = None  # rung when it may begin, and when it is given up


class Offloads:
    """The calls of one server, and its workers."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock  # guards what follows
        self._workers = Workers(lock)
        self.running = self.done = self.failed = 0
        self._queue: deque[_Call] = deque()  # those that wait for their turn
        self._submitted: set[_Bell] = set()  # of those that wait for an executor of the program's
        self._generation = 0  # how often it was opened again: a call belongs to one of them
        self._nesting = threading.local()  # inside: whether the calling thread is in an offloaded function

    # For the server.

    def open(self, executor: object, period: Period) -> None:
        """Start the worker processes, ahead of the first client. Raises WorkerDied or OSError where one cannot."""
        CHECKS["executor"]("executor", executor)
        self._workers.given_up = False
        if isinstance(executor, int):
            try:
                self._workers.start(executor, period.is_stopping)
            except WorkerDied:
                if not period.is_stopping():
                    raise

    def interrupt_open(self) -> None:
        """Do not wait for workers that a stop would end anyway, and that may take long to import their script."""
        self._workers.interrupt_start()

    def reopen(self) -> None:
        """Take calls again; no stop is in progress."""
        with self._lock:
            self._generation += 1
            self._workers.reopen()

    def give_up(self) -> None:
        """Make every call that waits raise `ServerStopping`, and every later one, until `reopen`."""
        self._workers.give_up()
        with self._lock:
            bells = [call.bell for call in self._queue if call.bell] + list(self._submitted)
        for bell in bells:
            bell.ring()

    def close(self) -> None:
        """Give up, and end the workers."""
        self.give_up()
        self._workers.close()

    def count(self) -> tuple[int, int, int, int]:
        """Count the calls that run, wait, are done and have failed."""
        with self._lock:
            return self.running, len(self._queue), self.done, self.failed

    # For whoever calls.

    def call(self, period: Period, client: Client | None, executor: Any, limit: int | None, refuse: bool,
             function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], lifted: Any) -> Any:
        """Call ``function`` in an executor, and return its result or raise its exception."""
        CHECKS["executor"]("executor", executor)
        places = min(filter(None, (limit, executor if isinstance(executor, int) else None)), default=None)
        call = _Call(client, limit if refuse else None, places, period,
                     getattr(self._nesting, "inside", False))
        succeeded = False
        try:
            if executor is None:
                run: Callable[[], Any] = partial(self._run_inside, partial(function, *args, **kwargs))
            elif isinstance(executor, int):
                run = partial(self._run_in_worker, call, executor, pickle_call(function, args, kwargs))
            else:
                run = partial(self._submit, call, executor, partial(function, **kwargs) if kwargs else function, args)
            with self._computing(client):
                self._begin(call)
                result = run()
            succeeded = True
            return result
        finally:
            self._end(call, succeeded)

    @contextmanager
    def _computing(self, client: Client | None) -> Iterator[None]:
        """Let `Client.state` tell."""
        if client is None:
            yield
            return
        before = client.state
        client._move("computing")
        try:
            yield
        finally:
            client._move(before)

    def _is_given_up(self, call: _Call) -> bool:
        """Whether a stop has given up a call; read without the lock where it is looked at once more afterwards."""
        return call.period.forced

    # A turn: who waits is rung when it may be the next, and then takes the place itself.

    def _begin(self, call: _Call) -> None:
        """Wait for a turn."""
        if self._try(call):
            return
        bell = _Bell()
        try:
            begun = self._try(call, bell)
            while not begun:
                here = bell.wait(call.client)
                with self._lock:
                    if self._is_given_up(call):
                        raise ServerStopping("the server has cancelled this call as it stopped")
                    if not here:
                        raise ConnectionAbortedError("the client of this call has gone")
                    begun = self._try_next_locked(call)
        finally:
            bell.close()

    def _try(self, call: _Call, bell: _Bell | None = None) -> bool:
        """Begin a call if there is a place; else queue it with ``bell``, if any, and return False."""
        with self._lock:
            if self._is_given_up(call):
                raise ServerStopping("the server is stopping: it takes no more calls")
            if call.nested:
                return True
            if call.places is None or self.running < call.places and not self._queue:
                self.running += 1
                call.begun = True
                return True
            if call.limit is not None and self.running + len(self._queue) >= call.limit:
                raise OffloadRefused(f"no more than {call.limit} offloaded calls may run or wait at once")
            if bell is not None:
                call.bell = bell
                self._queue.append(call)
                if self._is_given_up(call):  # in a signal handler, between these lines
                    raise ServerStopping("the server is stopping: it takes no more calls")
        return False

    def _try_next_locked(self, call: _Call) -> bool:
        """Begin a call that has waited, if it is the next and there is a place."""
        if self._queue[0] is not call or self.running >= (call.places or 0):
            return False
        self.running += 1
        call.begun = True
        self._queue.popleft()
        self._ring_next_locked()  # two places may have come free since this one was rung
        return True

    def _ring_next_locked(self) -> None:
        if self._queue and self._queue[0].bell:
            self._queue[0].bell.ring()

    def _end(self, call: _Call, succeeded: bool) -> None:
        """Count a call, and let the next one begin, whether this one has begun itself or not."""
        with self._lock:
            if call.begun:
                self.running -= 1
            elif call in self._queue:
                self._queue.remove(call)
            self._ring_next_locked()
            if succeeded:
                self.done += 1
            else:
                self.failed += 1

    # The executors.

    def _run_inside(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in this thread."""
        before = getattr(self._nesting, "inside", False)
        self._nesting.inside = True
        try:
            return function()
        finally:
            self._nesting.inside = before

    def _run_in_worker(self, call: _Call, count: int, pickled: bytes) -> Any:
        """Run a pickled call in a worker process."""
        try:
            return self._workers.call(pickled, count)
        except WorkerDied as error:
            if self._is_given_up(call):
                raise ServerStopping("the server has ended this call as it stopped") from error
            raise

    def _submit(self, call: _Call, executor: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call ``function`` in an executor of the program's, of which only ``submit`` is used."""
        bell = _Bell()
        future = None
        try:
            with self._lock:
                self._submitted.add(bell)
            future = executor.submit(function, *args)
            future.add_done_callback(bell.ring)
            if self._is_given_up(call):  # before the bell was known
                bell.ring()
            if not bell.wait(call.client) and not self._is_given_up(call):
                if future.cancel():
                    raise ConnectionAbortedError("the client of this call has gone")
                bell.wait(None)  # it runs already, and an executor cannot be told to end that
            if future.done():
                return future.result()
            raise ServerStopping("the server has given up this call as it stopped")
        except Exception as error:  # the function's own, and the executor's
            if is_death(error):
                raise WorkerDied(f"the executor's worker has died in a call: {error!r}") from error
            raise
        finally:
            with self._lock:
                self._submitted.discard(bell)
            bell.close()
            if future is not None and not future.done():
                future.cancel()  # where that works


def is_death(error: Exception) -> bool:
    """Whether an executor says that a worker has died."""
    dask = sys.modules.get("distributed")  # where a program uses it
    return isinstance(error, (BrokenExecutor, getattr(dask, "KilledWorker", BrokenExecutor)))
