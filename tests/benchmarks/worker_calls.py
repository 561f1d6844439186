"""The benchmarks of calls to a worker process: what one costs, and how fast large data goes there and back."""
from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from .measure import ROOT, Step, Table, Where, environment
from .worker_calls_program import CALLS, SHARED

MEGABYTES = (1, 64)


def program(where: Where, *arguments: object) -> dict[str, float]:
    """Run the program that calls, and return its figures."""
    command = [where.python, "-m", f"{__package__}.worker_calls_program", *map(str, arguments)]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT,
                                                          env=environment(), preexec_fn=where.pin).stdout)
    return figures


def _step(table: Table, name: str, peer: str, where: Where, *arguments: object) -> Callable[[], None]:
    return lambda: table.row(where.named(name), peer).add(program(where, *arguments))


def calls(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """One caller, a function that does next to nothing, again and again."""
    table = Table("calls", "The cost of a call", "us", "microseconds a call, the median", (), more_is_better=False,
                  base="process pool")
    return table, [_step(table, "one caller", peer, where, "calls", peer, seconds) for peer in CALLS]


def sharing(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """Data there and back, compared with plain pipes between two processes that do nothing else with the same bytes."""
    table = Table("sharing", "Large data to a worker process and back", "ms", "milliseconds, the median", ("best_ms",),
                  more_is_better=False, logarithmic=True, base="pipe")
    return table, [_step(table, f"{size} MiB", peer, where, "sharing", peer, seconds, size)
                   for size in MEGABYTES for peer in SHARED]
