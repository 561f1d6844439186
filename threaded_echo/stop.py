"""One stop in progress: its deadlines, its callers, and what it leaves for its report."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .accepting.loop import Background
from .clients.client import Client
from .report import StopReport


class Stop:
    """A stop in progress. Its fields are guarded by the server's lock."""

    def __init__(self, drain: float, force: float, patient: bool, gone: int,
                 background: Background | None) -> None:
        self.started = time.monotonic()
        self.drain_until = self.started + drain
        self.force = force
        self.force_until: float | None = None  # set once the connections have been cut
        self.patient = patient  # seconds were given: it waits for what an earlier stop has given up on, too
        self.gone_before = gone
        self.drained = 0
        self.background = background  # the thread of start(); a later start() may already wait for this stop to end
        self.leader = threading.current_thread()
        self.inside: dict[threading.Thread, Client | None] = {}  # the callers from inside, and whom they serve
        self.called_inside: dict[threading.Thread, Client | None] = {}  # the same, and those that have returned
        self.to_close: list[Callable[[], None]] = []
        self.watchers: list[threading.Thread] = []  # of deadlines, that have not returned in time
        self.error: BaseException | None = None  # what closing has raised
        self.is_over = False
        self.report: StopReport | None = None  # for callers from outside

    def hasten(self, drain: float | None, force: float | None) -> None:
        """Shorten what is left; ``None`` leaves it as it is."""
        now = time.monotonic()
        if drain is not None:
            self.drain_until = min(self.drain_until, now + drain)
        if force is not None:
            self.force = min(self.force, force)
            if self.force_until is not None:
                self.force_until = min(self.force_until, now + force)

    def go_on(self) -> None:
        """Make the calling thread the leader."""
        self.leader = threading.current_thread()
        self.is_over = False

    def until(self) -> float:
        """Return the time at which the present step is given up: that of the drain, then that of the force."""
        return self.drain_until if self.force_until is None else self.force_until
