"""The worker processes of a server: started before the first client, given to one call at a time, ended.

Imported when a server first uses worker processes, and not before: it loads multiprocessing, and registers a function
that ends the workers with the interpreter, and one that makes a forked process forget them.

Invariants:

- A worker is idle, or held by one thread. The thread that holds it gives it back, or ends it.
- Each held worker is held for a call, or a start, in one period of serving. When a stop forces that period, `give_up`
  kills the worker, and its holder notices.
- Idle or held, no worker outlives `Workers.close`, if the periods of all calls have been forced.

Order of locks: `_opening`, `_lock`, then a worker's.
"""
from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ..clients.period import Period
from ..errors import ServerStopping, WorkerDied
from ..observe.logs import about
from .call import Call, CallerLeft
from .initializing import find_setup
from .iterations import iterate
from .messages import Message
from .worker import END_TIMEOUT, NotBegun, Worker, interpreter_ends

logger = logging.getLogger("threaded_echo")

Unpinned = Callable[[], AbstractContextManager[object]]
"""Makes a context in which the calling thread may run on every processor, as a process that it starts then may."""

_all: weakref.WeakSet[Workers] = weakref.WeakSet()


class Workers:
    """The worker processes of one server. *Thread safety*: any thread may call any method, unless it says otherwise."""

    def __init__(self) -> None:
        self._opening = threading.Lock()  # held during `start`: a second one waits, and finds the workers there
        self._lock = threading.RLock()  # guards what follows; re-entrant, since a signal handler may stop the server
        self._idle: list[Worker] = []
        self._held: dict[Worker, Period] = {}
        self._starting: list[Worker] = []  # that no caller waits for; also in _held
        self._leftovers: dict[threading.Thread, Period] = {}  # they see calls through that their callers have left
        _all.add(self)

    def start(self, count: int, period: Period, unpinned: Unpinned) -> None:
        """Have ``count`` workers ready to be called. Raises WorkerDied or OSError if one cannot start.

        Raises WorkerDied, too, if the period begins to stop and `interrupt_start` is called after that.
        """
        with self._opening:
            with self._lock:
                missing = count - len(self._idle) - len(self._held)
            started: list[Worker] = []
            try:
                for _ in range(missing):  # start them all before waiting for any
                    if period.is_stopping():
                        raise WorkerDied("a stop came as the workers were started")
                    started.append(worker := self._hold_new(count, period, unpinned))
                    self._list_as_starting(worker, period)
                for worker in started:
                    worker.send_initializer()
                for worker in started:
                    worker.wait_until_ready()
            except BaseException:  # one cannot start, or a signal handler has raised: none of the others may stay
                for worker in started:
                    worker.kill()
                for worker in started:
                    worker.end()
                raise
            finally:
                with self._lock:
                    self._starting = [worker for worker in self._starting if worker not in started]
                for worker in started:
                    self._give_back(worker, count)

    def interrupt_start(self) -> None:
        """Kill the workers that other threads start: in `start`, or in place of those that were killed in a call."""
        with self._lock:
            starting = list(self._starting)
        for worker in starting:
            worker.kill()

    def call(self, call: Message, count: int, period: Period, unpinned: Unpinned, caller: Call | None = None,
             when_over: Callable[[], None] = lambda: None) -> Any:
        """Run a call in one of ``count`` workers, as `Worker.call`. The caller makes sure that fewer are held.

        A call that has not begun when its worker dies is tried again in another one. Raises ServerStopping if the
        period has been forced before. Raises CallerLeft if ``caller`` waits no longer: ``when_over`` is called, in
        another thread, when its worker, or a new one in its place, can be called again.
        """
        while True:
            worker = self._hold_idle(count, period)
            is_new = worker is None
            worker = worker or self._hold_new(count, period, unpinned)
            try:
                if is_new:
                    worker.wait_until_ready(caller)
                result = worker.call(call, caller)
            except CallerLeft:
                assert caller is not None
                self._leave(worker, caller, count, when_over)
                raise
            except NotBegun:
                self._give_back(worker, count)
                if is_new:  # the call itself has killed it, by its size for example
                    raise WorkerDied("a worker process has died as it received a call") from None
            except BaseException:  # what the call has raised, or a signal handler
                self._give_back(worker, count)
                raise
            else:
                self._give_back(worker, count)
                return result

    def iterate(self, call: Message, count: int, period: Period, unpinned: Unpinned,
                caller: Call, when_over: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Iterate in one of ``count`` workers, as `iterations.iterate`, which also says how ``caller`` may leave.

        Raises CallerLeft, as `call`, if ``caller`` leaves while a new worker starts.
        """
        while True:
            worker = self._hold_idle(count, period)
            is_new = worker is None
            worker = worker or self._hold_new(count, period, unpinned)
            try:
                if is_new:
                    worker.wait_until_ready(caller)
                yield from iterate(worker, call, caller)
            except CallerLeft:
                self._leave(worker, caller, count, when_over)
                raise
            except NotBegun:
                self._give_back(worker, count)
                if is_new:  # as in `call`
                    raise WorkerDied("a worker process has died as it received a call") from None
            except BaseException:  # as in `call`
                self._give_back(worker, count)
                raise
            else:
                self._give_back(worker, count)
                return

    def _leave(self, worker: Worker, caller: Call, count: int, when_over: Callable[[], None]) -> None:
        """Have a thread see a call through that its caller has left; if there are no threads, this one does it."""
        if caller.is_late() and worker.is_ready():  # one that is only starting is not at fault
            worker.kill()

        def run() -> None:
            try:
                self._see_through(worker, caller, count)
            finally:
                with self._lock:
                    del self._leftovers[thread]
                when_over()

        thread = threading.Thread(target=run, name="threaded_echo call without its caller", daemon=True)
        with self._lock:
            self._leftovers[thread] = caller.period
        try:
            thread.start()
        except RuntimeError:  # the caller is told late then
            run()

    def _see_through(self, worker: Worker, caller: Call, count: int) -> None:
        """Wait until a worker can be called again whose caller has left; if it was killed, start another one."""
        period = caller.period
        worker.see_through(caller.time_left())
        replaces = not (worker.is_alive() or period.is_stopping() or interpreter_ends.is_set())
        self._give_back(worker, count)
        if not replaces:
            return
        try:
            worker = self._hold_new(count, period, caller.unpinned)
            try:
                self._list_as_starting(worker, period)
                worker.wait_until_ready()
            finally:
                with self._lock:
                    self._starting.remove(worker)
                self._give_back(worker, count)
        except (OSError, WorkerDied) as error:  # the next call tries again, and raises it
            logger.debug("a worker process that was killed cannot be replaced yet: %s", error,
                         extra=about(None, "workers"))

    def _hold_idle(self, count: int, period: Period) -> Worker | None:
        setup, others = find_setup(count), []
        try:
            with self._lock:
                if period.forced:
                    raise ServerStopping("the server is stopping: it takes no more calls")
                if interpreter_ends.is_set():
                    raise WorkerDied("the interpreter is ending, and with it the server's workers")
                while self._idle:
                    worker = self._idle.pop()
                    if worker.setup is setup:
                        self._held[worker] = period
                        return worker
                    others.append(worker)  # the program has set another initializer since
                return None
        finally:
            for worker in others:
                worker.end()

    def _hold_new(self, count: int, period: Period, unpinned: Unpinned) -> Worker:
        with unpinned():
            worker = Worker(find_setup(count))
        with self._lock:
            self._held[worker] = period
        if period.forced or interpreter_ends.is_set():  # which may have come before this one was listed
            worker.kill()
        return worker

    def _list_as_starting(self, worker: Worker, period: Period) -> None:
        """Have `interrupt_start` find a worker that no caller waits for."""
        with self._lock:
            self._starting.append(worker)
        if period.is_stopping():  # `interrupt_start` may have come before this one was listed
            worker.kill()

    def _give_back(self, worker: Worker, count: int) -> None:
        """Keep a worker for the next call, if it is alive and wanted, or end it."""
        is_alive = worker.is_alive()
        with self._lock:
            period = self._held.pop(worker)
            keeps = is_alive and len(self._idle) + len(self._held) < count and not period.forced
            if keeps:
                self._idle.append(worker)
        if not keeps:
            worker.end()

    def give_up(self) -> None:
        """Kill each worker that is held in a period that has been forced."""
        with self._lock:
            held = [worker for worker, period in self._held.items() if period.forced]
        for worker in held:
            worker.kill()

    def close(self) -> None:
        """As `give_up`; end the idle workers, too. Workers that are needed later are started again."""
        self.give_up()
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.hang_up()
        deadline = time.monotonic() + END_TIMEOUT
        for worker in idle:
            worker.end(max(0, deadline - time.monotonic()))
        with self._lock:
            leftovers = [thread for thread, period in self._leftovers.items() if period.forced]
        for thread in leftovers:  # their workers were killed
            if thread.ident is not None:
                thread.join(END_TIMEOUT)

    def kill(self) -> None:
        """Kill every worker at the interpreter's end, when no thread waits for them any more."""
        with self._lock:
            everyone = [*self._idle, *self._held]
        for worker in everyone:
            worker.kill()

    def forget(self) -> None:
        """Forget every worker in a forked process, whose parent they belong to. No other thread runs there."""
        for worker in (*self._idle, *self._held):
            worker.forget()
        self._idle, self._held, self._starting, self._leftovers = [], {}, [], {}
        self._lock, self._opening = threading.RLock(), threading.Lock()


@atexit.register  # after multiprocessing's own function, and so called before it, which would wait for the workers
def _kill_all() -> None:
    """End the workers of servers that nobody has stopped."""
    interpreter_ends.set()
    for workers in list(_all):
        workers.kill()


def _forget_all() -> None:
    """Forget all workers in a forked process."""
    for workers in list(_all):
        workers.forget()


getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_forget_all)
