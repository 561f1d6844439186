"""Deadlines of live clients: how long one may be idle, and how long it may stay.

Guarantees:

- One thread, the *watcher*, ends the clients of a server. It is started when the server serves with a deadline set, and
  ended and joined by the stop. A server without deadlines has none.
- It costs a client nothing when it is accepted, reads or writes: the kernel knows for how long a connection has been
  silent. If there is an idle time-out, the handler notes when `process` begins and ends, which takes no lock. The
  watcher keeps nothing of clients that have gone.
- It sleeps until the next deadline that there can be, and while there is no client it does not wake at all. It looks at
  the clients at most `LOOKS` times within the shortest time-out, so a client may be ended so much later.
- A client whose handler is in `process`, or computes, is not idle; its idle time begins when that ends.
- The watcher runs no code of the program's. The handler of the client that it disconnects meets the end of its stream,
  and the thread of that handler logs the reason.
"""
from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ..observe.logs import about
from ..options import OPTIONS
from ..transport.several import listeners_of
from ..transport.tcp_info import read_traffic
from .client import Activity, Client
from .period import Period
from .registry import HandlerRegistry

logger = logging.getLogger("threaded_echo")

LOOKS = 32
"""The most looks at the clients within the shortest time-out: an idle client is ended at most 3 per cent too late."""

_NAMES = ("idle_timeout", "lifetime")


def activity_of(client: Client, server: Any) -> Activity | None:
    """Return where to note when a client's handler is busy; ``None`` if the server has no idle time-out."""
    return None if server.idle_timeout is None else client._observe()


def while_busy(activity: Activity, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``function`` so that its client is not idle while it runs."""
    def run_busy(argument: Any) -> Any:
        activity.busy = True
        try:
            return function(argument)
        finally:
            activity.rested = time.monotonic()  # first: who sees that it is not busy must see since when
            activity.busy = False

    return run_busy


def while_resting(activity: Activity, function: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``function``, which is called in the middle of what is `while_busy`, so that its client may be idle."""
    def run_resting() -> Any:
        activity.rested = time.monotonic()
        activity.busy = False
        try:
            return function()
        finally:
            activity.busy = True

    return run_resting


class Deadlines:
    """The deadlines of one server."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self._registry = registry
        self._watcher: Watcher | None = None  # guarded by the registry's lock
        self._ended: list[Watcher] = []  # told to end, and perhaps still running; guarded by the registry's lock
        self._has_warned = False
        self.clock: Callable[[], float] = time.monotonic
        self.idle_of: Callable[[Client], float | None] = _idle_of

    def begin(self, server: Any, period: Period) -> None:
        """Watch the clients until the stop of ``period``, if a deadline is set.

        Raises RuntimeError if no thread can be started.
        """
        wanted = server.idle_timeout, server.lifetime
        if wanted == (None, None):
            return
        if not (wanted[0] is None or self._has_warned or all(map(read_traffic, listeners_of(server)))):
            self._has_warned = True
            logger.warning("idle_timeout has no effect on clients of whom the system cannot tell how long they have "
                           "been silent, such as those on Unix sockets; lifetime works",
                           extra=about(None, "options"))
        with self._registry.lock:
            if period.is_stopping():
                return
            if self._watcher is not None:
                if wanted != self._watcher.wanted:
                    self._watcher.look_locked()
                return
            watcher = self._watcher = Watcher(self, self._registry, server)
            has_started = False
            try:
                # With the lock held, for the check above; it needs nothing but a thread that has not seen the lock yet.
                watcher.start()
                has_started = True
            finally:
                # Out of threads, or interrupted; or a signal handler has stopped the server between two lines of this.
                if not has_started or period.is_stopping():
                    watcher.end_locked()
                    self.end_locked()

    def end_locked(self) -> None:
        """Tell the watcher to end."""
        if self._watcher is not None:
            self._watcher.end_locked()
            self._ended.append(self._watcher)
            self._watcher = None

    def to_join(self) -> list[threading.Thread]:
        """Return the threads that have been told to end, and may not have ended yet."""
        with self._registry.lock:
            self._ended = [watcher for watcher in self._ended if watcher.is_alive()]
            return list(self._ended)


class Watcher(threading.Thread):
    """The thread that ends the clients whose time is up."""

    def __init__(self, deadlines: Deadlines, registry: HandlerRegistry, server: Any) -> None:
        super().__init__(name="threaded_echo deadlines", daemon=True)
        self._deadlines = deadlines
        self._registry = registry
        self._changed = threading.Condition(registry.lock)
        self._is_over = False  # guarded by the registry's lock, as is the next
        self._has_to_look = True
        self._server = weakref.ref(server, self._forget)  # a program may drop its server without a stop
        self.wanted: tuple[float | None, float | None] = (None, None)  # the time-outs, as they were at the last look
        self._shortest = 1.0
        self._complaint = ""  # the last one

    def run(self) -> None:
        """Look at the clients whenever one's time may be up."""
        pause: float | None = None
        while True:
            with self._registry.lock:
                if not (self._has_to_look or self._is_over):
                    self._sleep_locked(pause)
                self._has_to_look = False
                if self._is_over:
                    return
            pause = self.look_at_all()

    def _sleep_locked(self, pause: float | None) -> None:
        """Wait for ``pause`` seconds; ``None``: until there is a client."""
        if pause is not None:
            self._changed.wait(min(pause, threading.TIMEOUT_MAX))
        elif not self._registry.live:
            self._registry.arrival = self._changed
            self._changed.wait()
            self._registry.arrival = None

    def look_locked(self) -> None:
        """End the sleep."""
        self._has_to_look = True
        self._changed.notify_all()

    def end_locked(self) -> None:
        """End the thread."""
        self._is_over = True
        self._changed.notify_all()

    def _forget(self, server: object) -> None:
        with self._registry.lock:
            self.end_locked()

    def look_at_all(self) -> float | None:
        """End the clients whose time is up; return the seconds to the next look, ``None`` if there are no clients."""
        self._read_options()
        idle_timeout, lifetime = self.wanted
        clients = self._registry.clients()
        if not clients:
            return None
        now = self._deadlines.clock()
        # No client that is accepted from now on can be due before that.
        due = now + self._shortest
        for client in clients:
            if client.reason is None:  # else it has been ended, or a stop has woken it
                if lifetime is not None:
                    due = min(due, self._end_old(client, now, lifetime))
                if idle_timeout is not None:
                    due = min(due, self._end_idle(client, now, idle_timeout))
        return max(due - now, self._shortest / LOOKS)

    def _read_options(self) -> None:
        """Take the time-outs as they are by now. A wrong value is logged, and changes nothing."""
        server = self._server()
        if server is None:
            return
        try:
            found = tuple(getattr(server, name) for name in _NAMES)
            for name, value in zip(_NAMES, found, strict=True):
                OPTIONS[name].check(name, value)
        except Exception as error:  # the check's, or that of a program's property
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.error("the time-outs are left as they were: %s", error, extra=about(None, "options"))
            return
        self.wanted = found[0], found[1]
        # If the program has taken both back, it may set one again: look for that as often as before.
        self._shortest = min((seconds for seconds in found if seconds is not None), default=self._shortest)

    def _end_old(self, client: Client, now: float, lifetime: float) -> float:
        """End a client that has stayed too long; return when its time is up."""
        due = client._accepted + lifetime
        if due <= now:
            client._cut("lifetime")
            return float("inf")
        return due

    def _end_idle(self, client: Client, now: float, idle_timeout: float) -> float:
        """End a client that has been idle too long; return when that may be so."""
        activity = client._activity
        last = client._accepted if activity is None else max(client._accepted, activity.rested, activity.seen)
        if last + idle_timeout > now:  # nothing else has to be known
            return last + idle_timeout
        activity = activity or client._observe()
        busy = activity.busy or client.state == "computing"  # read ahead of what follows: see `while_busy`
        idle = None if busy else self._deadlines.idle_of(client)
        activity.seen = now if idle is None else now - idle  # None: the system cannot tell, or the client has gone
        last = max(activity.seen, activity.rested)
        if last + idle_timeout > now:
            return last + idle_timeout
        client._cut("idle")
        return float("inf")


def _idle_of(client: Client) -> float | None:
    """Return for how many seconds no byte has passed."""
    return client.idle
