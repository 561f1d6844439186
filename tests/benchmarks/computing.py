"""The benchmark of servers that compute: what their light clients notice of it, and how much they get done."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from .computing_server import DASK, DASK_SCHEDULER, NEEDS_FREE_THREADED
from .measure import Step, Table, Where, load, program


@contextmanager
def computing_server(peer: str, where: Where) -> Iterator[int]:
    """Run a server and what belongs to it, each a program of its own; yield its port."""
    if peer in NEEDS_FREE_THREADED:
        assert where.free_threaded is not None
        where = replace(where, python=where.free_threaded)
    with ExitStack() as programs:
        needs = [programs.enter_context(program(where, "computing_server", DASK_SCHEDULER))] if peer == DASK else []
        yield int(programs.enter_context(program(where, "computing_server", peer, *needs)))


def offload(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """Round trips of a light client while 0, 2, 4 and 16 heavy ones have jobs of some 20 ms done, one after the other.

    A light client of a server that computes in its threads has few rounds in a short run: its p99 is then its worst.
    """
    table = Table("offload", "A light client among heavy ones, 99th percentile", "p99_us", "microseconds a round trip",
                  ("p50_us", "max_us", "jobs_per_second"), more_is_better=False, logarithmic=True)

    def step(peer: str, heavy: int) -> Step:
        def add() -> None:
            with computing_server(peer, where) as port:
                table.row(where.named(f"{heavy} heavy clients"), peer).add(load(port, "mixed", heavy, seconds))
        return add

    return table, [step(peer, heavy) for heavy in (0, 2, 4, 16) for peer in peers
                   if peer not in NEEDS_FREE_THREADED or where.free_threaded]
