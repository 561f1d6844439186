"""The README: its programs run, and its tables are those of the package."""
from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import socketserver
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from threaded_echo import ClientHandler, ThreadedTCPServer
from threaded_echo.observe.logs import EVENTS
from threaded_echo.options import OPTIONS

from .system.attacks import ATTACKS
from .tools import GUARD, ask, connect, receive

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.rst").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README)]

# Has `run` log its address to standard error.
PRELUDE = "import logging\nlogging.basicConfig(level=logging.INFO, format='%(message)s')\n"


def block(word: str) -> str:
    """Find the one program in which a word stands."""
    found = [block for block in BLOCKS if word in block]
    assert len(found) == 1, f"{len(found)} programs have {word!r}"
    return found[0]


class Program:
    """A program of the README that serves."""

    def __init__(self, process: subprocess.Popen[str], address: tuple[str, int]) -> None:
        self.process = process
        self.server_address = address

    def end(self) -> str:
        """Interrupt it, check that it ends well, and return what it has printed."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(GUARD) == 0
        return self.process.stdout.read()  # type: ignore[union-attr]


@contextmanager
def running(source: str, folder: Path, prelude: str = PRELUDE) -> Iterator[Program]:
    """Run a program on a free port; the end kills it if it still runs."""
    source, count = re.subn(r"\b9999\b", "0", source)
    assert count == 1, "it has one port"
    (folder / "program.py").write_text(prelude + source)
    with subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "program.py"], cwd=folder, text=True,
                          env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(r"(?:NOTICE:threaded_echo:)?listening on 127\.0\.0\.1:(\d+)\n", line)
            assert found, line + process.stderr.read()
            yield Program(process, ("127.0.0.1", int(found[1])))
        finally:
            process.kill()


def test_every_program_is_tried_here():
    """Those that the tests below run are all that there are."""
    words = ("Shout", 'with ThreadedTCPServer(("127.0.0.1", 0)', "Chat", "count_primes", "basicConfig",
             "threaded_server")
    upgraded = ("SimpleHTTPRequestHandler", "demo_app", "SimpleXMLRPCServer", "prometheus_client", "werkzeug",
                "fakeredis")  # in test_recipes.py
    assert sorted(map(block, words + upgraded)) == sorted(BLOCKS)


def test_the_first_program_answers_and_reports(tmp_path):
    """It serves until Ctrl-C, and prints what the stop did."""
    with running(block("Shout"), tmp_path) as program:
        assert ask(program, b"hello\r\nworld\n") == b"HELLO\nWORLD\n"
        with connect(program) as client:
            client.sendall(b"again\n")
            assert receive(client, 6) == b"AGAIN\n"
            assert re.fullmatch(r"stopped in \d+\.\d{3} s: \d drained, 0 forced, 0 still running\n", program.end())


def test_the_program_in_the_background_runs():
    """It checks the echo itself, and leaves nothing."""
    exec(compile(block('with ThreadedTCPServer(("127.0.0.1", 0)'), "README.rst", "exec"), {"__name__": "__main__"})


def test_the_chat_tells_the_others(tmp_path):
    """What one client says comes to the other under its number, and not back."""
    with running(block("Chat"), tmp_path) as program, connect(program) as first, connect(program) as second:
        second.sendall(b"hello\n")  # accepted after the first one, which is therefore listed when this is processed
        assert receive(first, 9) == b"2: hello\n"
        first.sendall(b"hi\n")
        assert receive(second, 6) == b"1: hi\n"
        program.end()


def test_the_log_of_a_script_has_the_lines_of_the_command(tmp_path):
    """Logging puts the level and the name of the logger ahead of each."""
    with running(block("basicConfig"), tmp_path, prelude="") as program:
        with connect(program) as client:
            port = client.getsockname()[1]
            client.sendall(b"hello\n")
            assert receive(client, 6) == b"hello\n"
            program.end()
        *lines, stopped = program.process.stderr.read().splitlines()
    assert lines == [f"INFO:threaded_echo:client 1 connected from 127.0.0.1:{port}",
                     "INFO:threaded_echo:client 1: hello", "NOTICE:threaded_echo:stopping: 1 client live",
                     "INFO:threaded_echo:client 1 disconnected"]
    assert re.fullmatch(r"NOTICE:threaded_echo:stopped in \d\.\d{3} s: 1 drained, 0 forced, 0 still running", stopped)


def test_events_of_the_log_are_those_of_the_package():
    """Each is named, and none that is not there."""
    section = README.partition("\nLogging and metrics\n")[2].partition("\nWith ``--log-json``")[0]
    named = re.findall(r"``(\w+)``", section.partition("- of a server: ")[2])
    assert sorted(set(named) - {"logs_per_client"}) == sorted(EVENTS)


def test_the_primes_are_counted_in_worker_processes(tmp_path):
    """The script is imported by its workers."""
    with running(block("count_primes"), tmp_path) as program:
        assert ask(program, b"100\n1000\n") == b"25\n168\n"
        program.end()


def test_the_test_passes(pytester):
    """It is a test of a client's, with the pytest plugin."""
    pytester.makepyfile(block("threaded_server"))
    pytester.runpytest_inprocess("-p", "threaded_echo.pytest_plugin", "-W", "error").assert_outcomes(passed=1)


def options_of_the_table() -> dict[str, Any]:
    """Read the names and the defaults from the table of options."""
    rows = re.search(r"^option +default +meaning\n=+ +=+ +=+\n(.*?)^=+ ", README, re.MULTILINE | re.DOTALL)
    assert rows
    return {name: eval(default, {"os": os, "socket": socket})
            for name, default in re.findall(r"^``(\w+)`` +``(.*?)``  ", rows[1], re.MULTILINE)}


def test_table_of_options_is_that_of_the_package():
    """Each option, in the same order, with its default."""
    assert list(options_of_the_table().items()) == [(option.name, option.default) for option in OPTIONS.values()]


@pytest.mark.parametrize("load, title", [("connections", "8 at a time"), ("pingpong", "64 clients, 64 B")])
def test_figures_are_what_the_benchmark_printed(load, title):
    """Those of the first interpreter, with all processors."""
    results = json.loads((CHECKOUT / "tests/benchmarks/results" / f"{load}.json").read_text())
    name = {"pingpong": "ping-pong"}.get(load, load)
    row = re.search(rf"^{name} +(.*)$", README.partition("\nSpeed\n")[2], re.MULTILINE)
    assert row
    peers = ("stock", "threaded_echo", "threaded_echo, one processor", "asyncio streams", "uvloop streams", "gevent")
    medians = {row["peer"]: statistics.median(row["figures"]["per_second"]) for row in results["rows"]
               if row["load"] == f"{title}, servers on all processors"}
    assert row[1].split()[:6] == [f"{medians[peer]:,.0f}" for peer in peers]


def rows_of_members() -> str:
    """Return the rows of the table of members."""
    rows = re.search(r"^member +what it does\n=+ +=+\n(.*?)^=+ ", README, re.MULTILINE | re.DOTALL)
    assert rows
    return rows[1]


def test_table_of_members_is_that_of_the_package():
    """Each that is for programs, beside socketserver's own hooks and attributes."""
    own = {name for cls in ThreadedTCPServer.__mro__ if cls.__module__.startswith("threaded_echo.")
           for name in vars(cls) if not name.startswith("_") and name not in OPTIONS}
    theirs = {*dir(socketserver.ThreadingTCPServer)} - {"serve_forever", "handle_request", "shutdown", "server_close"}
    assert sorted(re.findall(r"^``(\w+)", rows_of_members(), re.MULTILINE)) == sorted(own - theirs)


def test_defaults_in_the_table_of_members_are_right():
    """Each parameter that has a default is told, and no other with one."""
    for name, told in re.findall(r"^``(\w+)\((.*?)\)``", rows_of_members(), re.MULTILINE):
        parameters = inspect.signature(getattr(ThreadedTCPServer, name)).parameters.values()
        defaults = [f"{one.name}={getattr(one.default, 'name', one.default)}" for one in parameters
                    if one.default is not one.empty and name not in ("serve_forever", "from_sockets")]
        assert [word for word in told.split(", ") if "=" in word] == defaults, name


@pytest.mark.parametrize("owner, name", sorted(set(re.findall(r"``(self\.client|self|server)\.(\w+)", README))))
def test_member_that_is_named_exists(serve, owner, name):
    """What the text says of a handler, its client or a server is there."""
    seen = []

    class Handler(ClientHandler):
        """Says whether it has the member."""

        def handle(self):
            """Look."""
            seen.append(hasattr({"self.client": self.client, "self": self, "server": self.server}[owner], name))

    ask(serve(Handler), b"")
    assert seen == [True]


def test_table_of_attacks_has_each_that_is_tested():
    """An attack that is added is told, and one that is told is there."""
    table = README.partition("Hostile and failing clients")[2].partition("\nLimits, and when")[0]
    rows = re.findall(r"^([^=\s].*?)  +\S.*$", table.split("====\n")[-2], re.MULTILINE)
    assert sorted(row for row in rows if "(``" not in row) == sorted(ATTACKS)
    for row in rows:
        for pattern in re.findall(r"``(test_\S+)``", row):
            assert list((CHECKOUT / "tests").rglob(pattern)), row
