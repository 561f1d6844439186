"""The output of the command: escaped, closed early, full, or read by nobody."""
from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from ..tools import GUARD, ask, connect, receive, receive_all
from .commands import Command, command, handlers

FAILS = """
class Fails(ClientHandler):
    def handle(self):
        raise LookupError("x" * 1000)
"""

PRINTS = """
from threaded_echo import EchoHandler

class Prints(EchoHandler):
    def setup(self):
        print("in the buffer")
"""

LOGS = """
logging.config.dictConfig({"version": 1})

class Quiet(LineHandler):
    pass
"""


def test_output_that_is_closed_early_ends_it():
    """A reader that leaves, as `| head -n 1` does, is not an error."""
    with command() as server:
        address = server.address()
        server.output.close()
        with connect(address) as client:
            assert receive_all(client) == b""
        assert server.end() == (0, [], "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_output_that_is_full_ends_it_with_a_failure():
    """Standard error has the system's reason."""
    with open("/dev/full", "wb") as full, command(stdout=full) as server:
        assert server.end() == (1, [], "threaded_echo: stopped by an error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(("message", "shown"), [
    (b"\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
    (b"a\0b\tc\x7fd", r"a\x00b\tc\x7fd"),
    ("\x9b2J \u202e\u2028 caf\u00e9".encode(), r"\x9b2J \u202e\u2028 café"),
    (b"\xff\xfe\xc3(", r"\xff\xfe\xc3("),
])
def test_message_is_shown_escaped_and_echoed_as_it_is(message, shown):
    """Control characters, those that turn text around, and bytes that are not text are escaped."""
    with command() as server:
        assert ask(server.address(), message + b"\n") == message + b"\n"
        server.line()
        assert server.line() == f"client 1: {shown}"
        server.signal()
        status, _, errors = server.end()
    assert (status, errors) == (0, "")


def test_handler_module_that_sets_up_logging_leaves_its_output(tmp_path):
    """By default, `logging.config` disables the loggers that it does not know."""
    with command("--handler", "handlers:Quiet", folder=handlers(tmp_path, LOGS)) as server:
        assert ask(server.address()) == b""
        assert server.lines_to("client 1 disconnected")[0].startswith("client 1 connected from 127.0.0.1:")
        server.signal()
        assert server.end()[0] == 0


def fill(server: Command) -> socket.socket:
    """Be a client until the command has more to print than a pipe holds, and the reader reads nothing."""
    client = connect(server.address())
    for number in range(25):  # each is a thousand lines, of which the pipe and the queue hold some fifteen
        message = b"%d\n" % number * 1000
        client.sendall(message)
        assert receive(client, len(message)) == message
    return client


@pytest.mark.parametrize(("number", "signals"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_output_that_nobody_reads_stops_neither_the_service_nor_the_end(number, signals):
    """The clients are served, and one signal or two end the process, with success."""
    with command("--logs-per-client", "1000000") as server:
        with fill(server) as client, connect(client.getpeername()) as other:
            other.sendall(b"still here?")
            assert receive(other, 11) == b"still here?"
            for _ in range(signals):
                server.signal(number)
            assert receive_all(client) == receive_all(other) == b""
            assert server.process.wait(GUARD) == 0
            lines, errors = server.output.read().splitlines(), server.errors.read()
    assert errors == ""
    assert lines[1:9] == ["client 1: 0"] * 8  # the pipe has kept what it could hold, in order


def test_errors_that_nobody_reads_stop_neither_the_service_nor_the_end(tmp_path):
    """Standard output and standard error may be the same pipe, and a handler may fill it with tracebacks."""
    with command("--handler", "handlers:Fails", folder=handlers(tmp_path, FAILS), stderr=subprocess.STDOUT) as server:
        address = server.address()
        for _ in range(200):
            assert ask(address, b"") == b""
        server.signal()
        server.signal()
        assert server.process.wait(GUARD) == 0


def test_print_of_a_handler_that_nobody_reads_does_not_hold_up_the_end(tmp_path):
    """What is left in the buffer of standard output is given up when the pipe is full."""
    with command("--handler", "handlers:Prints", "--logs-per-client", "1000000",
                 folder=handlers(tmp_path, PRINTS)) as server:
        with fill(server):
            server.signal()
            assert server.process.wait(GUARD) == 0
