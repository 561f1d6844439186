"""The benchmarks run: a short round of each, whose figures mean nothing."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("names", [["connections", "pingpong"], ["lines", "cost"]])
def test_benchmark_prints_and_keeps_its_figures(tmp_path, names):
    """A table for people, JSON for programs, and no errors under load."""
    command = [sys.executable, "-m", "tests.benchmarks", *names, "--rounds", "1", "--seconds", "0.3",
               "--peers", "stock", "threaded_echo", "--no-pictures", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50,
                          env={**os.environ, "PYTHONWARNINGS": "default"})
    assert done.returncode == 0, done.stderr
    for name in names:
        table = json.loads((tmp_path / f"{name}.json").read_text())
        peers = {row["peer"] for row in table["rows"]}
        assert {"stock", "threaded_echo"} <= peers
        assert all(figures > 0 for row in table["rows"] for figures in row["figures"]["per_second"])
        assert table["title"] in done.stdout


def test_offload_benchmark_measures_light_and_heavy_clients(tmp_path):
    """The light client is answered, and jobs are done where there are heavy clients."""
    peers = ["stock", "threaded_echo, workers"]
    command = [sys.executable, "-m", "tests.benchmarks", "offload", "--rounds", "1", "--seconds", "0.3",
               "--peers", *peers, "--no-pictures", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and "errors" not in done.stderr, done.stderr
    rows = json.loads((tmp_path / "offload.json").read_text())["rows"]
    assert [row["peer"] for row in rows] == peers * 4
    for row in rows:
        figures = {name: values[0] for name, values in row["figures"].items()}
        assert figures["errors"] == 0 and figures["rounds"] > 0
        assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
        assert figures["jobs"] == 0 or row["load"] != "0 heavy clients"
    assert any(row["figures"]["jobs"][0] for row in rows)  # of sixteen at once, none may be done so soon


@pytest.mark.parametrize("benchmark_name", ["many", "idle"])
def test_standing_benchmark_measures_itself(benchmark_name):
    """With few clients: it prints figures, and the server that it measures stops."""
    code = f"from tests.benchmarks.standing import program; from tests.benchmarks.measure import Where; " \
           f"print(program(Where(), {benchmark_name!r}, 'threaded_echo', 5))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and "stop_s" in done.stdout, done.stderr
