"""The stop, step by step: stop accepting, wake, drain, force, report.

Guarantees:

- One stop is in progress at a time, and one thread leads it through the steps. Threads that ask for a stop meanwhile
  follow: they add what they want closed, can only shorten it, and wait until it is over.
- A caller from *inside* (a handler's thread, the serving thread) waits for nobody who may be waiting for it: not for
  itself, nor for the other callers from inside. A caller from outside waits for them all; if the leader was inside, one
  of the followers leads another stop for what that one has left.
- A stop takes at most its drain and force time-outs, a moment for threads that only have to return (`_TAIL`), one for
  worker processes, and whatever a program's own hooks take. What a stop has given up on is not waited for again, unless
  seconds are given.
- A client that is accepted while a stop is in progress is woken as it is listed.
"""
from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .accepting.loop import Loop, Loops
from .clients.client import Client
from .clients.deadlines import Deadlines
from .clients.period import Period
from .clients.registry import HandlerRegistry
from .clients.threads import HandlerThreads, client_in_hand
from .observe.logs import about
from .options import OPTIONS
from .report import StopReport, Survivor
from .stacks import stacks_of
from .stop import Stop

logger = logging.getLogger("threaded_echo")

_TAIL = 1.0  # seconds for a thread that has nothing left to do but to return

_LOOK = 0.1
"""Seconds after which a stop looks again at what it waits for. A signal handler may call for a stop that shortens the
one it has interrupted. If that was just about to wait, the notification is lost."""


class Offloading(Protocol):
    """What a stop does with offloaded calls and worker processes."""

    def interrupt_open(self) -> None:
        """Do not wait for workers that are being started."""

    def give_up(self) -> None:
        """End the waiting of every call whose period was forced."""

    def close(self) -> None:
        """End the worker processes, and the threads of WorkerThreads."""

    def left(self) -> list[tuple[Client | None, threading.Thread | None]]:
        """Find the calls that run on though their handlers have left: their clients, and their threads, if any."""

    def runs_in(self, thread: threading.Thread) -> bool:
        """Return whether an offloaded function runs in a thread."""


def timeouts_of(server: Any) -> tuple[float, float]:
    """Return the options of a stop; the default of one that is wrong, since that must not keep it from stopping."""
    found = []
    for name in ("drain_timeout", "force_timeout"):
        seconds = getattr(server, name)
        try:
            OPTIONS[name].check(name, seconds)
        except (TypeError, ValueError) as error:
            seconds = OPTIONS[name].default
            logger.error("%s; the stop takes %s", error, seconds, extra=about(None, "options"))
        found.append(seconds)
    return found[0], found[1]


class Stopping:
    """The stops of one server, and its way back to serving. Its fields are guarded by the registry's lock."""

    def __init__(self, registry: HandlerRegistry, threads: HandlerThreads, loops: Loops, offloads: Offloading,
                 deadlines: Deadlines) -> None:
        self._registry = registry
        self._threads = threads
        self._loops = loops
        self._offloads = offloads
        self._deadlines = deadlines
        self._current: Stop | None = None
        self._given_up: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._left_waiting: set[Client] = set()  # given up without a thread, as a program's executor has none for them
        self.period = Period()  # a new one when serving begins again
        self.when_forced: Callable[[], object] = lambda: None  # called when nothing more is sent to clients

    def begin_serving(self, loop: Loop, fileno: Callable[[], int]) -> bool:
        """List a loop, after a stop that is in progress; False if a stop has asked to end this one.

        Raises RuntimeError if the listening socket is closed, if another thread is serving, or if the calling thread
        has called the stop that is in progress.
        """
        with self._registry.lock:
            while self._current is not None:
                if loop.thread is self._current.leader or loop.thread in self._current.inside:
                    raise RuntimeError("this server is stopping: it cannot serve from inside its own stop")
                if loop.thread is self._current.background:
                    return False  # a loop on handle_request, which this stop is about to join
                self._registry.changed.wait()  # a stop is bounded, and so is this
            if loop.forever and self._loops.ends_next:
                self._loops.ends_next = False
                return False
            self._loops.begin_locked(loop)  # before the rest: a signal handler may stop the server between two lines
            if fileno() < 0 and not loop.stopped:
                raise RuntimeError("this server is closed and cannot serve again; shutdown(), in place of stop() or "
                                   "server_close(), ends serving and keeps the listening socket")
            if self.period.is_stopping() and not loop.stopped:
                self.period = Period()
            loop.period = self.period
            if loop.stopped:
                self.period.stop()
        return not loop.stopped

    def run(self, defaults: tuple[float, float], drain: float | None = None, force: float | None = None, *,
            remember: bool = False, close: Callable[[], None] | None = None,
            at_once: bool = False) -> StopReport:
        """Stop the server's clients and threads.

        ``defaults``: the seconds for ``drain`` and ``force`` if they are ``None`` and no stop is in progress.
        ``close`` closes the listening socket, after all loops have ended; ``at_once``: before this returns, if it is
        called in the middle of a stop by the thread that leads it. ``remember``: if there is no loop to end, end the
        next one.
        """
        me = threading.current_thread()
        client = client_in_hand(self._registry)
        followed: Stop | None = None  # a stop that is over, and has left something for this caller to wait for
        while True:
            with self._registry.lock:
                stop = self._current
                leads = stop is None
                if stop is None:
                    stop = followed or self._make_locked(defaults, drain, force, remember)
                    self._begin_locked(stop)
                else:
                    stop.hasten(drain, force)
                    self._registry.changed.notify_all()
                is_nested = not leads and (me is stop.leader or me in stop.inside)
                if close is not None and not (is_nested and at_once):
                    stop.to_close.append(close)
                    close = None
                if self._is_awaited(stop, me, client) and not is_nested:
                    stop.inside[me] = stop.called_inside[me] = client
                    self._registry.awaited = len(stop.inside) + len(self._given_up) + len(self._left_waiting)
            if is_nested:  # server_close() in the middle of a stop(), or a stop in a signal handler
                if close is not None:
                    close()
                return self._report(stop, inside=True, with_stacks=False)
            if leads:
                return self._lead(stop)
            report = self._follow(stop)
            if report is not None:
                return report
            followed = stop

    def hasten(self) -> None:
        """Have the stop that is in progress, or the next one, cut the connections at once. Waits for nothing."""
        with self._registry.lock:
            self.period.hastened = True
            if self._current is not None:
                self._current.hasten(0, None)
                self._registry.changed.notify_all()

    def _is_awaited(self, stop: Stop, me: threading.Thread, client: Client | None) -> bool:
        """Return whether a stop waits for the calling thread, which may have left its client or its loop already."""
        return (me in self._threads.running or me is stop.background or self._registry.owns(client)
                or self._offloads.runs_in(me)
                or any(loop.thread is me for loop in self._loops.running))

    def _make_locked(self, defaults: tuple[float, float], drain: float | None, force: float | None,
                     remember: bool) -> Stop:
        if remember and not self._loops.in_forever_locked():
            self._loops.ends_next = True
        return Stop(defaults[0] if drain is None else drain, defaults[1] if force is None else force,
                    drain is not None or force is not None, self._registry.gone(), self._loops.background)

    def _begin_locked(self, stop: Stop) -> None:
        """Begin a stop, or go on with it: no more accepting."""
        stop.go_on()
        self._current = stop
        if self.period.hastened:
            stop.hasten(0, None)
        for thread in list(self._given_up):
            if not thread.is_alive():
                self._given_up.discard(thread)
        self._left_waiting = {client for client in self._left_waiting if client.state != "gone"}
        self._registry.awaited = len(self._given_up) + len(self._left_waiting)
        self.period.stop()
        self._loops.stop_locked()
        self._deadlines.end_locked()

    # The leader's steps, in their order.

    def _lead(self, stop: Stop) -> StopReport:
        """Take a stop through its steps."""
        me = threading.current_thread()
        inside = me in stop.inside
        try:
            self._offloads.interrupt_open()
            for client in self._registry.clients():  # a later one is woken as it is listed
                client._wake()
            self._wait(lambda: self._loops_over(stop, me), lambda: max(stop.until(), stop.started + _TAIL))
            self._close(stop)
            if not self._drain(stop, inside):
                self._force(stop)
                self._drain(stop, inside)
            self.period.force()  # or a later call would start a worker again
            self._offloads.close()
            self.when_forced()
            self._join(stop)
            self._close(stop)
            report = self._report(stop, inside, log=True)
            if not inside:
                with self._registry.lock:
                    stop.report = report
            if stop.error is not None:
                raise stop.error
            return report
        finally:
            with self._registry.lock:
                self._registry.awaited = -1
                stop.inside.pop(me, None)  # a follower that goes on with this stop waits for it, and may cut its client
                stop.is_over = True
                self._current = None
                self._registry.changed.notify_all()

    def _close(self, stop: Stop) -> None:
        """Close what the callers want closed: first the program's own server_close, if one has asked for it."""
        while True:
            with self._registry.lock:
                if not stop.to_close:
                    self._registry.changed.notify_all()  # callers from inside wait for this, too
                    return
                close = stop.to_close.pop(0)
            try:
                close()
            except BaseException as error:  # a program's own: the stop goes on, and raises it at its end
                stop.error = error

    def _drain(self, stop: Stop, inside: bool) -> bool:
        """Wait until nothing runs any more, and close what other callers want closed meanwhile; False if time is up."""
        while True:
            over = self._wait(lambda: bool(stop.to_close) or self._is_quiet(stop, inside), stop.until)
            if not stop.to_close:
                return over
            self._close(stop)

    def _force(self, stop: Stop) -> None:
        """Give up offloaded calls; cut the connections that are left, but not of handlers that wait for this stop."""
        with self._registry.lock:
            stop.drained = self._registry.gone() - stop.gone_before
            stop.force_until = time.monotonic() + stop.force
            spared = set(stop.inside.values())
        self.period.force()
        self._offloads.give_up()  # first, so that the calls end by ServerStopping, not by a client that has gone
        for client in self._registry.clients():
            if client not in spared:
                client._cut("stop")

    def _join(self, stop: Stop) -> None:
        """Join every thread that has ended, and those that a program has added; give up on the others."""
        tail = time.monotonic() + _TAIL
        with self._registry.lock:
            self._registry.awaited = sys.maxsize
        self._wait(lambda: all(thread.client is not None for thread in self._threads.running.copy()), lambda: tail)
        ended, adopted = self._threads.to_join()
        with self._registry.lock:
            if stop.background is not None and stop.background.is_over:
                ended.append(stop.background)
        for thread in ended + self._deadlines.to_join():
            self._join_one(thread, tail)
        stop.watchers = self._deadlines.to_join()
        for thread in adopted:
            if stop.patient or thread not in self._given_up:
                self._join_one(thread, stop.until())

    def _join_one(self, thread: threading.Thread, deadline: float) -> None:
        """Join a thread.

        A stop in a signal handler may have interrupted a frame that holds the server's lock, which the thread needs in
        order to end. So if it does not, give that lock up for a while.
        """
        if thread is threading.current_thread() or thread.ident is None:
            return
        while True:
            remaining = max(0, deadline - time.monotonic())
            thread.join(min(remaining, _LOOK))
            if not remaining or not thread.is_alive():
                return
            with self._registry.lock:
                self._registry.changed.wait(min(remaining, _LOOK))

    # The followers.

    def _follow(self, stop: Stop) -> StopReport | None:
        """Wait until a stop is over; ``None`` if there may be something left that this caller has to wait for."""
        me = threading.current_thread()
        inside = me in stop.inside
        try:
            with self._registry.lock:
                while not (stop.is_over or inside and not stop.to_close and self._is_quiet(stop, inside)):
                    self._registry.changed.wait(_LOOK)  # the leader's time is bounded, and so is this
            if stop.to_close:  # added when the leader was through with it
                return None
            return self._report(stop, inside) if inside else stop.report
        finally:
            with self._registry.lock:
                if inside:
                    del stop.inside[me]
                    self._registry.changed.notify_all()

    # What is waited for.

    def _wait(self, condition: Callable[[], bool], until: Callable[[], float]) -> bool:
        """Wait for a condition; False if the time for it is up."""
        with self._registry.lock:
            while not condition():
                remaining = until() - time.monotonic()
                if remaining <= 0:
                    return False
                self._registry.changed.wait(min(remaining, _LOOK))
        return True

    # These two are called with the lock held.

    def _loops_over(self, stop: Stop, me: threading.Thread) -> bool:
        """Return whether the serving threads are out of their loops, but for callers of this stop."""
        serving = [loop.thread for loop in self._loops.running]
        if stop.background is not None and not stop.background.is_over:
            serving.append(stop.background)
        return all(thread is me or thread in stop.inside for thread in serving)

    def _is_quiet(self, stop: Stop, inside: bool) -> bool:
        """Return whether nothing runs any more that a caller may wait for: from inside, none of those is."""
        spared = set(stop.called_inside) if inside else set()
        spared_clients = set(stop.called_inside.values()) - {None} if inside else set()
        if not stop.patient:
            spared.update(self._given_up)
            spared_clients.update(self._left_waiting)
        if any(loop.thread not in spared for loop in self._loops.running):
            return False
        if stop.background is not None and not (stop.background.is_over or stop.background in spared):
            return False
        # A thread that the serving thread is about to start, or has just started, has a client that is spared.
        if not all(thread in spared or thread.client in spared_clients for thread in self._threads.running.copy()):
            return False
        if any(thread not in spared for _, thread in self._offloads.left()):
            return False
        return not self._registry.closing and all(client.thread in spared or client in spared_clients
                                                  for client in self._registry.clients())

    # The report.

    def _report(self, stop: Stop, inside: bool, log: bool = False, with_stacks: bool = True) -> StopReport:
        """Say what the stop has done; the leader logs what is still running."""
        with self._registry.lock:
            ended = self._registry.gone() - stop.gone_before
            drained = ended if stop.force_until is None else stop.drained
            left = self._left(stop, set(stop.called_inside) if inside else set())
        stacks = stacks_of([thread for _, thread in left]) if with_stacks else {}
        survivors = tuple(Survivor(client, stacks.get(thread, ()) if thread else (), thread) for client, thread in left)
        if log:
            new = [survivor for survivor in survivors
                   if survivor.thread not in self._given_up and survivor.client not in self._left_waiting]
            if new:
                logger.warning("still running after the stop:\n%s", "\n".join(map(str, new)),
                               extra=about(None, "survivors"))
            with self._registry.lock:
                self._given_up.update(thread for _, thread in left if thread is not None)
                self._left_waiting.update(client for client, thread in left if client is not None and thread is None)
        return StopReport(drained, ended - drained, survivors, time.monotonic() - stop.started)

    def _left(self, stop: Stop, spared: set[threading.Thread]) -> list[tuple[Client | None, threading.Thread | None]]:
        """Find what still runs: clients and their threads, then threads without a client. The caller holds the lock."""
        left: dict[Client, threading.Thread | None] = {client: client.thread
                                                       for client in self._registry.clients()}
        for thread in self._threads.running.copy():
            client = thread.client
            if client is not None:
                left[client] = thread
        found: list[tuple[Client | None, threading.Thread | None]] = [
            (client, thread) for client, thread in sorted(left.items(), key=lambda item: item[0].number)
            if not (thread in spared or spared and client in stop.called_inside.values())]
        found += [(client, thread) for client, thread in self._offloads.left() if thread and thread not in spared]
        known = {thread for _, thread in found} | spared
        others = [loop.thread for loop in self._loops.running] + self._threads.to_join()[1] + stop.watchers
        if stop.background is not None and not stop.background.is_over:
            others.append(stop.background)
        found += [(None, thread) for thread in dict.fromkeys(others)
                  if thread.is_alive() and thread not in known and thread is not threading.current_thread()]
        return found
