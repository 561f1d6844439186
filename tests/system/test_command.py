"""The command as its operator meets it: a process, run from the bare checkout, with signals, pipes and bad clients."""
from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..tools import GUARD, ask, connect, receive, receive_all

CHECKOUT = Path(__file__).parents[2]

STOPPED = r"stopped in \d+\.\d\d\d s: {} drained, {} forced, {} still running"


class Command:
    """A running `python -m threaded_echo`, and what it writes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        # Read by these alone: Popen.communicate would miss what they hold already.
        self.output: Any = process.stdout
        self.errors: Any = process.stderr

    def line(self) -> str:
        """Wait for its next line, and return it; empty at the end."""
        line: str = self.output.readline()
        return line.rstrip("\n")

    def address(self) -> Any:
        """Read where it listens."""
        found = re.fullmatch(r"listening on (?:(127\.0\.0\.1):(\d+)|(.*))", self.line())
        assert found, self.end()
        return found[3] or (found[1], int(found[2]))

    def lines_to(self, last: str) -> list[str]:
        """Read up to a line."""
        lines = [self.line()]
        while lines[-1] != last:
            assert lines[-1], f"{last!r} does not come after {lines}"
            lines.append(self.line())
        return lines

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Wait for its end; return the exit status, the lines that were not read yet, and its standard error."""
        lines = [] if self.output is None or self.output.closed else self.output.read().splitlines()
        errors = self.errors.read()
        return self.process.wait(GUARD), lines, errors


@contextmanager
def command(*arguments: str, folder: Path = CHECKOUT, **keywords: Any) -> Iterator[Command]:
    """Run the command on a free port, where no other place is given; the end kills it if it still runs.

    In another folder than the checkout, it is found by PYTHONPATH. Warnings are errors.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONUNBUFFERED")}
    environment["PYTHONIOENCODING"] = "utf-8"
    if folder != CHECKOUT:
        environment["PYTHONPATH"] = str(CHECKOUT)
    place = () if {"--port", "--unix"}.intersection(arguments) else ("--port", "0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **keywords}
    with subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-m", "threaded_echo", *place, *arguments],
                          cwd=folder, env=environment, encoding="utf-8", **pipes) as process:
        try:
            yield Command(process)
        finally:
            process.kill()


def handlers(folder: Path, source: str) -> Path:
    """Write the module `handlers` into a folder."""
    (folder / "handlers.py").write_text("import concurrent.futures, logging.config, threading\n"
                                        "from threaded_echo import ClientHandler, LineHandler\n" + source)
    return folder


BUG = """
class Divide(LineHandler):
    def process(self, line):
        return str(100 // int(line)).encode()
"""

ENDLESS = """
class Silent(ClientHandler):
    def handle(self):
        self.send(b"!")
        while True:
            threading.Event().wait()

class Loud(ClientHandler):
    def handle(self):
        self.send(b"!")
        while True:
            print("still here" * 100)

class Pool(ClientHandler):
    def handle(self):
        future = concurrent.futures.ThreadPoolExecutor(1).submit(threading.Event().wait)
        self.send(b"!")
        future.result()
"""

FORKS = """
import os, signal, socket, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # what it says of threads and os.fork is known here

class Forks(ClientHandler):
    def handle(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                child = os.fork()
                if not child:
                    ours.close()
                    theirs.send(b"!")
                    theirs.recv(1)
                    os._exit(7)
                theirs.close()
                ours.recv(1)
                os.kill(child, number)
            self.send(b"%d " % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

LOGS = """
logging.config.dictConfig({"version": 1})

class Quiet(LineHandler):
    pass
"""


# Its end, and its exit status.

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_it_with_success(number):
    """Every client is ended: one that has spoken, one that never did."""
    with command() as server:
        address = server.address()
        with connect(address) as speaks, connect(address) as says_nothing:
            speaks.sendall(b"hello\n")
            assert receive(speaks, 6) == b"hello\n"
            for _ in range(3):
                server.line()
            server.signal(number)
            assert receive_all(speaks) == receive_all(says_nothing) == b""
        status, lines, errors = server.end()
    assert (status, errors) == (0, "")
    assert lines[0] == "stopping: 2 clients live"
    assert sorted(lines[1:3]) == ["client 1 disconnected", "client 2 disconnected"]
    assert re.fullmatch(STOPPED.format(2, 0, 0), lines[3])
    assert len(lines) == 4


def test_end_of_its_duration_is_success():
    """Without a signal."""
    with command("--duration", "0") as server:
        server.address()
        status, lines, errors = server.end()
    assert (status, len(lines), errors) == (0, 2, "")


def test_port_that_is_taken_is_a_failure():
    """One line says so, and the other server is not disturbed."""
    with command() as first:
        host, port = first.address()
        with command("--port", str(port)) as second:
            assert second.end() == (1, [], f"threaded_echo: cannot listen on {host}:{port}: Address already in use\n")
        assert ask((host, port)) == b"ping\n"


def test_handler_that_cannot_be_imported_is_a_failure(tmp_path):
    """One line says so: no traceback, no listening."""
    with command("--handler", "handlers:Missing", folder=handlers(tmp_path, "")) as server:
        assert server.end() == (1, [], "threaded_echo: module 'handlers' has no 'Missing'\n")


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--handler", "Missing"), ("--unknown",)])
def test_wrong_usage_is_told_with_its_own_status(arguments):
    """With the usage, on standard error."""
    with command(*arguments) as server:
        status, lines, errors = server.end()
    assert (status, lines) == (2, [])
    assert errors.startswith("usage: threaded_echo ")
    assert f"threaded_echo: error: {'unrecognized arguments: ' if arguments == ('--unknown',) else 'argument '}" \
           f"{arguments[0]}" in errors


@pytest.mark.parametrize("name", ["Silent", "Loud", "Pool"])
def test_handler_that_never_ends_is_told_with_its_own_status(name, tmp_path):
    """The process ends all the same: also under a handler that prints without end, or waits for a thread of its own."""
    with command("--handler", f"handlers:{name}", "--drain-timeout", "0", "--force-timeout", "0",
                 folder=handlers(tmp_path, ENDLESS)) as server:
        with connect(server.address()) as client:
            assert receive(client, 1) == b"!"
            server.signal()
            status, lines, errors = server.end()
    assert status == 3
    assert any(re.search(STOPPED.format(0, 0, 1), line) for line in lines)
    assert errors.startswith("threaded_echo: still running after the stop: \nclient 1 (('127.0.0.1', ")
    assert f"{tmp_path / 'handlers.py'}" in errors


def test_second_signal_does_not_wait_for_a_handler_that_never_ends(tmp_path):
    """However long the first would."""
    with command("--handler", "handlers:Silent", "--drain-timeout", "100000", "--force-timeout", "0",
                 folder=handlers(tmp_path, ENDLESS)) as server:
        with connect(server.address()) as client:
            assert receive(client, 1) == b"!"
            server.signal()
            server.lines_to("stopping: 1 client live")
            server.signal()
            status, lines, errors = server.end()
    assert status == 3
    assert re.fullmatch(STOPPED.format(0, 0, 1), lines[-1])
    assert errors.count("threaded_echo: still running after the stop") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_signals_of_a_forked_process_are_not_the_servers(tmp_path):
    """What a handler has forked outlives a terminal's key, and can be terminated; neither stops the server."""
    with command("--handler", "handlers:Forks", folder=handlers(tmp_path, FORKS)) as server:
        address = server.address()
        for number in (1, 2):
            assert ask(address, b"") == b"7 -15 "
            assert len(server.lines_to(f"client {number} disconnected")) == 2
        server.signal()
        status, lines, errors = server.end()
    assert (status, errors) == (0, "")
    assert lines[0] == "stopping: 0 clients live"


# Its output.

def test_output_that_is_closed_early_ends_it():
    """As `| head -n 1` does: no error, no traceback, and success."""
    with command() as server:
        address = server.address()
        server.output.close()
        with connect(address) as client:
            assert receive_all(client) == b""
        assert server.end() == (0, [], "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_output_that_is_full_ends_it_with_a_failure():
    """And the reason."""
    with open("/dev/full", "wb") as full, command(stdout=full) as server:
        assert server.end() == (1, [], "threaded_echo: stopped by an error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(("message", "shown"), [
    (b"\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
    (b"a\0b\tc\x7fd", r"a\x00b\tc\x7fd"),
    ("\x9b2J \u202e\u2028 caf\u00e9".encode(), r"\x9b2J \u202e\u2028 café"),
    (b"\xff\xfe\xc3(", r"\xff\xfe\xc3("),
])
def test_message_is_shown_escaped_and_echoed_as_it_is(message, shown):
    """Control characters, those that turn text around, and bytes that are not text."""
    with command() as server:
        assert ask(server.address(), message + b"\n") == message + b"\n"
        server.line()
        assert server.line() == f"client 1: {shown}"
        server.signal()
        status, _, errors = server.end()
    assert (status, errors) == (0, "")


def test_handler_module_that_sets_up_logging_leaves_its_output(tmp_path):
    """`logging.config` disables the loggers that it does not know, by default."""
    with command("--handler", "handlers:Quiet", folder=handlers(tmp_path, LOGS)) as server:
        assert ask(server.address()) == b""
        assert server.lines_to("client 1 disconnected")[0].startswith("client 1 connected from 127.0.0.1:")
        server.signal()
        assert server.end()[0] == 0


# Its clients.

def test_handler_with_a_bug_costs_its_client_only(tmp_path):
    """The traceback is on standard error, under the client's number; the others are served, before and after."""
    with command("--handler", "handlers:Divide", folder=handlers(tmp_path, BUG)) as server:
        address = server.address()
        with connect(address) as other:
            other.sendall(b"10\n")
            assert receive(other, 3) == b"10\n"
            assert ask(address, b"0\n") == b""
            other.sendall(b"20\n")
            assert receive(other, 2) == b"5\n"
            assert ask(address, b"50\n") == b"2\n"
        server.lines_to("client 1 disconnected")
        server.signal()
        status, _, errors = server.end()
    assert status == 0
    assert errors.startswith("threaded_echo: client 2: its handler has failed\nTraceback (most recent call last):\n")
    assert f"{tmp_path / 'handlers.py'}" in errors
    assert errors.rstrip().endswith("ZeroDivisionError: integer division or modulo by zero")
    assert errors.count("Traceback") == 1


def test_clients_that_reset_at_once_are_noticed_by_nobody():
    """Whether they are gone before they are accepted, or after."""
    with command() as server:
        address = server.address()
        with connect(address) as other:
            for _ in range(20):
                client = connect(address)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            other.sendall(b"still here\n")
            assert receive(other, 11) == b"still here\n"
        assert ask(address) == b"ping\n"
        server.signal()
        status, lines, errors = server.end()
    assert (status, errors) == (0, "")
    assert "client 1: still here" in lines
    assert any(re.fullmatch(r"client \d+: ping", line) for line in lines)
    assert sum(line.endswith("disconnected") for line in lines) == sum("connected from" in line for line in lines) >= 2


def test_unix_socket_of_a_killed_server_is_taken_over(tmp_path, monkeypatch):
    """What a SIGKILL leaves behind keeps no successor from its place, and that one clears it away."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        with command("--unix", "socket", folder=tmp_path) as server:
            assert ask(server.address()) == b"ping\n"
            server.signal(number)
            assert server.end()[0] == status
        assert os.path.exists("socket") == (number is signal.SIGKILL)
