"""How long things took: how many, how long together, and how many took at most so long."""
from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
"""The upper bounds of the buckets for offloaded calls, in seconds."""

CONNECTION_BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, math.inf)
"""Those for connections, which may last for days."""


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram of durations, as Prometheus has it.

    - ``count``: how many there were; ``sum``: how many seconds they took together.
    - ``buckets``: pairs of an upper bound in seconds and of how many took at most so long; the last bound is
      `math.inf`.
    """

    count: int
    sum: float
    buckets: tuple[tuple[float, int], ...]


class DurationRecorder:
    """Adds up durations. Its caller makes sure that one thread at a time uses it."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self._bounds = bounds
        self._sum = 0.0
        self._counts = [0] * len(bounds)  # of those above the bound before

    def add(self, seconds: float) -> None:
        """Count one."""
        self._sum += seconds
        self._counts[bisect_left(self._bounds, seconds)] += 1

    def read(self) -> Durations:
        """Take a snapshot."""
        totals = tuple(accumulate(self._counts))
        return Durations(totals[-1], self._sum, tuple(zip(self._bounds, totals, strict=True)))
