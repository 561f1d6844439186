"""Worker threads that were started together, and their queue.

Invariants:

- Each thread takes one ``None`` from the queue, which ends it; nothing is put behind those. So all that was put before
  is done.
- A thread knows its crew only: it keeps no `WorkerThreads` alive.
"""
from __future__ import annotations

import atexit
import functools
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any

from ..observe.logs import about
from .thread_work import Work

logger = logging.getLogger("threaded_echo")

NICENESS = 10
"""How much a thread lowers its priority: the server's own threads go first, and these use what is left."""

EXIT_TIMEOUT = 5.0
"""Seconds that the end of the interpreter waits for what has been submitted."""

_is_linux = sys.platform == "linux" and hasattr(os, "setpriority")  # elsewhere a thread has no priority of its own

_FAILED = "the initializer of the worker threads has failed"

_all: weakref.WeakSet[Crew] = weakref.WeakSet()


class _Thread(threading.Thread):
    """One of the threads of a crew."""

    def __init__(self, crew: Crew, number: int) -> None:
        super().__init__(name=f"threaded_echo worker thread {number}", daemon=True)
        self.work: Work | None = None  # what it does
        self._crew = crew

    def run(self) -> None:
        lower_priority()
        crew = self._crew
        if not crew.initialize():
            return
        while (work := crew.queue.get()) is not None:
            self.work = work
            try:
                work.run()
            except BaseException:  # a program's own callback, or its logging: the thread has other work to do
                logger.critical("what was to be told of the end of a call has failed", exc_info=True,
                                extra=about(None, "workers"))
            self.work = work = None


class Crew:
    """Threads that were started together, and their queue."""

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self.queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.threads: list[_Thread] = []
        self._process = os.getpid()
        self._initializer = initializer, initargs
        self._lock = threading.RLock()  # guards the fields below, threads, and what is put; re-entrant for finalizers
        self._is_over = False
        self._is_broken = False
        _all.add(self)

    def start(self, count: int) -> None:
        """Start the threads. Raises RuntimeError if there is none at all."""
        with self._lock:
            for number in range(1, count + 1):
                thread = _Thread(self, number)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more: fewer do the work, too
                    if not self.threads:
                        self._is_over = True
                        raise
                    return
                self.threads.append(thread)

    def is_working(self) -> bool:
        """Return whether it takes work. In a forked process it does not: its threads are the parent's."""
        return not self._is_over and self._process == os.getpid()

    def put(self, work: Work) -> bool:
        """Have work done; False if the crew takes no more. Raises BrokenExecutor if its initializer has failed."""
        with self._lock:
            if self._is_broken:
                raise BrokenExecutor(_FAILED)
            if self._is_over:
                return False
            self.queue.put(work)
        return True

    def initialize(self) -> bool:
        """Call the initializer in a new thread. If it fails, fail all work, and return False."""
        initializer, initargs = self._initializer
        try:
            if initializer is not None:
                initializer(*initargs)
            return True
        except BaseException:  # a program's own
            logger.critical("the initializer of worker threads has failed", exc_info=True,
                            extra=about(None, "workers"))
        with self._lock:
            self._is_broken = True
        self._drain(lambda work: work.fail(BrokenExecutor(_FAILED)))
        return False

    def end(self) -> None:
        """Have the threads return when all that was put is done. May be called again."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                for _ in self.threads:
                    self.queue.put(None)

    def cancel(self) -> None:
        """Cancel what no thread has taken up. Only after `end`."""
        self._drain(lambda work: work.cancel())

    def _drain(self, drop: Callable[[Work], None]) -> None:
        ends = 0
        while True:
            try:
                work = self.queue.get_nowait()
            except queue.Empty:
                break
            if work is None:
                ends += 1
            else:
                drop(work)
        for _ in range(ends):
            self.queue.put(None)

    def join(self, timeout: float | None, waits_for: Callable[[Work], bool]) -> None:
        """Join the threads; of those that work, the ones whose work is waited for."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self.threads:
            work = thread.work
            if thread is not threading.current_thread() and (work is None or waits_for(work)):
                thread.join(None if deadline is None else max(0, deadline - time.monotonic()))


@functools.cache
def register() -> None:
    """Have the end of the interpreter wait for what was submitted, from the first call on."""
    atexit.register(_finish)


def _finish() -> None:
    """End all threads when what was submitted is done; do not wait for what a stop of a server has left."""
    crews = [crew for crew in _all if crew._process == os.getpid()]
    for crew in crews:
        crew.end()
    deadline = time.monotonic() + EXIT_TIMEOUT
    for crew in crews:
        crew.join(max(0, deadline - time.monotonic()), lambda work: not work.is_left())


def lower_priority() -> None:
    """Lower the priority of the calling thread below that of the process, on Linux."""
    if _is_linux:
        try:
            niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(niceness, 19))
        except OSError as error:  # a sandbox may forbid it
            logger.debug("a worker thread cannot lower its priority: %s", error, extra=about(None, "workers"))
