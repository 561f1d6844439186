"""Serving until a signal: what ``server.run`` does.

Guarantees:

- A signal handler does nothing but put the signal's number into a queue. The main thread waits for that, and another
  thread serves and stops. So Ctrl-C and SIGTERM work in every state, also while the server starts or stops.
- The handlers that were there before are restored, and a signal that was ignored stays ignored.
- An exception of another signal handler stops the server, and is then the caller's.
"""
from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any

from ..observe.logs import NOTICE
from ..transport.listeners import show_address

logger = logging.getLogger("threaded_echo")

_LATEST = 1.0
"""Seconds after which a signal is noticed at the latest. One that comes just before the main thread begins to wait does
not end the waiting, and its handler cannot run until the waiting is over."""


def run(server: Any, duration: float | None) -> Any:
    """Serve, and return the stop's report: see ``ThreadedMixIn.run``."""
    serving = _Run(server, duration)
    if threading.current_thread() is threading.main_thread():
        serving.serve_and_obey()
    else:
        serving.serve()
    return serving.report()


class _Run:
    """One call of ``server.run``."""

    def __init__(self, server: Any, duration: float | None) -> None:
        self._server = server
        self._duration = duration
        self._reasons: queue.SimpleQueue[None] = queue.SimpleQueue()  # to stop: a signal, the serving loop's end
        self._signals: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # their numbers; None: it is all over
        self._thread = threading.Thread(target=self._serve_in_thread, name="threaded_echo run", daemon=True)
        self._reports: list[Any] = []
        self._cuts = False  # a second signal came, perhaps before the stop of the first one has begun
        self._accepts = False
        self._loop_error: BaseException | None = None
        self._loop_ended = False
        self._error: BaseException | None = None

    def report(self) -> Any:
        """Return the report of the stop. Raises what has ended the serving, if that was an error."""
        error, self._error, self._loop_error = self._error, None, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback and this frame would keep each other
        # A second signal's stop may be over before the first one's begins, which then finds nothing left to report.
        return self._reports[0]

    # In the main thread.

    def serve_and_obey(self) -> None:
        """Serve in another thread, and obey signals in this one."""
        with handled(self._signals.put):
            try:
                self._thread.start()
                self._obey()
            except BaseException:  # whatever another signal handler has raised, or the thread cannot start
                self._reasons.put(None)
                if self._thread.is_alive():
                    self._obey()
                raise
        self._thread.join()

    def _obey(self) -> None:
        """Stop at a signal, and cut the connections at the second one. Returns when the stop is over."""
        came = 0
        while self._next_signal() is not None:
            came += 1
            if came == 1:
                self._reasons.put(None)
            else:
                self._cuts = True
                self._stop()

    def _next_signal(self) -> int | None:
        while True:
            try:
                return self._signals.get(timeout=_LATEST)
            except queue.Empty:
                if not self._thread.is_alive():  # another signal handler has raised when its None was taken
                    return None

    # In the thread that serves and stops.

    def _serve_in_thread(self) -> None:
        try:
            self.serve()
        except BaseException as error:  # whatever it is, the main thread raises it
            self._error = error
        finally:
            self._signals.put(None)

    def serve(self) -> None:
        """Serve until there is a reason to stop, then stop."""
        logger.log(NOTICE, "listening on %s", show_address(self._server.server_address), extra={"event": "listening"})
        try:
            self._start()
        except RuntimeError:
            if self._loop_error is not None or not self._loop_ended:
                raise
            # Somebody has stopped the server while it was starting.
        with suppress(queue.Empty):
            self._reasons.get(timeout=self._duration)
        live = self._count()
        logger.log(NOTICE, "stopping: %d client%s live", live, "" if live == 1 else "s", extra={"event": "stopping"})
        self._stop()
        report = self._reports[0]
        logger.log(NOTICE, "stopped in %.3f s: %d drained, %d forced, %d still running", report.seconds, report.drained,
                   report.forced, len(report.survivors), extra={"event": "stopped"})
        if self._loop_error is not None:
            raise self._loop_error

    def _serve_forever(self) -> None:
        """Serve in the server's background thread."""
        try:
            self._server.serve_forever()
        except BaseException as error:  # whatever it is, `serve` raises it
            self._loop_error = error
            if not self._accepts:
                raise  # for the start to tell
        finally:
            self._loop_ended = True
            self._reasons.put(None)

    # The server, under names that a program's class does not use for anything else.

    def _start(self) -> None:
        self._server._threaded_state.serving.start(self._serve_forever)
        self._accepts = True

    def _count(self) -> int:
        return len(self._server._threaded_state.registry.snapshot())

    def _stop(self) -> None:
        self._reports.append(self._server._stop(0 if self._cuts else None))


@contextmanager
def handled(obey: Callable[[int], object]) -> Iterator[None]:
    """Call ``obey`` with the number of each SIGINT and SIGTERM, unless the process ignores that signal.

    Only the main thread can set signal handlers: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        # A process that a handler has forked ignores SIGINT: the terminal's key sends it to all processes, and it is
        # the server's to obey.
        if os.getpid() == owner:
            obey(number)

    _watch_forks()
    _replaced.append(before)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: it belongs to a library in C
                before[number] = signal.getsignal(number)
                signal.signal(number, handle)
        yield
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)
        _replaced.remove(before)


_replaced: list[dict[int, Any]] = []
"""The signal handlers that each `handled` has replaced, the outermost first."""


@cache
def _watch_forks() -> None:
    """Have forked processes restore what SIGTERM did before."""
    getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_restore_sigterm)


def _restore_sigterm() -> None:
    """Let SIGTERM end a process that a handler has forked.

    Not left to our handler in that process: it runs late or never there, if another thread than the main one has forked
    (seen on 3.13 to 3.15).
    """
    handlers = [before[signal.SIGTERM] for before in _replaced if signal.SIGTERM in before]
    for handler in handlers[:1]:
        signal.signal(signal.SIGTERM, handler)
