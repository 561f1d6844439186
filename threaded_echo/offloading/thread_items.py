"""Iterating over what a generator function yields in a thread of WorkerThreads.

Invariants:

- The thread is at most `AHEAD` items ahead of the handler. It goes on when the handler asks for the next one.
- When the handler is done with the iteration, the thread has ended it, or goes on without its caller, as in a call: it
  has `CLOSE_TIMEOUT` seconds to close the generator.
- A stop that gives the call up ends the thread's wait for the handler, too, which may never ask again.
"""
from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from ..errors import ServerStopping
from ..observe.logs import about
from .call import AHEAD, CLOSE_TIMEOUT, Call
from .executors import run_inline, wait_until_done
from .thread_work import ThreadCall
from .threads import WorkerThreads
from .turns import Turn
from .waiting import wait_for

logger = logging.getLogger("threaded_echo")


class ThreadItems(ThreadCall):
    """Work that yields items, which a server's handler takes."""

    __slots__ = ("_call", "_items", "_room", "_is_closed")

    def __init__(self, turn: Turn, run: Callable[[Callable[[], Any]], Any]) -> None:
        """Make a call by ``run``. The turn's waker is set for each item, and when it is done."""
        assert turn.waker is not None
        super().__init__(lambda: run(self._make), turn.waker)
        self._call: Call = turn.call
        self._items: deque[Any] = deque()  # yielded, and not taken
        self._room = threading.Semaphore(AHEAD)
        self._is_closed = False

    def _make(self) -> None:
        """Make the items, in the thread."""
        items = iter(run_inline(self._call))
        try:
            while self._room.acquire() and not self._is_closed:
                try:
                    self._items.append(next(items))
                except StopIteration:
                    return
                self._waker.set()
        finally:
            getattr(items, "close", bool)()
        if self._call.period.forced:
            raise ServerStopping("the server has ended this call as it stopped")

    def has_items(self) -> bool:
        """Return whether an item can be taken."""
        return bool(self._items)

    def take(self) -> Any:
        """Take the next item."""
        return self._items.popleft()

    def go_on(self) -> None:
        """Let the thread make one more."""
        self._room.release()

    def give_up(self) -> None:
        """Let the thread make no more."""
        self._is_closed = True
        self._room.release()


def iterate_in_thread(turn: Turn, threads: WorkerThreads, run: Callable[[Callable[[], Any]], Any],
                      when_over: Callable[[], None]) -> Generator[Any, None, None]:
    """Iterate over what a call yields in a worker thread, by ``run``. If that runs on, the turn is left to its thread.
    """
    assert turn.waker is not None
    call, work = turn.call, ThreadItems(turn, run)
    turn.work = work
    threads.put(work)
    try:
        while True:
            wait_until_done(call, turn.waker, lambda: work.is_done or work.has_items())
            if not work.has_items():
                break
            yield work.take()
            work.go_on()
    except BaseException:  # the handler has left the loop, or waits no longer
        leave(turn, work, when_over)
        raise
    work.result()


def leave(turn: Turn, work: ThreadItems, when_over: Callable[[], None]) -> None:
    """Have a thread close its generator, and wait for that, but not for longer than CLOSE_TIMEOUT."""
    call, waker = turn.call, turn.waker
    assert waker is not None
    deadline = time.monotonic() + CLOSE_TIMEOUT
    work.give_up()
    try:
        while work.is_taken() and not (work.is_done or call.period.forced or call.is_late()):
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                break
            wait_for([waker], None, seconds)
            waker.clear()
    finally:
        turn.is_left = True  # before the thread may look
        turn.is_left = work.leave(when_over)
    if turn.is_left:
        if call.is_late():
            call.tell_that_it_runs_on()
    elif work.is_done:
        try:
            work.result()
        except ServerStopping:
            pass  # the handler gets its own
        except Exception as error:  # the function's own
            logger.warning("%s: what an iteration raised after it was left: %s", call.who, error, exc_info=error,
                           extra=about(call.client, "iteration"))
