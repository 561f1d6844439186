"""The job of the heavy clients, in a module of its own: worker processes of every kind import it by its name."""
from __future__ import annotations

import sys
import time

STEPS = 120_000
"""About 20 ms of one processor of today."""


def compute() -> int:
    """Keep a processor busy, in pure Python."""
    total = 0
    for number in range(STEPS):
        total = (total * 31 + number) % 1_000_003
    return total


def main(seconds: float) -> None:
    """Print how many jobs a second are done in this thread, with nothing beside them."""
    compute()
    began, done = time.monotonic(), 0
    while (took := time.monotonic() - began) < seconds:
        compute()
        done += 1
    print(done / took, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
