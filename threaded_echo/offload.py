"""Offloading: run a function elsewhere while the handler's thread waits, in a way that a stop can interrupt.

Guarantees:

- Calls begin in the order in which they came; at most `max_offloads` at a time, and as many as there are workers.
- A call that waits ends at the latest when a stop cuts the connections: it raises `ServerStopping`, and what has not
  begun never does. So does a call that waits for its turn when its client has gone: it raises ConnectionAbortedError.
- Every call is counted once: as waiting or running, then as done or failed.

The order of locks: the registry's, then `Offloads._lock`, then `Workers._lock`.
"""
from __future__ import annotations

import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from .registry import Client, HandlerRegistry
from .serving import Turn
from .threads import current_client
from .workers import WorkerDied, Workers, pickle_call


class ServerStopping(RuntimeError):
    """The server is stopping, and has given up the call; or it has stopped."""


class OffloadRefused(RuntimeError):
    """As many calls are running and waiting already as ``max_offloads`` says."""


class _Bell:
    """Ends a thread's wait from another thread: once rung, it stays so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # excludes the closing from the ringing
        self._waker, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)
        self.places: int | None = None  # how many calls may run for this one to begin

    def ring(self, *_: object) -> None:
        """End the wait. Any thread, any number of times, also after the closing."""
        with self._lock, suppress(OSError):  # rung often enough, or closed
            self._alarm.send(b"\0")

    def wait(self, client: Client | None) -> bool:
        """Wait until it is rung, or ``client`` has gone: False."""
        connection = -1 if client is None else client.fileno()
        if not hasattr(select, "poll"):  # Windows: select cannot tell that a client has gone
            select.select([self._waker], [], [])
            return True
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        if connection >= 0:
            poll.register(connection, 0)  # an error or the end in both directions; one that is half closed may wait
        return all(descriptor != connection for descriptor, _ in poll.poll())

    def close(self) -> None:
        """Close the descriptors."""
        with self._lock:
            self._waker.close()
            self._alarm.close()


class Offloads:
    """The calls of one server."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self._registry = registry
        self._workers = Workers()
        # Guards what follows. Re-entrant, as the server's is: a stop may come in a signal handler.
        self._lock = threading.RLock()
        self.running = self.done = self.failed = 0
        self._queue: deque[_Bell] = deque()  # who waits for a turn
        self._submitted: set[_Bell] = set()  # who waits for an executor of the program's
        self._given_up = False
        self._nesting = threading.local()  # inside: whether the calling thread is in an offloaded function

    # For the server.

    def open(self, executor: object, turn: Turn) -> None:
        """Start the worker processes, ahead of the first client. Raises WorkerDied or OSError where one cannot."""
        if isinstance(executor, int):
            try:
                self._workers.start(executor, lambda: turn.stopped)
            except WorkerDied:
                if not turn.stopped:
                    raise

    def interrupt_open(self) -> None:
        """Do not wait for workers that a stop would end anyway, and that may take long to import their script."""
        self._workers.interrupt_start()

    def reopen(self) -> None:
        """Take calls again; the registry's lock is held, so that no stop is in progress."""
        with self._lock:
            self._given_up = False
            self._workers.reopen()

    def give_up(self) -> None:
        """Make every call that waits raise `ServerStopping`, and every later one, until `reopen`."""
        with self._lock:
            self._given_up = True
            for bell in (*self._queue, *self._submitted):
                bell.ring()
            self._workers.give_up()

    def close(self) -> None:
        """Give up, and end the workers."""
        self.give_up()
        self._workers.close()

    def count(self) -> tuple[int, int, int, int]:
        """Count the calls that run, wait, are done and have failed."""
        with self._lock:
            return self.running, len(self._queue), self.done, self.failed

    # For whoever calls.

    def call(self, executor: Any, limit: int | None, refuse: bool, function: Callable[..., Any], args: tuple[Any, ...],
             kwargs: dict[str, Any]) -> Any:
        """Call ``function`` in an executor, and return its result or raise its exception."""
        client = current_client()
        if client is not None and client.registry is not self._registry:
            client = None  # of another server, in whose handler this one is called
        try:
            run: Callable[[], Any]
            workers = None
            if executor is None:
                run = partial(self._run_inside, partial(function, *args, **kwargs))
            elif isinstance(executor, int):
                workers = executor
                run = partial(self._workers.call, pickle_call(function, args, kwargs))
            else:
                run = partial(self._submit, client, executor, partial(function, **kwargs) if kwargs else function, args)
            places = min(filter(None, (limit, workers)), default=None)
            if getattr(self._nesting, "inside", False):  # this thread has its place, and would wait for itself
                limit = places = None
            with self._computing(client):
                self._begin(client, limit, refuse, places)
                try:
                    result = run()
                except WorkerDied as error:
                    if self._given_up:
                        raise ServerStopping("the server has ended this call as it stopped") from error
                    raise
                finally:
                    self._end()
        except BaseException:
            with self._lock:
                self.failed += 1
            raise
        with self._lock:
            self.done += 1
        return result

    @contextmanager
    def _computing(self, client: Client | None) -> Iterator[None]:
        """Let `Client.state` tell."""
        if client is None:
            yield
            return
        before, client.computing = client.computing, True
        try:
            yield
        finally:
            client.computing = before

    def _run_inside(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in this thread."""
        before = getattr(self._nesting, "inside", False)
        self._nesting.inside = True
        try:
            return function()
        finally:
            self._nesting.inside = before

    def _begin(self, client: Client | None, limit: int | None, refuse: bool, places: int | None) -> None:
        """Wait for a turn, of which there are ``places`` (``None``: no end). Whoever has begun has to `_end`."""
        if self._take_place(None, limit, refuse, places):
            return
        bell = _Bell()
        try:
            if not self._take_place(bell, limit, refuse, places):
                self._wait_for_turn(bell, client)
        finally:
            bell.close()

    def _take_place(self, bell: _Bell | None, limit: int | None, refuse: bool, places: int | None) -> bool:
        """Begin a call, if there is a place; else queue ``bell``, if any, and return False."""
        with self._lock:
            if self._given_up:
                raise ServerStopping("the server is stopping: it takes no more calls")
            if places is None or self.running < places and not self._queue:
                self.running += 1
                return True
            if refuse and limit is not None and self.running + len(self._queue) >= limit:
                raise OffloadRefused(f"no more than {limit} offloaded calls may run or wait at once")
            if bell is not None:
                bell.places = places
                self._queue.append(bell)
        return False

    def _wait_for_turn(self, bell: _Bell, client: Client | None) -> None:
        begins = False
        try:
            here = bell.wait(client)
            with self._lock:
                if self._given_up:
                    raise ServerStopping("the server has cancelled this call as it stopped")
                if not here:
                    raise ConnectionAbortedError("the client of this call has gone")
                # A bell that is still in the queue was rung by a stop, which may be over by now.
                begins = bell not in self._queue
            if not begins:
                raise ServerStopping("the server has cancelled this call as it stopped")
        finally:
            if not begins:
                self._leave(bell)

    def _leave(self, bell: _Bell) -> None:
        """Give up waiting for a turn, or the turn."""
        with self._lock:
            if bell in self._queue:
                self._queue.remove(bell)
            else:
                self._end()

    def _end(self) -> None:
        """Let the next call begin."""
        with self._lock:
            self.running -= 1
            if self._queue and (self._queue[0].places is None or self.running < self._queue[0].places):
                self.running += 1
                self._queue.popleft().ring()

    def _submit(self, client: Client | None, executor: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call ``function`` in an executor of the program's, of which only ``submit`` is used."""
        bell = _Bell()
        future = None
        try:
            with self._lock:
                self._submitted.add(bell)
            future = executor.submit(function, *args)
            future.add_done_callback(bell.ring)
            if self._given_up:  # before the bell was known
                bell.ring()
            if not bell.wait(client) and not self._given_up:
                if future.cancel():
                    raise ConnectionAbortedError("the client of this call has gone")
                bell.wait(None)  # it runs already, and an executor cannot be told to end that
            if future.done():
                return future.result()
            raise ServerStopping("the server has given up this call as it stopped")
        except Exception as error:
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
    """Whether an executor says that a worker has ended: CancelledError, too, where nobody has cancelled the call."""
    dask = sys.modules.get("distributed")  # where a program uses it
    return isinstance(error, (BrokenExecutor, CancelledError, getattr(dask, "KilledWorker", BrokenExecutor)))
