"""One worker process, as the server sees it. The other side is in `child`.

Invariants:

- A worker is spawned, never forked: a forked one would keep the listening socket open.
- One thread at a time holds a worker: it alone calls and ends it. Any thread may `kill` it, which the holder notices.
- A worker runs one call at a time. Its death costs that call, and no call gets another one's result.
- `end` collects the process, so that none is left as a zombie.

`_children_lock` is the innermost lock: nothing waits while it is held.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from ..clients.client import Client
from ..errors import WorkerDied
from .call import Call, CallerLeft
from .channel import make_ends, open_end
from .child import work
from .initializing import WorkerProcesses
from .messages import ERROR, INITIALIZE, Message, Received, pickle_call
from .polling import MOST_SECONDS
from .waiting import wait_with_caller
from .wire import Disconnected, look, wait

START_TIMEOUT = 60.0
"""Seconds that a worker may take to import the program's modules before it counts as failed."""

END_TIMEOUT = 1.0
"""Seconds that a stop waits for idle workers to return, and for each one that it has killed."""

interpreter_ends = threading.Event()
"""Set when the interpreter has begun to end."""

# Held while a process is started, killed or collected. multiprocessing's set of child processes is not safe against two
# threads that collect the same child, and a signal must not be sent to a process number that has been given to another
# process. Re-entrant, since a signal handler may stop the server.
_children_lock = threading.RLock()


def _renew_lock() -> None:
    """Make a new lock in a forked process, where another thread's would never be released."""
    global _children_lock
    _children_lock = threading.RLock()


getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_renew_lock)


def has_pidfd() -> bool:
    """Return whether processes can be watched by pidfd_open(2): Linux 5.3 and later, if no sandbox forbids it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


_HAS_PIDFD = has_pidfd()


class NotBegun(Exception):
    """Raised if a worker has ended before it received a call."""


class _WorkerTraceback(Exception):
    """The cause of an exception that was raised in a worker: its traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Worker:
    """A worker process."""

    def __init__(self, setup: WorkerProcesses | None = None) -> None:
        """Start the process. Raises OSError if no process or descriptor is available.

        ``setup`` has the initializer. Raises TypeError if that cannot be sent to a process.
        """
        self.setup = setup
        self._initializer: Message | None = None  # that is still to be sent
        self._has_started = self._is_ready = False
        context = multiprocessing.get_context("spawn")
        self._ended = False  # guarded by _children_lock
        ours, theirs = make_ends(context)
        self._caller: Call | None = None  # whose time limits transfers; None if nobody's does
        self._deadline: float | None = None  # when a transfer is given up; see `limit`
        self._channel = open_end(ours, self._has_no_time)
        # No daemon, since daemons may not have processes of their own. `processes` ends it with the interpreter.
        self._process: BaseProcess = context.Process(target=work, args=(theirs,), name="threaded_echo worker")
        self._end = -1  # a descriptor that becomes readable when the process ends
        self.exitcode: int | None = None  # known after `end`
        try:
            if setup is not None and setup.initializer is not None:
                self._initializer = pickle_call(setup.initializer, setup.initargs, {}, INITIALIZE)
            # The lock is released before SIGINT is unblocked: a handler that runs then must not find it taken.
            with _sigint_blocked(), _children_lock:
                self._process.start()
                # multiprocessing's sentinel is a pipe, which a process that the worker has forked keeps open.
                self._end = os.pidfd_open(self._process.pid or 0) if _HAS_PIDFD else self._process.sentinel
        except BaseException:  # no process or descriptor is available, or a signal handler has raised
            self.end()
            raise
        finally:
            for each in theirs:
                each.close()

    def send_initializer(self) -> None:
        """Have the worker call its initializer, if it has one, as soon as it has started."""
        message, self._initializer = self._initializer, None
        if message is not None:
            with message, contextlib.suppress(Disconnected):  # `wait_until_ready` says what has happened
                message.send(self._channel)

    def wait_until_ready(self, caller: Call | None = None) -> None:
        """Wait until the worker can be called.

        Raises WorkerDied if it ends, takes longer than START_TIMEOUT to start, or if its initializer fails; and
        CallerLeft, as `receive`, after which it can be called again.
        """
        self.send_initializer()
        try:
            if not self._has_started:
                self.receive(caller, START_TIMEOUT)
                self._has_started = True
            if self.setup is not None:
                self._check_initializer(self.receive(caller))
            self._is_ready = True
            return
        except CallerLeft:
            raise
        except TimeoutError:
            reason = f"is not ready after {START_TIMEOUT:.0f} s"
        except Disconnected:
            reason = "has ended as it started, and says why on standard error"
        except BaseException:  # a signal handler has raised
            self.end()
            raise
        self.end()
        raise WorkerDied(f"a worker process {reason}. Each worker imports the script, which has to be a file, and to "
                         "start its servers under «if __name__ == '__main__':»") from None

    def _check_initializer(self, outcome: Received) -> None:
        if outcome.kind == ERROR:
            try:
                error, text = outcome.load()
            except Disconnected:
                raise
            except Exception as cause:  # the exception's own unpickling has failed
                raise WorkerDied("the initializer of the worker processes has failed, and what it raised cannot be "
                                 f"loaded: {cause!r}") from cause
            error.__cause__ = _WorkerTraceback(text)
            raise WorkerDied(f"the initializer of the worker processes has failed: {error!r}") from error

    def call(self, call: Message, caller: Call | None = None) -> Any:
        """Run a call, and return its result or raise its exception.

        Raises WorkerDied if the process ends meanwhile, and NotBegun if it had ended before. Raises CallerLeft if
        ``caller`` waits no longer: `see_through` is next.
        """
        with self.exchange(call, caller) as reply:
            return self.open(reply)

    def exchange(self, call: Message, caller: Call | None = None) -> Received:
        """Send a call, and return the reply, for `open`. Raises as `call` and `receive`.

        Raises TimeoutError, after which the process has ended, if the caller's time is up in the middle of a transfer:
        an object's own unpickling may keep the worker from receiving the rest, or somebody may have stopped it.
        """
        try:
            self._begin_transfer(caller)
            call.send(self._channel)
            reply = self.receive(caller)
            self._channel.was_begun()  # it was, and the next question is about the next call
            return reply
        except Disconnected as error:
            begun = self._channel.was_begun()
            death = self._end_in_transfer()
            if begun:
                raise death from None
            raise NotBegun from error
        except CallerLeft:
            raise
        except BaseException:  # a signal handler has raised: the next call must not get this one's reply
            self.end()
            raise

    def _begin_transfer(self, caller: Call | None) -> None:
        """Limit the transfers that follow by the caller's time, until `limit` is called."""
        left = None if caller is None else caller.time_left()
        self._caller = caller
        self.limit(None if left is None else time.monotonic() + left)

    def limit(self, deadline: float | None) -> None:
        """Give up a transfer that is not over at this time, as if the process had ended.

        ``None``: give up none, as nobody's time limits them any more.
        """
        if deadline is None:
            self._caller = None
            if self._deadline is None:
                return
        self._deadline = deadline
        self._channel.hasten(None if deadline is None else deadline - time.monotonic())

    def _end_in_transfer(self) -> WorkerDied:
        """End the process; return what says that it has died. Raises TimeoutError if its caller's time was up."""
        caller, is_alive = self._caller, self.is_alive()
        self.end()
        if caller is not None and is_alive:
            caller.check()
        return self._death()

    def see_through(self, seconds: float | None) -> None:
        """Wait for the end of a start or a call whose caller has left, and drop the result; kill it after ``seconds``.
        """
        try:
            self.limit(None)
            if not self._is_ready:  # the worker is not at fault if a caller has no time to wait for its start
                return self.wait_until_ready()
            self.limit(None if seconds is None else time.monotonic() + seconds)
            # One look takes at most MOST_SECONDS, and a shorter one than asked for would be taken for the end.
            self.receive(timeout=None if seconds is None or seconds > MOST_SECONDS else seconds).skip()
            self.limit(None)
            self.end_call()
        except (Disconnected, TimeoutError, WorkerDied):
            self.end()

    def ask(self, kind: int, caller: Call | None) -> Received:
        """Send a message without content in the middle of a call, and return the reply. Raises as `exchange`."""
        try:
            self._begin_transfer(caller)
            self.send(kind)
            return self.receive(caller)
        except Disconnected:
            raise self._end_in_transfer() from None
        except CallerLeft:
            raise
        except BaseException:  # as in exchange
            self.end()
            raise

    def open(self, reply: Received) -> Any:
        """Return what a reply holds, or raise it. Raises TimeoutError as `exchange`."""
        try:
            if self._deadline is not None:
                self._channel.hasten(self._deadline - time.monotonic())
            content = reply.load()
        except Disconnected:
            raise self._end_in_transfer() from None
        except Exception as error:  # whatever an object's own unpickling raises
            raise TypeError(f"the result of an offloaded call cannot be loaded: {error}") from error
        except BaseException:  # as in exchange
            self.end()
            raise
        finally:
            self.limit(None)
        if reply.kind != ERROR:
            return content
        raised, text = content
        try:
            raise raised from (_WorkerTraceback(text) if text else None)
        finally:
            del raised, content  # the exception's traceback refers to this frame, which would refer to the exception

    def _death(self) -> WorkerDied:
        return WorkerDied(f"a worker process has died in a call, exit code {self.exitcode}")

    def send(self, kind: int) -> None:
        """Send a message without content. Raises Disconnected."""
        self._channel.send(kind)

    def receive(self, caller: Call | None = None, timeout: float | None = None) -> Received:
        """Wait for a message. Raises CallerLeft if ``caller`` waits no longer.

        Raises Disconnected if the process has ended, and TimeoutError after ``timeout`` seconds.
        """
        self._wait(timeout, caller)
        return Received(self._channel)

    def end_call(self) -> None:
        """Note that a call is over that `exchange` has not seen the end of."""
        self._channel.was_begun()

    def _wait(self, timeout: float | None = None, caller: Call | None = None) -> None:
        """Wait for data. Raises as `receive`."""
        if self._channel.is_ahead():
            return
        ready = self._look(None, timeout)[0] if caller is None else wait_with_caller(self._look, caller, timeout)
        if not ready:
            raise TimeoutError
        if self._channel not in ready and not wait([self._channel], 0):  # it may have come as the process ended
            raise Disconnected

    def _look(self, client: Client | None, seconds: float | None) -> tuple[list[Any], bool]:
        """Wait for data, the end of the process, or the loss of a client's connection, as `waiting.wait_for`."""
        connection = -1 if client is None else client._connection.fileno()
        seconds = None if seconds is None else min(max(0, seconds), MOST_SECONDS)
        return look([self._channel, self._end], seconds, connection)

    def _has_no_time(self) -> bool:
        """Return whether to give up a transfer that waits, or that has sent or received a piece."""
        if not self.is_alive():
            return True
        if self._deadline is None:
            return False
        left = self._deadline - time.monotonic()
        self._channel.hasten(left)
        return left <= 0

    def is_ready(self) -> bool:
        """Return whether it has started, and can be or is called."""
        return self._is_ready

    def is_alive(self) -> bool:
        """Return whether the process is there to take a call."""
        return not self._ended and not wait([self._end], 0)

    def kill(self) -> None:
        """End the process, whatever it is doing. *Thread safety*: any thread."""
        with _children_lock:
            if not self._ended:
                self._process.kill()

    def hang_up(self) -> None:
        """Make an idle worker return."""
        self._channel.close()

    def end(self, timeout: float = 0) -> None:
        """Collect the process; kill it if it is still running after ``timeout`` seconds. May be called again."""
        self._channel.close()
        if self._initializer is not None:
            self._initializer.close()
        if self._ended or self._process.pid is None:
            return
        if self._end < 0 or not wait([self._end], timeout):
            self.kill()
            wait([self._end if self._end >= 0 else self._process.sentinel], END_TIMEOUT)
        deadline = time.monotonic() + END_TIMEOUT
        while self._is_running() and time.monotonic() < deadline:
            time.sleep(0.001)  # the sentinel is readable a moment before the process has ended
        with _children_lock:
            self._ended = True
            self.exitcode = self._process.exitcode
            if not interpreter_ends.is_set():  # multiprocessing then goes through all child processes itself
                with contextlib.suppress(ValueError):  # still running, in a system call that nothing ends
                    self._process.close()
        self._close_pidfd()

    def forget(self) -> None:
        """Close the descriptors that a forked process has inherited. The worker is its parent's."""
        self._ended = True
        self._channel.close()
        self._close_pidfd()

    def _is_running(self) -> bool:
        with _children_lock:
            return self._process.is_alive()

    def _close_pidfd(self) -> None:
        if _HAS_PIDFD and self._end >= 0:
            os.close(self._end)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT while a process is started, since a terminal sends it to the workers too, until they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        multiprocessing.resource_tracker.ensure_running()  # it unblocks SIGINT and SIGTERM when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
