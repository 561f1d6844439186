"""Histograms of durations."""
from __future__ import annotations

import math

from threaded_echo.observe.durations import BOUNDS, DurationRecorder


def test_histogram_is_cumulative():
    """Each bucket has all that took at most so long; the bound itself belongs to it."""
    recorder = DurationRecorder()
    for seconds in (0.0, 0.001, 0.0011, 0.4, 0.5, 1000.0):
        recorder.add(seconds)
    found = recorder.read()
    assert (found.count, round(found.sum, 4)) == (6, 1000.9021)
    buckets = dict(found.buckets)
    assert tuple(buckets) == BOUNDS
    assert (buckets[0.001], buckets[0.0025], buckets[0.25], buckets[0.5], buckets[60.0], buckets[math.inf]) == (
        2, 3, 3, 5, 5, 6)


def test_histogram_of_nothing_is_all_zero():
    """It has its buckets all the same."""
    found = DurationRecorder().read()
    assert (found.count, found.sum) == (0, 0.0)
    assert found.buckets == tuple((bound, 0) for bound in BOUNDS)
