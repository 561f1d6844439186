"""The benchmarks run: a short round of some of each, whose figures mean nothing. One whole command is run for all."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from ..benchmarks.__main__ import BENCHMARKS
from ..benchmarks.measure import Where, load, server
from ..benchmarks.peers import OPTIONS, PEERS
from ..benchmarks.standing import program
from ..benchmarks.standing_server import BARE
from ..benchmarks.worker_calls import MEGABYTES
from ..benchmarks.worker_calls_program import CALLS, SHARED

ROOT = Path(__file__).parent.parent.parent


def run(folder, *arguments):
    """Run benchmarks for a moment; return what they print."""
    command = [sys.executable, "-m", "tests.benchmarks", *arguments, "--rounds", "1", "--seconds", "0.1",
               "--no-pictures", "--output", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50,
                          env={**os.environ, "PYTHONWARNINGS": "default"})
    assert done.returncode == 0 and "errors" not in done.stderr, done.stderr
    return done.stdout


def test_benchmark_of_the_table_has_pairs_of_rows():
    """With the table and without, on a terminal, under each load; one pair is tried."""
    table, steps = BENCHMARKS["live"]([], 0.3, Where())
    assert len(steps) == 12
    for step in steps[6:8]:
        step()
    assert [row.peer for row in table.rows] == ["without it", "with it"]
    assert all(row.figures["errors"] == [0] for row in table.rows)
    assert any(row.figures["per_second"][0] > 0 for row in table.rows)  # a busy machine may leave one of them no time


@pytest.mark.parametrize("peer", ["threaded_echo", "stock", "asyncio streams"])
def test_load_of_a_chat_counts_what_is_delivered(peer):
    """Each line comes to every client, and a speaker goes on when it has its own back."""
    with server(peer, "chat", Where()) as served:
        figures = load(served.port, "chat", 20, 0.5, 64, 2)
    assert figures["errors"] == 0
    assert figures["delivered_per_second"] == figures["delivered"] / 0.5 > figures["rounds"] > 0


def test_benchmark_of_a_chat_has_a_row_for_each_peer_that_can():
    """It has no body for the others."""
    assert len(BENCHMARKS["chat"](list(PEERS), 1.0, Where())[1]) == 2 * 5


def test_benchmarks_print_and_keep_their_figures_for_each_place(tmp_path):
    """A table for people, JSON for programs; each choice of processors is compared with stock under the same choice."""
    processor = min(os.sched_getaffinity(0))
    printed = run(tmp_path, "connections", "cost", "--peers", "stock", "--cpus", "all", "--cpus", str(processor))
    places = ["servers on all processors", f"servers on processor {processor}"]
    for name, peers, kinds in (("connections", {"stock"}, ["8 at a time", "64 at a time"]),
                               ("cost", {"stock", "threaded_echo", "threaded_echo, watched"}, ["64 clients, 64 B"])):
        table = json.loads((tmp_path / f"{name}.json").read_text())
        loads = {f"{kind}, {place}" for kind in kinds for place in places}
        assert {(row["load"], row["peer"]) for row in table["rows"]} == {*product(loads, peers)}
        assert table["title"] in printed
        assert all(printed.count(load) == 1 for load in loads)
        check([row["figures"] for row in table["rows"]])
    assert printed.count("x stock") == 4 + 3 * 2


def check(figures):
    """Find no errors, and that something was measured."""
    assert all(figure["errors"] == [0] for figure in figures)
    # Not of each: a busy machine may leave one of them no time for a single round.
    assert any(figure["per_second"][0] > 0 for figure in figures)


@pytest.mark.parametrize(("name", "peers", "count"), [
    ("pingpong", ["stock", "threaded_echo"], 4), ("lines", ["stock", "threaded_echo"], 3), ("options", [*OPTIONS], 2),
])
def test_benchmark_puts_its_loads_on_its_peers(name, peers, count):
    """Every load is run, and every peer serves, though not each in each pair."""
    table, steps = BENCHMARKS[name](peers, 0.1, Where())
    assert len(steps) == count * len(peers)
    for turn in range(max(count, len(peers))):
        steps[turn % count * len(peers) + turn % len(peers)]()
    assert len({row.load for row in table.rows}) == count and {row.peer for row in table.rows} == set(peers)
    check([row.figures for row in table.rows])
    assert any(row.figures["switches_a_round"][0] > 0 for row in table.rows)


def test_offload_benchmark_measures_light_and_heavy_clients():
    """The light client is answered, and jobs are done if there are heavy clients."""
    table, steps = BENCHMARKS["offload"](["stock", "threaded_echo, workers"], 0.3, Where())
    for step in (steps[1], steps[2], steps[3]):
        step()
    assert [(row.load, row.peer) for row in table.rows] == [
        ("0 heavy clients", "threaded_echo, workers"), ("2 heavy clients", "stock"),
        ("2 heavy clients", "threaded_echo, workers")]
    for row in table.rows:
        figures = {name: values[0] for name, values in row.figures.items()}
        assert figures["errors"] == 0 and figures["rounds"] > 0
        assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
        assert figures["jobs"] == 0 or row.load != "0 heavy clients"
    assert any(row.figures["jobs"][0] for row in table.rows)


def test_table_of_a_light_client_beside_heavy_ones_has_a_row_for_each_place(tmp_path):
    """The places that were asked for, and one processor, with which the jobs are compared."""
    printed = run(tmp_path, "beside", "--peers", "threaded_echo, workers", "asyncio", "stock")
    rows = json.loads((tmp_path / "beside.json").read_text())["rows"]
    assert [row["peer"] for row in rows] == ["one processor", "threaded_echo, workers", "asyncio"]
    assert all(row["figures"].get("errors", [0]) == [0] for row in rows)
    assert all(row["peer"] in printed for row in rows) and "p99 beside 8" in printed
    figures = rows[1]["figures"]
    assert figures["times_one_processor"][0] == (
        figures["jobs_per_second"][0] / rows[0]["figures"]["jobs_per_second"][0])


@pytest.mark.parametrize(("benchmark_name", "peer"), [
    ("many", "threaded_echo"), ("many", "stock"), ("many", BARE), ("idle", "threaded_echo"),
])
def test_standing_benchmark_measures_itself(benchmark_name, peer):
    """With few clients it has figures, and the server that it measures stops."""
    figures = program(Where(), benchmark_name, peer, 5, seconds=0.1)
    assert figures["stop_s"] > 0
    assert ("one_more_us" if benchmark_name == "many" else "wakeups_a_second") in figures


def test_benchmarks_of_worker_calls_have_figures_of_each_peer():
    """A call's cost, and data there and back compared with a plain pipe: of the smaller size, and once of the larger.
    """
    table, steps = BENCHMARKS["calls"]([], 0, Where())
    for step in steps:
        step()
    assert [row.peer for row in table.rows] == [*CALLS] and all(row.figures["us"][0] > 0 for row in table.rows)
    table, steps = BENCHMARKS["sharing"]([], 0, Where())
    assert len(steps) == len(SHARED) * len(MEGABYTES)
    for step in steps[:len(SHARED) + 1]:
        step()
    assert all(row.figures["ms"][0] > 0 for row in table.rows)
    assert table.show().count("x pipe") == len(SHARED) + 1
