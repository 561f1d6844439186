"""The benchmarks run: a short round of each, whose figures mean nothing."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..benchmarks.measure import Where
from ..benchmarks.peers import OPTIONS
from ..benchmarks.standing import program
from ..benchmarks.standing_server import BARE
from ..benchmarks.worker_calls import MEGABYTES
from ..benchmarks.worker_calls_program import SHARED

ROOT = Path(__file__).parent.parent.parent


def run(folder, *arguments):
    """Run benchmarks for a moment; return what they print."""
    command = [sys.executable, "-m", "tests.benchmarks", *arguments, "--rounds", "1", "--seconds", "0.3",
               "--no-pictures", "--output", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50,
                          env={**os.environ, "PYTHONWARNINGS": "default"})
    assert done.returncode == 0 and "errors" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("names", [["connections", "pingpong"], ["lines", "cost"]])
def test_benchmark_prints_and_keeps_its_figures(tmp_path, names):
    """It prints a table for people, keeps JSON for programs, and sees no errors under load."""
    printed = run(tmp_path, *names, "--peers", "stock", "threaded_echo")
    for name in names:
        table = json.loads((tmp_path / f"{name}.json").read_text())
        peers = {row["peer"] for row in table["rows"]}
        assert {"stock", "threaded_echo"} <= peers
        figures = [row["figures"] for row in table["rows"]]
        assert all(figure["errors"] == [0] for figure in figures)
        # Not of each: a busy machine may leave one of them no time for a single round.
        assert any(figure["per_second"][0] > 0 and figure["switches_a_round"][0] > 0 for figure in figures)
        assert table["title"] in printed


def test_benchmark_of_options_has_a_row_for_each(tmp_path):
    """Each is compared with none."""
    run(tmp_path, "options")
    rows = json.loads((tmp_path / "options.json").read_text())["rows"]
    assert {row["peer"] for row in rows} == set(OPTIONS) and len(rows) == 2 * len(OPTIONS)
    assert all(row["figures"]["errors"] == [0] for row in rows)


def test_benchmark_of_several_places_has_rows_for_each(tmp_path):
    """Each choice of processors is compared with stock under the same choice."""
    processor = min(os.sched_getaffinity(0))
    printed = run(tmp_path, "cost", "--cpus", "all", "--cpus", str(processor))
    loads = {row["load"] for row in json.loads((tmp_path / "cost.json").read_text())["rows"]}
    places = ["servers on all processors", f"servers on processor {processor}"]
    assert loads == {f"64 clients, 64 B, {place}" for place in places}
    assert all(printed.count(load) == 1 for load in loads)
    assert printed.count("x stock") == 3 * len(loads)


def test_offload_benchmark_measures_light_and_heavy_clients(tmp_path):
    """The light client is answered, and jobs are done where there are heavy clients."""
    peers = ["stock", "threaded_echo, workers"]
    run(tmp_path, "offload", "--peers", *peers)
    rows = json.loads((tmp_path / "offload.json").read_text())["rows"]
    assert [row["peer"] for row in rows] == peers * 4
    for row in rows:
        figures = {name: values[0] for name, values in row["figures"].items()}
        assert figures["errors"] == 0 and figures["rounds"] > 0
        assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
        assert figures["jobs"] == 0 or row["load"] != "0 heavy clients"
    assert any(row["figures"]["jobs"][0] for row in rows)  # of sixteen at once, none may be done so soon


@pytest.mark.parametrize(("benchmark_name", "peer"), [
    ("many", "threaded_echo"), ("many", "stock"), ("many", BARE), ("idle", "threaded_echo"),
])
def test_standing_benchmark_measures_itself(benchmark_name, peer):
    """With few clients it has figures, and the server that it measures stops."""
    figures = program(Where(), benchmark_name, peer, 5)
    assert figures["stop_s"] > 0
    assert ("one_more_us" if benchmark_name == "many" else "wakeups_a_second") in figures


def test_benchmarks_of_worker_calls_have_figures_of_each_peer(tmp_path):
    """A call's cost, and data there and back compared with a plain pipe."""
    printed = run(tmp_path, "calls", "sharing")
    for name, key in (("calls", "us"), ("sharing", "ms")):
        table = json.loads((tmp_path / f"{name}.json").read_text())
        assert all(row["figures"][key][0] > 0 for row in table["rows"])
    assert printed.count("x pipe") == len(SHARED) * len(MEGABYTES)
