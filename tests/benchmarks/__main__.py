"""Runs the benchmarks: ``python -m tests.benchmarks [NAME ...]``."""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from . import computing, computing_server, loads, standing
from .measure import C_SERVER, HERE, Step, Table, Where, compiled
from .peers import PEERS

BENCHMARKS = {
    "connections": loads.connections, "pingpong": loads.pingpong, "lines": loads.lines, "many": standing.many,
    "idle": standing.idle, "cost": loads.cost, "offload": computing.offload,
}

ALL_PEERS = list(dict.fromkeys([*PEERS, *computing_server.PEERS, C_SERVER]))
FAMILIES = {peer.partition(",")[0] for peer in ALL_PEERS}


def version_of(python: str) -> str:
    """Return an interpreter's version, and whether it is without the GIL."""
    text = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    return text.split()[1] + (" free-threaded" if "free-threading" in text else "")


def describe(where: Where) -> str:
    """Say on what the figures were measured."""
    versions = version_of(where.python)
    if where.free_threaded:
        versions += f" and {version_of(where.free_threaded)}"
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    kept = f", servers on processor {', '.join(map(str, sorted(where.cpus)))}" if where.cpus else ""
    return (f"Python {versions}, {cores} cores of {model}, "
            f"Linux {platform.release().split('-')[0]}, load generator on the same machine{kept}")


@cache
def installed_peers(python: str, module: str) -> list[str]:
    """Name the peers of a module that an interpreter has."""
    code = f"from tests.benchmarks.{module} import installed; print('\\n'.join(installed()))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True,
                          cwd=HERE.parent.parent).stdout.splitlines()


def peers_of(benchmark: str, python: str, wanted: Collection[str]) -> list[str]:
    """Name the peers of a benchmark that an interpreter has and that are wanted."""
    found = (installed_peers(python, "computing_server") if benchmark == "offload" else
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
    parser.add_argument("--python", default=sys.executable, help="the interpreter that the servers run on")
    parser.add_argument("--free-threaded", metavar="PYTHON",
                        help="an interpreter without the GIL, for a peer of offload (default: without that peer)")
    parser.add_argument("--cpus", type=int, nargs="*", help="keep the servers to these processors (default: all)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for JSON and pictures")
    parser.add_argument("--no-pictures", action="store_true", help="JSON only")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if unknown := set(options.peers or ()) - {*ALL_PEERS, *FAMILIES}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    compiled("load")
    where = Where(options.python, frozenset(options.cpus) if options.cpus else None, options.free_threaded)
    wanted = options.peers or ALL_PEERS
    machine = describe(where)
    print(machine)
    tables: list[Table] = []
    plans = [BENCHMARKS[name](peers_of(name, where.python, wanted), options.seconds, where)
             for name in options.names or BENCHMARKS]
    # Round by round, so that all peers share in whatever else the machine is doing.
    everything = [step for _, steps in plans for _ in range(options.rounds) for step in steps]
    for step in progress(everything):
        step()
    tables += [table for made, _ in plans for table in made]
    options.output.mkdir(parents=True, exist_ok=True)
    for table in tables:
        print(f"\n{table.show()}")
        (options.output / f"{table.name}.json").write_text(json.dumps(
            {"machine": machine, "rounds": options.rounds, "seconds": options.seconds, **table.as_dict()}, indent=1))
        if not options.no_pictures:
            from .pictures import draw
            draw(table, machine, options.output)


if __name__ == "__main__":
    main()
