"""Starts servers and loads, and puts their figures together."""
from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def shown(value: float) -> str:
    """Format a figure for people: four digits of a small one, a large one as a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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
        return f"{shown(min(values))} – {shown(max(values))}"


@dataclass
class Table:
    """The rows of one benchmark. ``key`` is the figure that is compared, with the row of the peer ``base``.

    ``logarithmic`` is for its picture.
    """

    name: str
    title: str
    key: str
    unit: str
    columns: tuple[str, ...]
    more_is_better: bool = True
    logarithmic: bool = False
    base: str = "stock"
    rows: list[Row] = field(default_factory=list)

    def row(self, load: str, peer: str) -> Row:
        """Find a row, or make it."""
        for row in self.rows:
            if (row.load, row.peer) == (load, peer):
                return row
        self.rows.append(Row(load, peer))
        return self.rows[-1]

    def ratio(self, row: Row) -> float | None:
        """Compare a row with the base's under the same load: the median of each round's ratio."""
        base = next((other for other in self.rows if (other.load, other.peer) == (row.load, self.base)), None)
        if base is None or not all(base.figures[self.key]):
            return None
        return statistics.median(mine / its for mine, its in zip(row.figures[self.key], base.figures[self.key]))

    def show(self) -> str:
        """Format as text."""
        lines = [f"{self.title}: {self.key} ({self.unit}), median of {len(next(iter(self.rows[0].figures.values())))}"]
        for load in dict.fromkeys(row.load for row in self.rows):
            lines.append(f"  {load}")
            for row in (row for row in self.rows if row.load == load):
                ratio = self.ratio(row)
                times = "" if ratio is None else f"{ratio:6.3g} x {self.base}"
                rest = "  ".join(f"{name} {shown(row.median(name))}" for name in self.columns if name in row.figures)
                spread = f"({row.spread(self.key)})"
                lines.append(f"    {row.peer:<29}{shown(row.median(self.key)):>10}  {spread:<19}  {times:<18}  {rest}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)


PATIENCE = 10.0
"""Seconds that a program has to end, its workers included."""

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
    """What the servers run on: the interpreter, and the processors (``None``: all of them).

    ``free_threaded`` is the interpreter of the peers that are for one without the GIL (``None``: leave them out).
    ``name`` tells it from the other ones of a run (empty: it is the only one).
    """

    python: str = sys.executable
    cpus: frozenset[int] | None = None
    free_threaded: str | None = None
    name: str = ""

    def named(self, load: str) -> str:
        """Name a load on this in the tables."""
        return f"{load}, {self.name}" if self.name else load

    def pin(self) -> None:
        """Keep the calling process to the processors."""
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)


def environment() -> dict[str, str]:
    """Return the environment of a program that is measured."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@dataclass
class Served:
    """A server that runs: its port; and, after its end, how often its threads were switched since it was ready."""

    port: int
    switches: int = 0


def switches(process: int | str = "self") -> int:
    """Count the context switches of a process's live threads, voluntary and not."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError):  # it has just ended
            lines = (task / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


@contextmanager
def server(peer: str, body: str, where: Where) -> Iterator[Served]:
    """Run a server in a process of its own."""
    command = [where.python, "-m", "tests.benchmarks.peers", peer, body] if peer != C_SERVER else [compiled("echo")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
                               env=environment(), preexec_fn=where.pin)
    assert process.stdout is not None
    with process.stdout:
        try:
            served = Served(int(process.stdout.readline()))
            starting = switches(process.pid)
            yield served
        finally:
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)  # so that nobody waits for it again
    served.switches = usage.ru_nvcsw + usage.ru_nivcsw - starting


@contextmanager
def program(where: Where, name: str, *arguments: str) -> Iterator[str]:
    """Run a program of this folder that ends, with its worker processes, when its standard input does.

    Yield the first line that it prints. Raises RuntimeError where it prints none.
    """
    command = [where.python, "-m", f"{__package__}.{name}", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, cwd=ROOT, env=environment(), preexec_fn=where.pin, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    with process.stdout:
        try:
            line = process.stdout.readline().strip()
            if not line:
                raise RuntimeError(f"{' '.join(command)}: has not started; run it by hand to see why")
            yield line
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
                process.wait()


def load(port: int, *arguments: object) -> dict[str, float]:
    """Run the load generator to its end, and return its figures; the rounds, and jobs or deliveries, also a second."""
    command = [compiled("load"), str(port), *map(str, arguments)]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if figures["errors"]:
        print(f"\n  {figures['errors']:.0f} errors under {' '.join(map(str, arguments))}", file=sys.stderr)
    figures["per_second"] = figures["rounds"] / figures["seconds"]
    for name in ("jobs", "delivered"):
        if name in figures:
            figures[f"{name}_per_second"] = figures[name] / figures["seconds"]
    return figures


Step = Callable[[], None]
"""One server under one load, once."""


def one(table: Table, name: str, peer: str, body: str, arguments: tuple[object, ...], where: Where,
        shown: str = "") -> Step:
    """Make the step that puts a peer under a load, and adds the figures to a table, in the row ``shown`` or the peer's.
    """
    def step() -> None:
        with server(peer, body, where) as served:
            figures = load(served.port, *arguments)
        figures["switches_a_round"] = served.switches / max(1, figures["rounds"])
        table.row(where.named(name), shown or peer).add(figures)
    return step
