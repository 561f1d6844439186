"""Starts servers and loads, and puts their figures together."""
from __future__ import annotations

import atexit
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass
class Row:
    """One server under one load: a figure per round."""

    load: str
    peer: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Mapping[str, float]) -> None:
        """Add a round."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.figures[name])

    def spread(self, name: str) -> str:
        """Return the least and the greatest."""
        values = self.figures[name]
        return f"{min(values):,.4g} – {max(values):,.4g}"


@dataclass
class Table:
    """The rows of one benchmark. ``key`` is the figure that is compared."""

    name: str
    title: str
    key: str
    unit: str
    columns: tuple[str, ...]
    more_is_better: bool = True
    rows: list[Row] = field(default_factory=list)

    def row(self, load: str, peer: str) -> Row:
        """Find a row, or make it."""
        for row in self.rows:
            if (row.load, row.peer) == (load, peer):
                return row
        self.rows.append(Row(load, peer))
        return self.rows[-1]

    def ratio(self, row: Row, base: str = "stock") -> float | None:
        """Compare a row with the standard library's under the same load."""
        stock = next((other for other in self.rows if (other.load, other.peer) == (row.load, base)), None)
        if stock is None or not stock.median(self.key):
            return None
        return row.median(self.key) / stock.median(self.key)

    def show(self) -> str:
        """Format as text."""
        lines = [f"{self.title}: {self.key} ({self.unit}), median of {len(next(iter(self.rows[0].figures.values())))}"]
        for load in dict.fromkeys(row.load for row in self.rows):
            lines.append(f"  {load}")
            for row in (row for row in self.rows if row.load == load):
                ratio = self.ratio(row)
                times = "" if ratio is None else f"{ratio:6.2f} x stock"
                rest = "  ".join(f"{name} {row.median(name):,.4g}" for name in self.columns if name in row.figures)
                lines.append(f"    {row.peer:<24}{row.median(self.key):>12,.4g}  ({row.spread(self.key)})"
                             f"  {times:<14}  {rest}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)


C_SERVER = "C with epoll"
"""The name of `echo.c` among the peers: what the load generator reaches with a server that costs next to nothing."""


@cache
def compiled(name: str) -> Path:
    """Compile a C program of this folder. Raises SystemExit where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("the benchmarks need a C compiler: a load generator in Python would be what is measured")
    folder = tempfile.TemporaryDirectory(prefix=f"{name}-")
    atexit.register(folder.cleanup)
    program = Path(folder.name) / name
    subprocess.run([compiler, "-O2", "-o", program, HERE / f"{name}.c"], check=True)
    return program


@dataclass(frozen=True)
class Where:
    """What the servers run on: the interpreter, and the processors (``None``: all of them)."""

    python: str = sys.executable
    cpus: frozenset[int] | None = None

    def pin(self) -> None:
        """Keep the calling process to the processors."""
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)


@contextmanager
def server(peer: str, body: str, where: Where) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a server in a process of its own; yield it and its port."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [where.python, "-m", "tests.benchmarks.peers", peer, body] if peer != C_SERVER else [compiled("echo")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
                               env=environment, preexec_fn=where.pin)
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def load(port: int, *arguments: object) -> dict[str, float]:
    """Run the load generator to its end, and return its figures with the rounds a second."""
    command = [compiled("load"), str(port), *map(str, arguments)]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if figures["errors"]:
        print(f"\n  {figures['errors']:.0f} errors under {' '.join(map(str, arguments))}", file=sys.stderr)
    return {**figures, "per_second": figures["rounds"] / figures["seconds"]}


Step = Callable[[], None]
"""One server under one load, once."""


def one(table: Table, name: str, peer: str, body: str, arguments: tuple[object, ...], where: Where) -> Step:
    """Make the step that puts a peer under a load, and adds the figures to a table."""
    def step() -> None:
        with server(peer, body, where) as (_, port):
            table.row(name, peer).add(load(port, *arguments))
    return step
