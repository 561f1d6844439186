"""A period of serving: from a start to the stop that ends it."""
from __future__ import annotations

import threading


class Period:
    """What a stop says to everything that began before it.

    Each client and each offloaded call keeps the period in which it began. When the server serves again, it does so in
    a new period, and whatever is left of an earlier one goes on seeing its own stop.

    The steps are taken in one direction only: serving, then `stop`, then `force`. *Thread safety*: any thread may read;
    the stop alone takes the steps.
    """

    __slots__ = ("stopping", "forced", "hastened")

    def __init__(self) -> None:
        self.stopping = threading.Event()
        """Set when a stop begins. Handlers see it as ``self.stopping``."""
        self.forced = False
        """Whether the stop has cut the remaining connections, and given up the offloaded calls."""
        self.hastened = False
        """Whether the stop is not to wait for handlers to end by themselves."""

    def is_stopping(self) -> bool:
        """Return whether a stop has begun."""
        return self.stopping.is_set()

    def stop(self) -> None:
        """Begin to stop."""
        self.stopping.set()

    def force(self) -> None:
        """Give up what has not ended by itself."""
        self.stopping.set()
        self.forced = True
