"""The job of the heavy clients, in a module of its own: worker processes of every kind import it by its name."""
from __future__ import annotations

STEPS = 120_000
"""About 20 ms of one processor of today."""


def compute() -> int:
    """Keep a processor busy, in pure Python."""
    total = 0
    for number in range(STEPS):
        total = (total * 31 + number) % 1_000_003
    return total
