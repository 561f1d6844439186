"""The table of a light client beside heavy ones: wherever a server may compute, in the interpreter that it runs on."""
from __future__ import annotations

import os
from dataclasses import dataclass, replace

from .computing import computing_server
from .computing_server import DASK, INTERPRETERS, THREADS
from .measure import Row, Step, Table, Where, load, program

PEERS = ("threaded_echo, inline", THREADS, INTERPRETERS, "threaded_echo, workers", DASK, "asyncio")
"""The rows, in their order; those that the interpreter lacks are left out."""

HEAVY = (2, 8)
"""So many heavy clients."""

ONE_PROCESSOR = "one processor"
"""The row of what is compared with: jobs in a bare loop, in a process that is kept to one processor."""

COLUMNS = {"idle_p50_us": "idle p50", "idle_p99_us": "idle p99",
           **{f"beside_{heavy}_p99_us": f"p99 beside {heavy}" for heavy in HEAVY},
           "jobs_per_second": "jobs/s", "times_one_processor": "x one processor"}


@dataclass
class Beside(Table):
    """A table with a row for each place, and a column for each load."""

    def show(self) -> str:
        """Format as text."""
        rounds = max(len(values) for row in self.rows for values in row.figures.values())
        lines = [f"{self.title}: microseconds a round trip, median of {rounds}",
                 f"  {'':<39}" + "".join(f"{title:>17}" for title in COLUMNS.values())]
        for row in self.rows:
            cells = [f"{row.median(name):,.0f}" if row.figures.get(name) else "-" for name in COLUMNS]
            if row.figures.get("times_one_processor"):
                cells[-1] = f"{row.median('times_one_processor'):.2f}"
            name = f"{row.peer}, {row.load}" if row.load else row.peer
            lines.append(f"  {name:<39}" + "".join(f"{cell:>17}" for cell in cells))
        return "\n".join(lines)


def one_processor(where: Where, seconds: float) -> float:
    """Return how many jobs a second one processor does in a bare loop."""
    allowed = where.cpus or os.sched_getaffinity(0)
    pinned = replace(where, cpus=frozenset({max(allowed)}))
    with program(pinned, "computing_job", str(seconds)) as line:
        return float(line)


def measure(row: Row, peer: str, seconds: float, where: Where, jobs: float) -> None:
    """Run one server under each load, and add what is found to a row. ``jobs``: a second, of one processor."""
    with computing_server(peer, where) as port:
        found = load(port, "mixed", 0, seconds / 2)
        figures = {"idle_p50_us": found["p50_us"], "idle_p99_us": found["p99_us"], "errors": found["errors"]}
        for heavy in HEAVY:
            found = load(port, "mixed", heavy, seconds * 0.6)
            figures[f"beside_{heavy}_p99_us"] = found["p99_us"]
            figures["errors"] += found["errors"]
    row.add({**figures, "jobs_per_second": found["jobs_per_second"],
             "times_one_processor": found["jobs_per_second"] / jobs})


def beside(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """Round trips of a light client without, with 2 and with 8 heavy ones, which have jobs of some 20 ms done.

    The jobs are those of the 8; what they are compared with is measured in each round. The server goes on from one load
    to the next.
    """
    table = Beside("beside", "A light client beside heavy ones", "beside_8_p99_us", "microseconds a round trip",
                   tuple(COLUMNS), more_is_better=False, logarithmic=True)
    base: list[float] = []

    def add_base() -> None:
        base.append(one_processor(where, seconds / 2))
        table.row(where.name, ONE_PROCESSOR).add({"jobs_per_second": base[-1], "times_one_processor": 1.0})

    def step(peer: str) -> Step:
        return lambda: measure(table.row(where.name, peer), peer, seconds, where, base[-1])

    return table, [add_base, *(step(peer) for peer in PEERS if peer in peers)]
