"""The stop, step by step: stop accepting, wake, drain, force, report.

Guarantees:

- One stop is in progress at a time. Who calls for one meanwhile joins it, and can only shorten it.
- Every caller goes through the same steps; each step is done once, by whoever comes to it first.
- A caller from *inside* (a handler's thread, the serving thread) waits for nobody who may be waiting for it: not for
  itself, nor for the other callers from inside. A caller from outside waits for them all.
- A stop takes at most its drain and force time-outs, a moment for threads that only have to return (`_TAIL`), one for
  worker processes, and whatever a program's own hooks take.
- A client that is accepted while a stop is in progress is woken as it is listed.
"""
from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from .offloading.calls import Offloads
from .clients.period import Period
from .clients.registry import Client, HandlerRegistry
from .accepting.loop import Serving, Turn
from .clients.threads import HandlerThreads, current_client

logger = logging.getLogger("threaded_echo")

_TAIL = 1.0  # seconds for a thread that has nothing left to do but to return


@dataclass(frozen=True, slots=True)
class Survivor:
    """A handler that was still running when a stop gave up on it."""

    client: Client
    stack: tuple[str, ...]
    """The lines where it was, outermost call first, as `traceback.format_stack` has them; empty if it had no thread."""


@dataclass(frozen=True, slots=True)
class StopReport:
    """What a stop did."""

    drained: int
    """Clients whose handlers ended by themselves once they were woken."""
    forced: int
    """Clients whose handlers ended once their connections were cut."""
    survivors: tuple[Survivor, ...]
    """The handlers that were still running when the stop gave up on them."""
    seconds: float
    """How long the stop took."""

    @property
    def clean(self) -> bool:
        """Whether no handler was left."""
        return not self.survivors


class _Caller:
    """One thread's call for a stop."""

    def __init__(self, client: Client | None, inside: bool) -> None:
        self.thread = threading.current_thread()
        self.client = client  # the one that it serves
        self.inside = inside


class _Stop:
    """A stop in progress. Its fields are guarded by the server's lock."""

    def __init__(self, drain: float, force: float, finished: int, background: threading.Thread | None) -> None:
        self.started = time.monotonic()
        self.drain_until = self.started + drain
        self.force = force
        self.force_until: float | None = None  # set once the connections have been cut
        self.finished_before = finished
        self.background = background  # the thread of start(); a later start() may already wait for this stop to end
        self.drained = 0
        self.callers: list[_Caller] = []
        self.claimed: set[str] = set()  # the closing steps that somebody has taken on, for all
        self.closers: list[threading.Thread] = []  # who is in one
        self.reports: dict[bool, StopReport] = {}  # by whether it is for a caller from inside

    def hasten(self, drain: float | None, force: float | None) -> None:
        """Shorten what is left; ``None`` leaves it as it is."""
        now = time.monotonic()
        if drain is not None:
            self.drain_until = min(self.drain_until, now + drain)
        if force is not None:
            self.force = min(self.force, force)
            if self.force_until is not None:
                self.force_until = min(self.force_until, now + force)

    def until(self) -> float:
        return self.drain_until if self.force_until is None else self.force_until


class Stopping:
    """The stops of one server, and its way back to serving. Its fields are guarded by the registry's lock."""

    def __init__(self, registry: HandlerRegistry, threads: HandlerThreads, serving: Serving,
                 offloads: Offloads) -> None:
        self._registry = registry
        self._threads = threads
        self._serving = serving
        self._offloads = offloads
        self._current: _Stop | None = None
        self.period = Period()  # a new one when serving begins again
        self.event = self.period.stopping

    def begin_serving(self, turn: Turn, fileno: Callable[[], int]) -> bool:
        """Take a turn in serving, once a stop in progress is over; False where a stop has asked to end this one.

        Raises RuntimeError where the listening socket is closed, or another thread is serving.
        """
        with self._registry.lock:
            while self._current and all(caller.thread is not turn.thread for caller in self._current.callers):
                if turn.thread is self._current.background:
                    return False  # a loop on handle_request, which this stop is about to join
                self._registry.changed.wait()  # a stop is bounded, and so is this
            if turn.forever and self._serving.ends_next:
                self._serving.ends_next = False
                return False
            if fileno() < 0:
                raise RuntimeError("this server is closed: it cannot serve again")
            self._serving.begin_locked(turn)
            if self._registry.waking:
                self._registry.waking = False
                self._threads.open_locked()
                self.period = Period()
                self.event = self.period.stopping
        return True

    def run(self, defaults: tuple[float, float], drain: float | None = None, force: float | None = None, *,
            remember: bool = False, close: Callable[[], None] | None = None,
            is_open: Callable[[], bool] | None = None) -> StopReport:
        """Stop the server's clients and threads; ``close`` closes the listening socket once nobody waits on it.

        ``defaults``: the seconds for ``drain`` and ``force`` where they are ``None`` and no stop is in progress.
        ``remember``: where there is no loop to end, end the next one. ``is_open``: call ``close`` only where this says
        so, and no other caller of this stop has.
        """
        stop, caller, begins = self._join(defaults, drain, force, remember)
        try:
            if begins:
                self._wake()
            self._wait(stop, caller, self._turns_over, time.monotonic() + _TAIL)  # a loop only has to return
            # Twice in one stop there is something to close: what stop() calls, and the listening socket itself.
            step = "listener" if is_open is None else "server"
            if close is not None and (is_open is None or is_open()) and self._claim(stop, step):
                try:
                    close()
                finally:
                    self._release(stop)
            if not (self._wait(stop, caller, self._quiet) and self._join_threads(stop)):
                self._force(stop)
                self._wait(stop, caller, self._quiet)
                self._join_threads(stop)
            self._end_workers(stop, caller)
            return self._report(stop, caller)
        finally:
            self._leave(stop, caller)

    # The steps, in their order.

    def _join(self, defaults: tuple[float, float], drain: float | None, force: float | None,
              remember: bool) -> tuple[_Stop, _Caller, bool]:
        """Join the stop in progress, or begin one, as the third value tells: no more accepting."""
        me = threading.current_thread()
        registry = self._registry
        with registry.lock:
            client = current_client()
            if client is not None and client.registry is not registry:
                client = None  # of another server, in whose handler this one runs
            serves = me is self._serving.background or any(turn.thread is me for turn in self._serving.turns)
            caller = _Caller(client, serves or client is not None or me in self._threads.running)
            stop, begins = self._current, self._current is None
            if stop is None:
                if remember and not self._serving.in_loop_locked():
                    self._serving.ends_next = True
                stop = self._current = _Stop(defaults[0] if drain is None else drain,
                                             defaults[1] if force is None else force,
                                             registry.finished, self._serving.background)
                registry.waking = True
                self._threads.close_locked()
            else:
                stop.hasten(drain, force)
                registry.changed.notify_all()
            stop.callers.append(caller)
            registry.awaited = len(stop.callers)
            self._serving.wake_locked()
        return stop, caller, begins

    def _wake(self) -> None:
        """Tell the handlers that wait for the stop, those that wait for their clients, and a loop that is starting."""
        self.event.set()
        self._offloads.interrupt_open()
        for client in self._registry.snapshot().values():  # who comes later is woken as it comes
            client.wake()

    def _claim(self, stop: _Stop, step: str) -> bool:
        """Decide who closes, for all: True to the first."""
        with self._registry.lock:
            if step in stop.claimed:
                return False
            stop.claimed.add(step)
            stop.closers.append(threading.current_thread())
            return True

    def _release(self, stop: _Stop) -> None:
        """Tell that a closing is done."""
        with self._registry.lock:
            stop.closers.remove(threading.current_thread())
            self._registry.changed.notify_all()

    def _join_threads(self, stop: _Stop) -> bool:
        """Join every thread that has ended, or that a program has added; False where one is still running."""
        ended, adopted = self._threads.to_join()
        with self._registry.lock:
            if stop.background is not None and all(turn.thread is not stop.background for turn in self._serving.turns):
                ended.append(stop.background)
        tail = time.monotonic() + _TAIL
        joined = _join(ended, tail) & _join(adopted, stop.until())
        with self._registry.lock:
            self._threads.reap_locked()
        return joined

    def _force(self, stop: _Stop) -> None:
        """Give up offloaded calls; cut the connections that are left, but not of handlers that wait for this stop."""
        with self._registry.lock:
            if stop.force_until is not None:
                return
            stop.force_until = time.monotonic() + stop.force
            stop.drained = self._registry.finished - stop.finished_before
            waiting = {caller.client for caller in stop.callers}
            clients = [client for client in self._registry.live.values() if client not in waiting]
        self.period.force()
        self._offloads.give_up()  # first: the calls shall meet the stop, not a client that has gone
        for client in clients:
            client.disconnect()

    def _end_workers(self, stop: _Stop, caller: _Caller) -> None:
        """End the worker processes, once for all; who is outside waits for that."""
        if self._claim(stop, "workers"):
            try:
                self.period.force()
                self._offloads.close()
            finally:
                self._release(stop)
        elif not caller.inside:
            self._wait(stop, caller, self._nobody_closes, time.monotonic() + 2 * _TAIL)

    def _report(self, stop: _Stop, caller: _Caller) -> StopReport:
        """Say what the stop has done; log who is still running, once."""
        with self._registry.lock:
            report = stop.reports.get(caller.inside)
            if report is not None:
                return report
            ended = self._registry.finished - stop.finished_before
            drained = ended if stop.force_until is None else stop.drained
            left = {} if self._quiet(stop, caller) else self._left(stop, caller)
            hanging = [turn.thread for turn in self._serving.turns if turn.thread is not caller.thread]
        stacks = stacks_of([*left.values(), *hanging])
        survivors = tuple(Survivor(client, stacks.get(thread, ()) if thread else ())
                          for client, thread in sorted(left.items(), key=lambda item: item[0].number))
        report = StopReport(drained, ended - drained, survivors, time.monotonic() - stop.started)
        with self._registry.lock:
            tell = not stop.reports
            report = stop.reports.setdefault(caller.inside, report)
        if tell and survivors:
            logger.warning("still running after the stop: %s", "".join(
                f"\nclient {survivor.client.number} ({survivor.client.address}):\n{''.join(survivor.stack)}"
                for survivor in survivors))
        for thread in hanging if tell else ():
            logger.warning("the serving loop is still running after the stop:\n%s", "".join(stacks.get(thread, ())))
        return report

    def _leave(self, stop: _Stop, caller: _Caller) -> None:
        with self._registry.lock:
            stop.callers.remove(caller)
            self._registry.awaited = len(stop.callers)
            if not stop.callers:
                self._current = None
                self._registry.awaited = -1
            self._registry.changed.notify_all()

    # What is waited for. All of these need the lock.

    def _wait(self, stop: _Stop, caller: _Caller, condition: Callable[[_Stop, _Caller], bool],
              tail: float = 0) -> bool:
        """Wait for a condition; False when the time for it is up, but not before ``tail``."""
        with self._registry.lock:
            while not condition(stop, caller):
                remaining = max(stop.until(), tail) - time.monotonic()
                if remaining <= 0:
                    return False
                self._registry.changed.wait(remaining)
        return True

    def _turns_over(self, stop: _Stop, caller: _Caller) -> bool:
        return all(turn.thread is caller.thread for turn in self._serving.turns)

    def _nobody_closes(self, stop: _Stop, caller: _Caller) -> bool:
        """Whether nobody else is in a closing step."""
        return {caller.thread}.issuperset(stop.closers)

    def _quiet(self, stop: _Stop, caller: _Caller) -> bool:
        """Whether nothing runs any more that ``caller`` may wait for."""
        if not self._turns_over(stop, caller) or self._registry.closing:
            return False
        if not caller.inside:
            return not (self._registry.live or self._threads.running) and self._nobody_closes(stop, caller)
        inside = [other for other in stop.callers if other.inside]
        clients, threads = {other.client for other in inside}, {other.thread for other in inside}
        return clients.issuperset(self._registry.live.values()) and threads.issuperset(self._threads.running)

    def _left(self, stop: _Stop, caller: _Caller) -> dict[Client, threading.Thread | None]:
        """Find the clients whose handlers still run, and where."""
        left: dict[Client, threading.Thread | None] = {client: client.thread
                                                       for client in self._registry.live.values()}
        for thread, client in self._threads.busy().items():
            left[client] = thread
        if caller.inside:
            for other in stop.callers:
                if other.client is not None:
                    left.pop(other.client, None)
        return left


def stacks_of(threads: list[threading.Thread | None]) -> dict[threading.Thread, tuple[str, ...]]:
    """Format the lines where each thread is; no entry for one that is nowhere."""
    frames = sys._current_frames() if threads else {}
    return {thread: tuple(traceback.format_stack(frames[thread.ident])) for thread in threads
            if thread is not None and thread.ident in frames}


def _join(threads: list[threading.Thread], deadline: float) -> bool:
    """Join all threads but the calling one; False where one is still running at the deadline."""
    others = [thread for thread in threads if thread is not threading.current_thread() and thread.ident is not None]
    for thread in others:
        thread.join(max(0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in others)
