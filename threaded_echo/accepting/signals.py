"""Serving until a signal: what ``server.run`` does.

Guarantees:

- A signal handler puts the signal's number into a queue, for which the main thread waits while a background thread
  serves; a second one hastens the stop that is in progress, or the one that is about to begin. So Ctrl-C and SIGTERM
  work in every state, also while the server starts or stops. A handler waits for nothing: the main thread, which it
  interrupts, may hold a lock (of logging, say) that another thread needs in order to end.
- The handlers that were there before are restored, and a signal that was ignored stays ignored.
- An exception of another signal handler stops the server, and is then raised to the caller of `run`.
- SIGHUP reloads the server's certificate, in the main thread, if the server knows its files; else it is left alone.
"""
from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import FrameType
from typing import Any

from ..observe.logs import NOTICE, printable
from ..transport.listeners import show_address

logger = logging.getLogger("threaded_echo")

_FIRST_WAIT = 0.1
"""Seconds of the first wait for a signal; each is twice as long as the one before. A signal that comes just
before a wait begins does not end that wait, and is noticed at its end. An idle server hardly ever wakes up for this."""

_STOPS = (signal.SIGINT, signal.SIGTERM)
_RELOAD: Any = getattr(signal, "SIGHUP", None)  # Windows has none


def run(server: Any, state: Any, duration: float | None) -> Any:
    """Serve, and return the stop's report: see ``ThreadedMixIn.run``."""
    # To stop: a signal's number; None: the loop has ended. And to reload: SIGHUP's number.
    reasons: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    errors: list[BaseException] = []
    report: Any = None
    signals = 0

    def serve() -> None:
        try:
            server.serve_forever()
        except BaseException as error:  # whatever it is, the caller of run gets it
            errors.append(error)
        finally:
            reasons.put(None)

    def obey(number: int) -> None:
        nonlocal signals
        reasons.put(number)
        if number == _RELOAD:
            return
        signals += 1
        if signals > 1:
            state.stopping.hasten()

    def stop() -> None:
        nonlocal report
        report = server._threaded_stop()

    with handled(obey, _obeyed(state)):
        logger.log(NOTICE, "listening on %s", show_address(server.server_address), extra={"event": "listening"})
        with ExitStack() as stack:
            # An exception of another signal handler, too, stops the server.
            stack.callback(stop)
            try:
                state.loops.begin(serve)
            except RuntimeError:  # it serves already, or there are no threads: it stays as it was
                stack.pop_all()
                raise
            _wait(reasons, duration, lambda: _reload(server, state))
            _log_stopping(len(state.registry.live))
        logger.log(NOTICE, "%s", str(report).partition("\n")[0], extra={"event": "stopped"})
    if errors:
        raise errors.pop()
    return report


def _log_stopping(live: int) -> None:
    logger.log(NOTICE, "stopping: %d client%s live", live, "" if live == 1 else "s", extra={"event": "stopping"})


def _obeyed(state: Any) -> tuple[int, ...]:
    """Return the signals that `run` obeys: SIGHUP only if there is something to reload."""
    return _STOPS if _RELOAD is None or state.certificates.files is None else (*_STOPS, _RELOAD)


def _reload(server: Any, state: Any) -> None:
    """Reload the certificate, and log whether that has worked."""
    try:
        certfile, _ = state.certificates.reload(server)
        logger.log(NOTICE, "certificate reloaded: %s", printable(os.fsdecode(certfile)), extra={"event": "reloaded"})
    except Exception as error:  # whatever is wrong with the new one, the server goes on with the old one
        logger.error("the certificate could not be reloaded, and the old one stays: %s", error)


def _wait(reasons: queue.SimpleQueue[int | None], duration: float | None, reload: Callable[[], None]) -> None:
    """Wait for a reason to stop, at most ``duration`` seconds, and call ``reload`` for each reason to do that."""
    deadline = None if duration is None else time.monotonic() + duration
    wait = _FIRST_WAIT
    while deadline is None or time.monotonic() < deadline:
        remaining = wait if deadline is None else max(0, min(wait, deadline - time.monotonic()))
        try:
            reason = reasons.get(timeout=remaining)
        except queue.Empty:
            wait = min(2 * wait, threading.TIMEOUT_MAX)
            continue
        if reason is None or reason != _RELOAD:
            return
        reload()


@contextmanager
def handled(obey: Callable[[int], object], numbers: Iterable[int] = _STOPS) -> Iterator[None]:
    """Call ``obey`` with the number of each of these signals, unless the process ignores that one.

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
        for number in numbers:
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
    """Have forked processes restore what SIGTERM and SIGHUP did before."""
    getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_restore_in_child)


def _restore_in_child() -> None:
    """Let SIGTERM end a process that a handler has forked, and SIGHUP do what it did before the server ran.

    Not left to our handler in that process: it runs late or never there, if another thread than the main one has forked
    (seen on 3.13 to 3.15).
    """
    for number in (signal.SIGTERM, _RELOAD):
        handlers = [before[number] for before in _replaced if number in before]
        for handler in handlers[:1]:
            signal.signal(number, handler)
