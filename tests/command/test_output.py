"""What the command prints: the lines of the contract, escaped; and an output that fails."""
from __future__ import annotations

import errno
import io
import logging
import re
import signal
import socketserver
from contextlib import ExitStack, redirect_stdout

import pytest

from threaded_echo import LineHandler
from threaded_echo.command import run as cli

from ..tools import ask, connect, receive, receive_all
from .operating import STOPPED, port_of, reset, run, run_until


def test_session_prints_the_lines_of_the_contract(capsys):
    """It prints where it listens, who comes, says what and goes, and what the stop did."""
    ports: list[int] = []

    def script(operator):
        """Say hello and leave; then two come and stay."""
        address = operator.address()
        with connect(address) as client:
            ports.append(port_of(client))
            client.sendall(b"hello\n")
            assert receive(client, 6) == b"hello\n"
        while not operator.line().endswith("disconnected"):
            pass
        with ExitStack() as stack:
            clients = []
            for _ in range(2):
                clients.append(stack.enter_context(connect(address)))
                operator.line()
            ports.extend(map(port_of, clients))
            operator.interrupt()
            assert [receive_all(client) for client in clients] == [b"", b""]

    status, lines = run(["--port", "0"], script)
    assert status == cli.OK
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+", lines[0])
    assert lines[1:7] == [
        f"client 1 connected from 127.0.0.1:{ports[0]}",
        "client 1: hello",
        "client 1 disconnected",
        f"client 2 connected from 127.0.0.1:{ports[1]}",
        f"client 3 connected from 127.0.0.1:{ports[2]}",
        "stopping: 2 clients live",
    ]
    assert sorted(lines[7:9]) == ["client 2 disconnected", "client 3 disconnected"]
    assert re.fullmatch(STOPPED.format(2, 0, 0), lines[9])
    assert len(lines) == 10
    assert capsys.readouterr().err == ""


def test_one_client_live_is_singular():
    """One client is not "1 clients"."""
    def script(operator):
        """Stop with one client connected."""
        with connect(operator.address()):
            operator.line()
            operator.interrupt()
            while operator.line():
                pass

    _, lines = run(["--port", "0"], script)
    assert lines[2:4] == ["stopping: 1 client live", "client 1 disconnected"]


def test_quiet_tells_of_the_start_and_the_stop_only():
    """Clients and their messages are not printed, and are served all the same."""
    def script(operator):
        """Be a client."""
        assert ask(operator.address(), b"hello\n") == b"hello\n"
        operator.interrupt()

    status, lines = run(["--port", "0", "--quiet"], script)
    assert status == cli.OK
    assert [line.split()[0] for line in lines] == ["listening", "stopping:", "stopped"]


@pytest.mark.parametrize(("arguments", "told"), [([], []), (["--verbose"], ["client 1 went away"])])
def test_client_that_resets_is_told_of_where_wanted(arguments, told, capsys):
    """A connection that breaks is not an error: only --verbose prints it."""
    def script(operator):
        """Come, and go without a word."""
        client = connect(operator.address())
        operator.line()
        reset(client)
        while not operator.line().endswith("disconnected"):
            pass
        operator.interrupt()

    status, lines = run(["--port", "0", *arguments], script)
    assert status == cli.OK
    assert [line.partition(":")[0] for line in lines[2:-3]] == told
    assert lines[-3] == "client 1 disconnected"
    assert capsys.readouterr().err == ""


def test_message_is_escaped_so_that_it_drives_no_terminal():
    """Control characters, and bytes that are not text, are printed escaped."""
    def script(operator):
        """Send an escape sequence."""
        message = b"\x1b[2J\x07\xff caf\xc3\xa9\n"
        assert ask(operator.address(), message) == message
        operator.interrupt()

    _, lines = run(["--port", "0"], script)
    assert lines[2] == r"client 1: \x1b[2J\x07\xff café"


def test_output_that_lacks_a_character_shows_it_escaped(capsys):
    """A terminal that knows ASCII only gets the other characters escaped."""
    def script(operator):
        """Send what is not ASCII."""
        ask(operator.address(), "café\n".encode())
        operator.interrupt()

    _, lines = run(["--port", "0"], script, encoding="ascii")
    assert lines[2] == r"client 1: caf\xe9"
    assert capsys.readouterr().err == ""


def test_error_of_a_handler_is_told_on_standard_error_and_escaped(named, capsys):
    """The traceback has the client's number, and what the client sent in it is escaped."""
    class Buggy(LineHandler):
        """Fails on each line."""

        def process(self, line):
            """Fail."""
            raise ValueError(line.decode())

    def script(operator):
        """Send an escape sequence; the next client is served all the same."""
        address = operator.address()
        assert ask(address, b"\x1b[2J\n") == b""
        assert ask(address, b"") == b""
        operator.interrupt()

    status, lines = run(["--port", "0", "--handler", named(Buggy)], script)
    assert status == cli.OK
    assert "client 2 disconnected" in lines
    error = capsys.readouterr().err
    assert error.startswith("threaded_echo: client 1: its handler has failed\nTraceback (most recent call last):\n")
    assert error.endswith("ValueError: \\x1b[2J\n")


def test_log_message_that_cannot_be_formatted_stops_nothing(named, capsys):
    """A handler's own mistake with the package's logger is reported as logging does it."""
    class Mistaken(socketserver.BaseRequestHandler):
        """Logs a text where a number was announced."""

        def handle(self):
            """Log it, and reply."""
            logging.getLogger("threaded_echo").info("%d", "text")
            self.request.sendall(b"done")

    def script(operator):
        """Two clients are served."""
        address = operator.address()
        assert [ask(address, b""), ask(address, b"")] == [b"done", b"done"]
        operator.interrupt()

    assert run(["--port", "0", "--handler", named(Mistaken)], script)[0] == cli.OK
    assert "--- Logging error ---" in capsys.readouterr().err


def test_logger_that_was_disabled_speaks_and_is_disabled_again(monkeypatch):
    """`logging.config` disables loggers that it does not know."""
    logger = logging.getLogger("threaded_echo")
    monkeypatch.setattr(logger, "disabled", True)
    assert len(run_until(signal.SIGINT)[1]) == 3
    assert logger.disabled


def test_output_that_nobody_reads_any_more_stops_the_server(capsys):
    """If the reader is gone, as in a pipe to `head`, the command ends without an error."""
    def script(operator):
        """Read a line, and no more; then there is something to tell."""
        address = operator.address()
        operator.output.close()
        with connect(address) as client:
            assert receive_all(client) == b""

    status, lines = run(["--port", "0"], script)
    assert (status, len(lines)) == (cli.OK, 1)
    assert capsys.readouterr().err == ""


def test_output_that_takes_no_more_stops_the_server_with_an_error(capsys):
    """On a disk that is full, the command fails, and standard error has the reason."""
    error = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.StringIO):
        """Takes nothing."""

        def write(self, text):
            """Fail."""
            raise error

    with redirect_stdout(Full()):
        assert cli.main(["--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == f"threaded_echo: stopped by an error: {error}\n"
