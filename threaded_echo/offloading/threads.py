"""WorkerThreads: an executor of threads that let the server's own threads go first."""
from __future__ import annotations

import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from ..observe.logs import about
from .crew import Crew, register
from .thread_work import Submitted, Work

logger = logging.getLogger("threaded_echo")

P = ParamSpec("P")
T = TypeVar("T")

warned = threading.Event()
"""Set when the warning about the GIL has been given in this process."""


class WorkerThreads(Executor):
    """An executor of ``n`` threads at a lower priority, for handlers that compute in Python without the GIL.

    ``server = ThreadedTCPServer(address, Handler, executor=WorkerThreads(2))``: the system runs the server's own
    threads first, so that clients who ask for little do not wait for those who ask for much; nothing is pickled. The
    priority is lowered on Linux, by `NICENESS`. With the GIL one thread at a time runs anyway: the first object that
    is made then says so in a RuntimeWarning, and worker processes (``executor=2``) are what helps.

    It is a `concurrent.futures.Executor`, to be used wherever one is. ``initializer(*initargs)`` is called in each
    thread as it starts; if it fails, each call raises BrokenExecutor. The threads start with the first call, or with
    the first server whose `executor` this is. They are daemons: a function that never returns does not keep the
    interpreter from ending, which waits at most EXIT_TIMEOUT seconds for what was submitted.

    A stop of a server gives up that server's calls: those that have not begun never do, and a function that runs on is
    one of the report's survivors. When the last server that uses this object has stopped, the threads return. They
    start again for the next call; only `shutdown` is for good, and it is for the program to call.

    *Thread safety*: any thread may call any method.
    """

    def __init__(self, n: int, *, initializer: Callable[..., object] | None = None,
                 initargs: tuple[Any, ...] = ()) -> None:
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be a number of threads, not {n!r}")
        if n < 1:
            raise ValueError(f"n must be at least one thread: {n!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a function, not {initializer!r}")
        self.count = n
        """The number of threads."""
        self._initializer = initializer, initargs
        self._lock = threading.RLock()  # guards what follows; re-entrant, since a signal handler may stop a server
        self._crew: Crew | None = None
        self._servers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_shut_down = False
        self._finalizer = weakref.finalize(self, int)  # ends the crew when a program drops this object
        self._finalizer.detach()
        if has_gil() and not warned.is_set():
            warned.set()
            warnings.warn("this Python has the GIL: WorkerThreads compute one at a time, and beside the server's own "
                          "threads; a number of worker processes, as in executor=2, is what helps",
                          RuntimeWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<WorkerThreads({self.count})>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call ``fn(*args, **kwargs)`` in a thread, and return a `concurrent.futures.Future`.

        Raises RuntimeError after `shutdown`, or if no thread can be started.
        """
        future: Future[T] = Future()
        self.put(Submitted(future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the threads when those that were submitted are done.

        ``wait``: return after that. ``cancel_futures``: cancel what has not begun. May be called again, and from a
        function that runs in one of the threads, which is not waited for.
        """
        with self._lock:
            self._is_shut_down = True
            crew = self._crew
        if crew is not None:
            crew.end()
            if cancel_futures:
                crew.cancel()
            if wait:
                crew.join(None, lambda work: True)

    # For the servers.

    def put(self, work: Work) -> None:
        """Have work done. Raises as `submit`."""
        while not self.start().put(work):
            pass  # the threads have just been told to return: start others

    def start(self) -> Crew:
        """Have threads, and return them. Raises as `submit`."""
        crew = self._crew
        if crew is not None and crew.is_working() and not self._is_shut_down:
            return crew
        made: Crew | None = None
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            crew = self._crew
            if crew is None or not crew.is_working():
                made = Crew(*self._initializer)
                made.start(self.count)
                register()
                self._finalizer.detach()
                self._finalizer = weakref.finalize(self, made.end)
                self._finalizer.atexit = False
                crew = self._crew = made
        if made is not None and len(made.threads) < self.count:  # without the lock: logging runs a program's code
            logger.warning("only %d of %d worker threads could be started", len(made.threads), self.count,
                           extra=about(None, "workers"))
        return crew

    def is_current(self) -> bool:
        """Return whether the calling thread is one of the threads: it must not wait for them."""
        crew = self._crew
        return crew is not None and threading.current_thread() in crew.threads

    def enter(self, server: object) -> None:
        """Note that a server uses the threads."""
        with self._lock:
            self._servers.add(server)

    def leave(self, server: object, timeout: float) -> None:
        """Note that a server has stopped. If it was the last one, end the threads, and join those that only return.

        Takes at most ``timeout`` seconds.
        """
        with self._lock:
            self._servers.discard(server)
        crew = self.end_unless_used()
        if crew is not None:
            crew.join(timeout, lambda work: work.is_over())

    def end_unless_used(self) -> Crew | None:
        """Have the threads return if no server uses them; return those."""
        with self._lock:
            crew = None if self._servers else self._crew
        if crew is not None:
            crew.end()
        return crew


def has_gil() -> bool:
    """Return whether one thread at a time runs."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())
