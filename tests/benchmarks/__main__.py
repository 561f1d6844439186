"""Runs the benchmarks: ``python -m tests.benchmarks [NAME ...]``."""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

from . import beside, computing, computing_server, loads, standing, worker_calls
from .measure import C_SERVER, HERE, Step, Table, Where, compiled
from .peers import PEERS

BENCHMARKS = {
    "connections": loads.connections, "pingpong": loads.pingpong, "lines": loads.lines, "chat": loads.chat,
    "many": standing.many, "idle": standing.idle, "cost": loads.cost, "options": loads.options, "live": loads.live,
    "offload": computing.offload, "beside": beside.beside, "calls": worker_calls.calls,
    "sharing": worker_calls.sharing,
}

ALL_PEERS = list(dict.fromkeys([*PEERS, *computing_server.PEERS, C_SERVER]))
FAMILIES = {peer.partition(",")[0] for peer in ALL_PEERS}


def version_of(python: str) -> str:
    """Return an interpreter's version, and whether it is without the GIL."""
    text = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    return text.split()[1] + (" free-threaded" if "free-threading" in text else "")


def processors(text: str) -> frozenset[int] | None:
    """Read which processors the servers are kept to: ``0``, or ``0,1``; ``all`` is ``None``."""
    return None if text == "all" else frozenset(map(int, text.split(",")))


def kept_to(cpus: frozenset[int] | None) -> str:
    """Say which processors the servers are kept to."""
    return f"servers on processor {', '.join(map(str, sorted(cpus)))}" if cpus else "servers on all processors"


def places(pythons: list[str], cpus: list[frozenset[int] | None], free_threaded: str | None) -> list[Where]:
    """Combine every interpreter with every choice of processors."""
    made = []
    for python, choice in product(pythons, cpus):
        names = [version_of(python)] * (len(pythons) > 1) + [kept_to(choice)] * (len(cpus) > 1)
        made.append(Where(python, choice, free_threaded, ", ".join(names)))
    return made


def describe(wheres: list[Where]) -> str:
    """Say on what the figures were measured."""
    pythons = dict.fromkeys([*(where.python for where in wheres), *(where.free_threaded for where in wheres)])
    versions = ", ".join(version_of(python) for python in pythons if python)
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    kept = "; ".join(dict.fromkeys(kept_to(where.cpus) for where in wheres))
    return (f"Python {versions}, {cores} cores of {model}, "
            f"Linux {platform.release().split('-')[0]}, load generator on the same machine, {kept}")


def merged(tables: Iterable[Table]) -> list[Table]:
    """Put the rows of tables with the same name together."""
    found: dict[str, Table] = {}
    for table in tables:
        found.setdefault(table.name, replace(table, rows=[])).rows.extend(table.rows)
    return list(found.values())


@cache
def installed_peers(python: str, module: str) -> list[str]:
    """Name the peers of a module that an interpreter has."""
    code = f"from tests.benchmarks.{module} import installed; print('\\n'.join(installed()))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True,
                          cwd=HERE.parent.parent).stdout.splitlines()


def peers_of(benchmark: str, python: str, wanted: Collection[str]) -> list[str]:
    """Name the peers of a benchmark that an interpreter has and that are wanted."""
    found = (installed_peers(python, "computing_server") if benchmark in ("offload", "beside") else
             [*installed_peers(python, "peers"), C_SERVER])
    return [peer for peer in found if peer in wanted or peer.partition(",")[0] in wanted]


def progress(steps: list[Step]) -> Iterable[Step]:
    """Show how far it has come, where the ``bench`` extra is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, unit="run")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each load (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a run (default: %(default)s)")
    parser.add_argument("--peers", nargs="*", metavar="PEER",
                        help=f"only these (default: all that are installed): {'; '.join(ALL_PEERS)}. What stands "
                             "before a comma is for all that begin with it")
    parser.add_argument("--python", action="append",
                        help="the interpreter that the servers run on (default: this one). Each one that is given has "
                             "rows of its own")
    parser.add_argument("--free-threaded", metavar="PYTHON",
                        help="an interpreter without the GIL, for a peer of offload (default: without that peer)")
    parser.add_argument("--cpus", type=processors, action="append",
                        help="keep the servers to these processors: 0, or 0,1; or all, the default. Each choice "
                             "that is given has rows of its own")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for JSON and pictures")
    parser.add_argument("--no-pictures", action="store_true", help="JSON only")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if unknown := set(options.peers or ()) - {*ALL_PEERS, *FAMILIES}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    compiled("load")
    wheres = places(options.python or [sys.executable], options.cpus or [None], options.free_threaded)
    wanted = options.peers or ALL_PEERS
    machine = describe(wheres)
    print(machine)
    plans = [BENCHMARKS[name](peers_of(name, where.python, wanted), options.seconds, where)
             for name in options.names or BENCHMARKS for where in wheres]
    # Round by round, so that all peers share in whatever else the machine is doing.
    everything = [step for _, steps in plans for _ in range(options.rounds) for step in steps]
    for step in progress(everything):
        step()
    options.output.mkdir(parents=True, exist_ok=True)
    for table in merged(table for table, _ in plans):
        print(f"\n{table.show()}")
        (options.output / f"{table.name}.json").write_text(json.dumps(
            {"machine": machine, "rounds": options.rounds, "seconds": options.seconds, **table.as_dict()}, indent=1))
        if not options.no_pictures:
            from .pictures import draw
            draw(table, machine, options.output)


if __name__ == "__main__":
    main()
