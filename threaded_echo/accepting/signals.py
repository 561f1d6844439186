"""Serving until a signal: what ``server.run`` does.

Guarantees:

- A signal handler puts the signal's number into a queue, for which the main thread waits while a background thread
  serves; a second one hastens the stop that is in progress, or the one that is about to begin. So Ctrl-C and SIGTERM
  work in every state, also while the server starts or stops. A handler waits for nothing: the main thread, which it
  interrupts, may hold a lock (of logging, say) that another thread needs in order to end.
- With a `linger_timeout`, the first signal ends accepting only, and the stop comes when the clients have gone, or at
  the end of that time. No client is accepted and then not served.
- The handlers that were there before are restored, and a signal that was ignored stays ignored.
- An exception of another signal handler stops the server, and is then raised to the caller of `run`.
"""
from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import FrameType
from typing import Any

from ..observe.logs import NOTICE
from ..transport.listeners import show_address
from ..transport.several import addresses_of, listeners_of
from .loop import Background
from .watchdog import Watchdog

logger = logging.getLogger("threaded_echo")

_FIRST_WAIT = 0.1
"""Seconds of the first wait for a signal; each is twice as long as the one before. A signal that comes just
before a wait begins does not end that wait, and is noticed at its end. An idle server hardly ever wakes up for this."""

_RETURN = 1.0  # seconds for the threads that accept to leave the door


def run(server: Any, state: Any, duration: float | None) -> Any:
    """Serve, and return the stop's report: see ``ThreadedMixIn.run``."""
    reasons: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # to stop: a signal's number; None: the loop has ended
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
        signals += 1
        reasons.put(number)
        if signals > 1:
            state.stopping.hasten()

    def stop() -> None:
        nonlocal report
        report = server._threaded_stop()

    with handled(obey), Watchdog(server, state) as watchdog:
        _tell_addresses(server)
        with ExitStack() as stack:
            # An exception of another signal handler, too, stops the server.
            stack.callback(stop)
            stack.callback(watchdog.stopping)
            try:
                background = state.loops.begin(serve, watchdog.accepting)
            except RuntimeError:  # it serves already, or there are no threads: it stays as it was
                stack.pop_all()
                raise
            reason = _wait(reasons, duration)
            watchdog.stopping()
            _linger(server, state, background, reason)
            _tell("stopping", state)
        logger.log(NOTICE, "%s", str(report).partition("\n")[0], extra={"event": "stopped"})
    if errors:
        raise errors.pop()
    return report


def _wait(reasons: queue.SimpleQueue[int | None], duration: float | None) -> int | None:
    """Wait for a reason to stop, at most ``duration`` seconds; return a signal's number, 0, or ``None``: see `run`."""
    deadline = None if duration is None else time.monotonic() + duration
    wait = _FIRST_WAIT
    while deadline is None or time.monotonic() < deadline:
        remaining = wait if deadline is None else max(0, min(wait, deadline - time.monotonic()))
        try:
            return reasons.get(timeout=remaining)
        except queue.Empty:
            wait = min(2 * wait, threading.TIMEOUT_MAX)
    return 0


def _tell_addresses(server: Any) -> None:
    """Log where the server listens, a record for each address."""
    for address in addresses_of(server):
        logger.log(NOTICE, "listening on %s", show_address(address), extra={"event": "listening"})


def _tell(event: str, state: Any) -> None:
    """Log what begins, and how many clients there are."""
    live = len(state.registry.live)
    logger.log(NOTICE, "%s: %d client%s live", event, live, "" if live == 1 else "s", extra={"event": event})


def _linger(server: Any, state: Any, background: Background, reason: int | None) -> None:
    """Accept no more clients, and let the live ones go on for ``linger_timeout`` seconds.

    A stop, or a second signal, ends that.
    """
    period = state.stopping.period
    if reason is None or not server.linger_timeout or period.is_stopping() or period.hastened:
        return
    deadline = time.monotonic() + server.linger_timeout
    state.loops.end_accepting()
    # A thread that has got through the door has yet to list its client.
    state.registry.wait_until(lambda: background.is_over and not state.threads.count()[1], time.monotonic() + _RETURN)
    state.loops.closes_later = True
    for listener in listeners_of(server):
        listener.close()
    if state.registry.live and not (period.is_stopping() or period.hastened):
        _tell("lingering", state)
        state.registry.wait_until(lambda: not state.registry.live or period.is_stopping() or period.hastened, deadline)


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
