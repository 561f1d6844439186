"""The worker processes that a server owns: started, called, ended.

Guarantees:

- A worker is spawned, never forked: a forked one would keep the listening socket open.
- A worker runs one call at a time, for the one thread that holds it: its death costs that call, and no call gets
  another's result.
- A worker ends with the server's process, by SIGKILL too. Busy or not, none outlives `Workers.close`.
- Who starts a worker, or takes one, ends it or gives it back. `Workers.give_up` only kills it, as its holder notices.

The order of locks: `Workers._opening`, then the server's, then `_books`, which is for single steps and never held while
another is waited for.
"""
from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ..errors import WorkerDied
from .child import BEGUN, work

_START = 60.0  # seconds to import a script's modules; a worker that is silent for longer has failed to start
_END = 1.0  # seconds for idle workers to return, and for a killed one to be gone


def has_pidfd() -> bool:
    """Whether processes can be watched by pidfd_open(2): Linux 5.3 and later, where no sandbox forbids it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


_HAS_PIDFD = has_pidfd()

# multiprocessing keeps books on its children, and two threads that collect the same child would confuse them; a signal
# must not reach a number that is another process's by now. Held while a process is started, killed or collected. Guards
# _all and _exiting, too. Re-entrant, as the server's: a stop may come in a signal handler.
_books = threading.RLock()
_all: weakref.WeakSet[Workers] = weakref.WeakSet()
_exiting = False


class _WorkerTraceback(Exception):
    """Carries a worker's traceback, as the cause of the exception that was raised there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _NotBegun(Exception):
    """A worker has ended ahead of a call."""


class Worker:
    """A worker process. Only who holds it calls it; `kill` is for any thread."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ended = False  # guarded by _books
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        # No daemon, since daemons may not have processes of their own. But none may keep the interpreter from ending.
        self._process: BaseProcess = context.Process(target=work, args=(theirs,), name="threaded_echo worker")
        self._death = -1  # a descriptor that becomes readable when the process ends
        self.exitcode: int | None = None  # once it is collected
        try:
            with _without_interrupt(), _books:  # in this order: an interrupt that has waited must not find them taken
                self._process.start()
                # Processes that a worker forks keep its pipes open when it dies, multiprocessing's sentinel included.
                self._death = os.pidfd_open(self._process.pid or 0) if _HAS_PIDFD else self._process.sentinel
        except BaseException:  # no process or descriptor to be had, a signal's: nobody else knows of this one
            self.end()
            raise
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        """Return when the worker can be called. Raises WorkerDied where it has ended, or takes for ever."""
        try:
            self._receive(_START)
            return
        except TimeoutError:
            reason = f"is not ready after {_START:.0f} s"
        except (EOFError, OSError):
            reason = "has ended as it started, and says why on standard error"
        except BaseException:  # a signal's
            self.end()
            raise
        self.end()
        raise WorkerDied(f"a worker process {reason}. Each worker imports the script, which has to be a file, and to "
                         "start its servers under «if __name__ == '__main__':»") from None

    def call(self, call: bytes) -> Any:
        """Run a pickled call, and return its result, or raise its exception.

        Raises WorkerDied where the process ends meanwhile, and _NotBegun where it had ended before.
        """
        begun = False
        try:
            self._connection.send_bytes(call)
            if self._receive() != BEGUN:
                raise EOFError
            begun = True
            reply = self._receive()
        except (EOFError, OSError) as error:
            self.end()
            if begun:
                raise WorkerDied(f"a worker process has died in a call, exit code {self.exitcode}") from None
            raise _NotBegun from error
        except BaseException:  # a signal's: the reply must not become the next call's
            self.end()
            raise
        try:
            succeeded, value, text = pickle.loads(reply)
        except Exception as error:  # whatever an object's own unpickling raises
            raise TypeError(f"the result of an offloaded call cannot be loaded: {error}") from error
        if succeeded:
            return value
        raise value from (_WorkerTraceback(text) if text else None)

    def _receive(self, timeout: float | None = None) -> bytes:
        """Receive a message. Raises EOFError or OSError where the process has ended, TimeoutError after ``timeout``."""
        ready = wait([self._connection, self._death], timeout)
        if not ready:
            raise TimeoutError
        if self._connection not in ready:
            raise EOFError
        return self._connection.recv_bytes()

    def is_alive(self) -> bool:
        """Whether the process can take a call; not for one that was collected."""
        return not self._ended and not wait([self._death], 0)

    def kill(self) -> None:
        """End the process in whatever it does; its holder collects it."""
        with _books:
            if not self._ended:
                self._process.kill()

    def hang_up(self) -> None:
        """Make an idle worker return."""
        self._connection.close()

    def end(self, patience: float = 0) -> None:
        """Collect the process; kill it where it is still running after ``patience`` seconds. May be called again."""
        self._connection.close()
        if self._ended or self._process.pid is None:
            return
        if self._death < 0 or not wait([self._death], patience):
            self.kill()
            wait([self._death if self._death >= 0 else self._process.sentinel], _END)
        deadline = time.monotonic() + _END
        while self._is_uncollected() and time.monotonic() < deadline:
            time.sleep(0.001)  # the sentinel comes a moment ahead of the end
        with _books:
            self._ended = True
            self.exitcode = self._process.exitcode
            if not _exiting:  # when multiprocessing goes through them all
                with contextlib.suppress(ValueError):  # still running: in a system call that nothing ends
                    self._process.close()
        self._close_death()

    def forget(self) -> None:
        """Close what a forked process has of it."""
        self._ended = True
        self._connection.close()
        self._close_death()

    def _is_uncollected(self) -> bool:
        with _books:
            return self._process.is_alive()

    def _close_death(self) -> None:
        if _HAS_PIDFD and self._death >= 0:
            os.close(self._death)


class Workers:
    """The worker processes of one server."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock  # the server's; guards what follows
        self._idle: list[Worker] = []
        self._held: set[Worker] = set()
        self._starting: list[Worker] = []  # ahead of the first client; held, too
        self.given_up = False
        self._opening = threading.Lock()  # held by who starts workers ahead: a second one waits, and finds them there
        with _books:
            _all.add(self)

    def start(self, count: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Have so many workers, ready to be called. Raises WorkerDied or OSError where one cannot start.

        Raises WorkerDied, too, where ``is_over`` comes true and `interrupt_start` is called after that.
        """
        with self._opening:
            with self._lock:
                missing = count - len(self._idle) - len(self._held)
            started: list[Worker] = []
            try:
                for _ in range(missing):  # all of them, and then wait
                    if is_over():
                        raise WorkerDied("a stop came as the workers were started")
                    started.append(worker := self._hold_new())
                    with self._lock:
                        self._starting.append(worker)
                    if is_over():  # interrupted before this one was known
                        worker.kill()
                for worker in started:
                    worker.wait_until_ready()
            except BaseException:  # one that cannot start, or a signal's: none of the others may stay
                for worker in started:
                    worker.kill()
                for worker in started:
                    worker.end()
                raise
            finally:
                with self._lock:
                    self._starting.clear()
                for worker in started:
                    self._give_back(worker, count)

    def interrupt_start(self) -> None:
        """Make `start` in another thread end, with WorkerDied."""
        with self._lock:
            starting = list(self._starting)
        for worker in starting:
            worker.kill()

    def call(self, call: bytes, count: int) -> Any:
        """Run a pickled call in one of ``count`` workers, as `Worker.call`; the caller sees to it that one is free."""
        while True:
            worker = self._hold_idle()
            fresh = worker is None
            worker = worker or self._hold_new()
            try:
                if fresh:
                    worker.wait_until_ready()
                return worker.call(call)
            except _NotBegun:
                if fresh:  # the call itself has killed it, by its size for example
                    raise WorkerDied("a worker process has died as it received a call") from None
            finally:
                self._give_back(worker, count)

    def _hold_idle(self) -> Worker | None:
        with self._lock:
            if self.given_up:
                raise WorkerDied("the server's workers have ended")
            if not self._idle:
                return None
            worker = self._idle.pop()
            self._held.add(worker)
            given_up = self.given_up  # in a signal handler, between these lines
        if given_up:
            worker.kill()
        return worker

    def _hold_new(self) -> Worker:
        worker = Worker()
        with self._lock:
            self._held.add(worker)
            given_up = self.given_up
        if given_up:
            worker.kill()
        return worker

    def _give_back(self, worker: Worker, count: int) -> None:
        alive = worker.is_alive()
        with self._lock:
            self._held.discard(worker)
            keeps = alive and len(self._idle) + len(self._held) < count and not self.given_up
            if keeps:
                self._idle.append(worker)
        if not keeps:
            worker.end()

    def give_up(self) -> None:
        """Kill the workers that are held: who holds one meets WorkerDied. Until `reopen`, so does every other call."""
        with self._lock:
            self.given_up = True
            held = list(self._held)
        for worker in held:
            worker.kill()

    def close(self) -> None:
        """Give up, and end the idle workers."""
        self.give_up()
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.hang_up()
        deadline = time.monotonic() + _END
        for worker in idle:
            worker.end(max(0, deadline - time.monotonic()))

    def reopen(self) -> None:
        """Take calls again."""
        with self._lock:
            self.given_up = False

    def kill(self) -> None:
        """Kill every worker, for the interpreter's end: nobody waits for them any more."""
        self.give_up()
        with self._lock:
            idle = list(self._idle)
        for worker in idle:
            worker.kill()

    def forget(self) -> None:
        """Forget them all, in a forked process: they are its parent's."""
        for worker in (*self._idle, *self._held):
            worker.forget()
        self._idle, self._held, self._starting, self._opening = [], set(), [], threading.Lock()


@atexit.register  # after multiprocessing's own callback, and so called before that one, which would wait for them
def _kill_all() -> None:
    """End the workers of servers that nobody has stopped."""
    global _exiting
    with _books:
        _exiting = True
        everyone = list(_all)
    for workers in everyone:
        workers.kill()


def _forget_all() -> None:
    """Begin anew in a forked process, where locks that other threads held would never be released."""
    global _books
    _books = threading.RLock()
    for workers in list(_all):
        workers.forget()


getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_forget_all)


@contextlib.contextmanager
def _without_interrupt() -> Iterator[None]:
    """Start a process in which SIGINT is blocked, until it ignores it: a terminal sends it to the workers, too."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        multiprocessing.resource_tracker.ensure_running()  # which unblocks it, and SIGTERM, when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pickle_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle a call. Raises TypeError where it cannot be, with the reason."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    name = f"{getattr(function, '__module__', '?')}.{name}"
    try:
        # The name goes first, for an error message where the rest cannot be loaded.
        return pickle.dumps((name, pickle.dumps((function, args, kwargs))))
    except Exception as error:  # whatever an object's own pickling raises
        raise TypeError(f"{name} cannot be sent to a worker process: {error}") from error
