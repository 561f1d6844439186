"""The command line: its arguments, its output, its signals, its exit status; all of it in this process."""
from __future__ import annotations

import errno
import importlib
import io
import logging
import multiprocessing
import os
import re
import runpy
import signal
import socket
import socketserver
import struct
import sys
import threading
import types
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout, suppress
from typing import Any, TextIO

import pytest

from threaded_echo import ClientHandler, EchoHandler, LineHandler, ThreadedTCPServer, __main__, cli
from threaded_echo.serving import Background

from . import calls
from .tools import GUARD, Gate, ask, connect, receive, receive_all, running, wait_until

STOPPED = r"stopped in \d+\.\d\d\d s: {} drained, {} forced, {} still running"

HAS_IPV6 = False
with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
    probe.bind(("::1", 0))
    HAS_IPV6 = True


class Operator:
    """Who runs the command, in a thread of its own: reads its standard output, line by line, and sends signals."""

    def __init__(self, output: TextIO) -> None:
        self.output = output
        self.lines: list[str] = []
        self.error: BaseException | None = None

    def line(self) -> str:
        """Wait for the next line, and return it; empty at the end."""
        line = self.output.readline().rstrip("\n")
        if line:
            self.lines.append(line)
        return line

    def address(self) -> Any:
        """Read where it listens."""
        found = re.fullmatch(r"listening on (?:\[?([\da-f.:]+?)\]?:(\d+)|(.*))", self.line())
        assert found, self.lines
        return found[3] or (found[1], int(found[2]))

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal to the process."""
        os.kill(os.getpid(), number)

    def operate(self, script: Callable[[Operator], object]) -> None:
        """Run the script of a test; where it fails, end the command."""
        try:
            script(self)
        except BaseException as error:
            self.error = error
            self.interrupt()


@pytest.fixture(autouse=True)
def ignored_signals():
    """Let signals that come late do nothing; and check that the command gives them back."""

    def ignore(number, frame):
        """Do nothing."""

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ignore) for number in numbers]
    yield
    after = [signal.signal(number, handler) for number, handler in zip(numbers, before, strict=True)]
    assert after == [ignore, ignore]


@pytest.fixture(autouse=True)
def logger_is_left_alone():
    """Check that the command leaves the package's logger as it was."""
    def state():
        return logger.level, logger.propagate, logger.disabled, logger.handlers[:]

    logger = logging.getLogger("threaded_echo")
    before = state()
    yield
    assert state() == before


def run(arguments: list[str], script: Callable[[Operator], object] = lambda operator: None,
        encoding: str = "utf-8") -> tuple[int, list[str]]:
    """Run the command in this thread and an operator's script in another; return the status and all the lines."""
    receiving, sending = os.pipe()
    with open(receiving, encoding=encoding) as output:
        operator = Operator(output)
        with (running(operator.operate, script), open(sending, "w", encoding=encoding) as stdout,
              redirect_stdout(stdout)):
            status = cli.main(arguments)
        if operator.error is not None:
            raise operator.error
        while not output.closed and operator.line():
            pass
    return status, operator.lines


def run_until(number: signal.Signals, *arguments: str) -> tuple[int, list[str]]:
    """Run the command on a free port until a signal, which comes at once."""
    def script(operator: Operator) -> None:
        """Wait until it listens."""
        operator.address()
        operator.interrupt(number)

    return run(["--port", "0", *arguments], script)


def port_of(client: socket.socket) -> int:
    """Tell the port that a client calls from."""
    return int(client.getsockname()[1])


def reset(client: socket.socket) -> None:
    """Close a connection with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.fixture
def named(monkeypatch) -> Callable[[type], str]:
    """Make a handler class importable; returns its MODULE:CLASS."""
    def name(handler: type) -> str:
        module = types.ModuleType("its_handlers")
        vars(module)["Handler"] = handler
        monkeypatch.setitem(sys.modules, "its_handlers", module)
        return "its_handlers:Handler"

    return name


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Be in a folder of its own, where its modules are imported from, and forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    modules = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


class Blocked(socketserver.BaseRequestHandler):
    """Sends for ever to a client that reads nothing: only cutting the connection ends it."""

    def handle(self) -> None:
        """Send."""
        while True:
            self.request.sendall(bytes(1 << 20))


# What it prints.

def test_session_prints_the_lines_of_the_contract(capsys):
    """Where it listens, who comes, says what and goes, and what the stop did."""
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
    """Not "1 clients"."""
    def script(operator):
        """Stop with one client connected."""
        with connect(operator.address()):
            operator.line()
            operator.interrupt()
            while operator.line():
                pass

    _, lines = run(["--port", "0"], script)
    assert lines[2:4] == ["stopping: 1 client live", "client 1 disconnected"]


class Where(ClientHandler):
    """Tells in which process its work is done."""

    def process(self, data):
        """Reply with it."""
        return b"%d" % self.offload(os.getpid)


def test_workers_compute_for_the_handler(named):
    """What it offloads runs in another process, and they are gone at the end."""
    def script(operator):
        """Ask for a worker's process."""
        assert int(ask(operator.address(), b"x")) != os.getpid()
        operator.interrupt()

    status, _ = run(["--port", "0", "--workers", "2", "--handler", named(Where)], script)
    assert status == cli.OK
    assert not multiprocessing.active_children()


def test_workers_that_cannot_start_are_an_exit_status(monkeypatch, capsys):
    """With one line that says why."""
    monkeypatch.setattr("threaded_echo.workers.work", calls.end_as_it_starts)
    assert cli.main(["--port", "0", "--workers", "1"]) == cli.FAILED
    assert capsys.readouterr().err.startswith("threaded_echo: cannot serve: a worker process has ended as it starte")


def test_quiet_tells_of_the_start_and_the_stop_only():
    """Clients and their messages are not told of, and are served all the same."""
    def script(operator):
        """Be a client."""
        assert ask(operator.address(), b"hello\n") == b"hello\n"
        operator.interrupt()

    status, lines = run(["--port", "0", "--quiet"], script)
    assert status == cli.OK
    assert [line.split()[0] for line in lines] == ["listening", "stopping:", "stopped"]


@pytest.mark.parametrize(("arguments", "told"), [([], []), (["--verbose"], ["client 1 went away"])])
def test_client_that_resets_is_told_of_where_wanted(arguments, told, capsys):
    """A connection that breaks is no error: only --verbose tells of it."""
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
    """Control characters, and what is no text at all."""
    def script(operator):
        """Send an escape sequence."""
        message = b"\x1b[2J\x07\xff caf\xc3\xa9\n"
        assert ask(operator.address(), message) == message
        operator.interrupt()

    _, lines = run(["--port", "0"], script)
    assert lines[2] == r"client 1: \x1b[2J\x07\xff café"


def test_output_that_lacks_a_character_shows_it_escaped(capsys):
    """An operator's terminal may know ASCII only."""
    def script(operator):
        """Send what is not ASCII."""
        ask(operator.address(), "café\n".encode())
        operator.interrupt()

    _, lines = run(["--port", "0"], script, encoding="ascii")
    assert lines[2] == r"client 1: caf\xe9"
    assert capsys.readouterr().err == ""


def test_error_of_a_handler_is_told_on_standard_error_and_escaped(named, capsys):
    """With the client's number and the lines of the traceback; what the client sent cannot drive the terminal."""
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
    """A handler's own mistake with the package's logger is told as logging does."""
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
    """What `logging.config` does to loggers that it does not know."""
    logger = logging.getLogger("threaded_echo")
    monkeypatch.setattr(logger, "disabled", True)
    assert len(run_until(signal.SIGINT)[1]) == 3
    assert logger.disabled


def test_output_that_nobody_reads_any_more_stops_the_server(capsys):
    """As in a pipe to `head`: it ends without an error."""
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
    """As on a disk that is full: a failure, and its reason on standard error."""
    error = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.StringIO):
        """Takes nothing."""

        def write(self, text):
            """Fail."""
            raise error

    with redirect_stdout(Full()):
        assert cli.main(["--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == f"threaded_echo: stopped by an error: {error}\n"


# What ends it.

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_it(number):
    """Either of the two."""
    status, lines = run_until(number)
    assert status == cli.OK
    assert [line.split()[0] for line in lines] == ["listening", "stopping:", "stopped"]


def test_end_of_the_duration_stops_it():
    """Without a signal."""
    status, lines = run(["--port", "0", "--duration", "0"])
    assert status == cli.OK
    assert lines[1] == "stopping: 0 clients live"
    assert re.fullmatch(STOPPED.format(0, 0, 0), lines[2])


def test_longest_duration_can_be_waited():
    """What the check of the argument lets through is no error later."""
    assert run_until(signal.SIGINT, "--duration", str(int(threading.TIMEOUT_MAX)))[0] == cli.OK


def test_handler_that_stops_the_server_ends_the_command(named):
    """A server that serves no more is nothing to wait for."""
    class Stopper(LineHandler):
        """Stops its server."""

        def process(self, line):
            """Stop."""
            self.server.shutdown()
            return b"stopped"

    def script(operator):
        """Ask for it."""
        assert ask(operator.address(), b"stop\n") == b"stopped\n"

    status, lines = run(["--port", "0", "--handler", named(Stopper)], script)
    assert status == cli.OK
    assert any(line.startswith("stopping:") for line in lines)
    assert lines[-1].startswith("stopped in")


def test_second_signal_cuts_the_connections(named):
    """What would have been waited for, is not."""
    def script(operator):
        """Stop, and do not wait."""
        with connect(operator.address()) as client:
            assert receive(client, 1) == b"\0"
            operator.line()
            operator.interrupt()
            assert operator.line() == "stopping: 1 client live"
            operator.interrupt(signal.SIGTERM)
            while operator.line():
                pass

    arguments = ["--port", "0", "--drain-timeout", "300", "--handler", named(Blocked)]
    status, lines = run(arguments, script)
    assert status == cli.OK
    assert re.fullmatch(STOPPED.format(0, 1, 0), lines[-1])


def test_events_other_than_signals_do_not_hasten_the_stop(named):
    """Output that breaks while a handler finishes its work costs nothing of that."""
    gate = Gate(lambda handler: handler.request.sendall(b"the answer"))

    def script(operator):
        """Stop reading in the middle of the stop."""
        with connect(operator.address()) as client:
            wait_until(gate.entered)
            operator.line()
            operator.interrupt()
            operator.line()
            operator.output.close()
            gate.release.set()
            assert receive_all(client) == b"the answer"

    assert run(["--port", "0", "--drain-timeout", "300", "--handler", named(gate.handler)], script)[0] == cli.OK


@pytest.fixture
def take_user_signal():
    """Set a handler for a signal that the command leaves alone."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, lambda number, frame: handler())
    signal.signal(signal.SIGUSR1, before)


def test_signal_that_is_not_its_own_stops_nothing(take_user_signal):
    """A handler's module may take others."""
    taken = threading.Event()
    take_user_signal(taken.set)

    def script(operator):
        """Send one, and be served."""
        address = operator.address()
        operator.interrupt(signal.SIGUSR1)
        wait_until(taken)
        assert ask(address, b"hello\n") == b"hello\n"
        operator.interrupt()

    status, lines = run(["--port", "0"], script)
    assert status == cli.OK
    assert lines[1].startswith("client 1 connected")


def test_signal_handler_that_raises_stops_it(take_user_signal):
    """Its exception is the caller's, once everything has ended."""
    def fail():
        """Raise."""
        raise LookupError("by a signal")

    def script(operator):
        """Send the signal, and see a client end."""
        with connect(operator.address()) as client:
            operator.line()
            operator.interrupt(signal.SIGUSR1)
            assert receive_all(client) == b""

    take_user_signal(fail)
    with pytest.raises(LookupError, match="by a signal"):
        run(["--port", "0"], script)


def test_survivor_is_an_exit_status(named, capsys):
    """The handler that is still running is named on standard error, with its lines."""
    gate = Gate()
    before = threading.enumerate()

    def script(operator):
        """Stop with a handler that does not end."""
        with connect(operator.address()):
            wait_until(gate.entered)
            operator.line()
            operator.interrupt()
            while operator.line():
                pass

    status, lines = run(["--port", "0", "--drain-timeout", "0", "--force-timeout", "0", "--handler",
                         named(gate.handler)], script)
    assert status == cli.SURVIVORS == 3
    assert re.fullmatch(STOPPED.format(0, 0, 1), lines[-1])
    error = capsys.readouterr().err
    assert error.startswith("threaded_echo: still running after the stop: \nclient 1 (")
    assert "wait_until(gate.release)" in error
    left = set(threading.enumerate()).difference(before)
    gate.release.set()
    for thread in left:
        thread.join(GUARD)


def test_serving_loop_that_fails_is_an_exit_status(monkeypatch, capsys):
    """It is told, and what is live is stopped."""
    hook: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", hook.append)

    def fail(server):
        """Fail to accept."""
        raise OSError(errno.EBADMSG, "an error of accept")

    def script(operator):
        """Come to a server that serves; the second client meets one that fails."""
        address = operator.address()
        with connect(address) as client:
            operator.line()
            monkeypatch.setattr(ThreadedTCPServer, "get_request", fail)
            with suppress(ConnectionError), connect(address):  # it may be cut as soon as it is there
                pass
            assert receive_all(client) == b""

    status, lines = run(["--port", "0"], script)
    assert status == cli.FAILED == 1
    assert lines[2] == "stopping: 1 client live"
    assert re.fullmatch(STOPPED.format(1, 0, 0), lines[-1])
    error = f"[Errno {errno.EBADMSG}] an error of accept"
    assert capsys.readouterr().err.splitlines() == [
        f"threaded_echo: accepting clients has failed, the serving loop ends: {error}",
        f"threaded_echo: stopped by an error: {error}"]
    assert [str(told.exc_value) for told in hook] == [error]
    hook.clear()


@pytest.mark.parametrize("thread_class", [threading.Thread, Background])
def test_server_without_threads_is_told(thread_class, monkeypatch, capsys):
    """Whichever cannot start, nothing is left open."""
    def fail(thread):
        """Fail to start."""
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread_class, "start", fail)
    assert cli.main(["--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == "threaded_echo: cannot serve: can't start new thread\n"


def test_server_without_descriptors_is_told(monkeypatch, capsys):
    """In one line, too."""
    def fail():
        """Open nothing."""
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", fail)
    assert cli.main(["--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == f"threaded_echo: cannot serve: [Errno {errno.EMFILE}] Too many open files\n"


def test_thread_that_is_not_the_main_one_runs_it_without_signals():
    """A program may run it in any thread, until its duration is over."""
    results: list[int] = []
    output = io.StringIO()
    with redirect_stdout(output):
        with running(lambda: results.append(cli.main(["--port", "0", "--duration", "0"]))):
            pass
    assert results == [cli.OK]
    assert output.getvalue().startswith("listening on 127.0.0.1:")


# Where it listens.

@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
def test_ipv6_address_is_shown_in_brackets():
    """As in a URL, so that the port can be told from the rest."""
    ports: list[int] = []

    def script(operator):
        """Come by IPv6."""
        with socket.create_connection(operator.address()) as client:
            ports.append(port_of(client))
            operator.line()
        operator.interrupt()

    status, lines = run(["--port", "0", "--host", "::1"], script)
    assert status == cli.OK
    assert re.fullmatch(r"listening on \[::1\]:\d+", lines[0])
    assert lines[1] == f"client 1 connected from [::1]:{ports[0]}"


def test_port_that_is_taken_is_told(capsys):
    """In one line; nothing goes to standard output."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = port_of(other)
        assert run(["--port", str(port)]) == (cli.FAILED, [])
    reason = os.strerror(errno.EADDRINUSE)
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on 127.0.0.1:{port}: {reason}\n"


def test_port_that_is_not_ours_to_bind_is_told(capsys, monkeypatch):
    """As the first 1024 are, mostly."""
    def refuse(server):
        """Refuse, as the kernel does."""
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socketserver.TCPServer, "server_bind", refuse)
    assert run(["--port", "80"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == "threaded_echo: cannot listen on 127.0.0.1:80: Permission denied\n"


def test_address_that_is_not_ours_is_told(capsys):
    """One that is reserved for documentation."""
    assert run(["--host", "192.0.2.1", "--port", "0"]) == (cli.FAILED, [])
    reason = os.strerror(errno.EADDRNOTAVAIL)
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on 192.0.2.1:0: {reason}\n"


def test_host_that_is_unknown_is_told(capsys, monkeypatch):
    """With what the resolver says."""
    def fail(*arguments, **keywords):
        """Know nothing."""
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert run(["--host", "nowhere", "--port", "1"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == "threaded_echo: cannot listen on nowhere:1: Name or service not known\n"


def test_host_that_cannot_be_a_name_is_told(capsys):
    """One that the resolver does not even get to see."""
    assert run(["--host", "two..dots", "--port", "1"]) == (cli.FAILED, [])
    assert capsys.readouterr().err.startswith("threaded_echo: cannot listen on two..dots:1: ")


# Unix sockets: in the current folder, since their paths must be short.

def run_on_path(path: str) -> tuple[int, list[str]]:
    """Run the command on a Unix socket, and be one client."""
    def script(operator):
        """Say hello."""
        assert ask(operator.address(), b"hello\n") == b"hello\n"
        operator.interrupt()

    return run(["--unix", path], script)


def test_unix_socket_is_served_and_removed_at_the_end(folder):
    """Its clients have no address to show."""
    status, lines = run_on_path("here")
    assert status == cli.OK
    assert lines[:3] == ["listening on here", "client 1 connected", "client 1: hello"]
    assert "client 1 disconnected" in lines[3:-1]
    assert os.listdir() == []


def test_unix_socket_of_a_server_that_was_killed_is_replaced(folder):
    """Nobody listens on it any more."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("here")
        stale.listen()
    assert run_on_path("here")[0] == cli.OK
    assert os.listdir() == []


def test_unix_socket_of_a_live_server_is_left_alone(folder, capsys):
    """It goes on accepting."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("here")
        other.listen()
        assert run(["--unix", "here"]) == (cli.FAILED, [])
        assert capsys.readouterr().err == f"threaded_echo: cannot listen on here: {os.strerror(errno.EADDRINUSE)}\n"
        with connect("here"):
            for _ in range(2):  # the command's own look at it was the first
                other.accept()[0].close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
def test_unix_socket_whose_queue_is_full_is_left_alone(folder):
    """And looking at it does not wait for its server."""
    with socket.socket(socket.AF_UNIX) as other, ExitStack() as stack:
        other.bind("here")
        other.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect("here")
        assert run(["--unix", "here"]) == (cli.FAILED, [])
        assert os.listdir() == ["here"]


def test_file_that_is_no_socket_is_left_alone(folder):
    """Whatever it is."""
    (folder / "here").write_text("precious")
    assert run(["--unix", "here"]) == (cli.FAILED, [])
    assert (folder / "here").read_text() == "precious"


def test_unix_socket_that_another_has_replaced_is_not_removed(folder):
    """At the end, the path is somebody else's."""
    with socket.socket(socket.AF_UNIX) as other:
        def script(operator):
            """Take the path."""
            operator.address()
            os.unlink("here")
            other.bind("here")
            other.listen()
            operator.interrupt()

        assert run(["--unix", "here"], script)[0] == cli.OK
        assert os.listdir() == ["here"]


def test_unix_path_that_is_too_long_is_told(folder, capsys):
    """The limit is about a hundred bytes."""
    assert run(["--unix", "a" * 300]) == (cli.FAILED, [])
    assert "AF_UNIX path too long" in capsys.readouterr().err


# Which handler it serves with.

def test_handler_from_the_current_folder_serves(folder):
    """A module beside which the command is run, and a class within a class."""
    (folder / "their_shout.py").write_text(
        "import threaded_echo\n"
        "class Outer:\n"
        "    class Shout(threaded_echo.LineHandler):\n"
        "        def process(self, line):\n"
        "            return line.upper()\n")

    def script(operator):
        """Whisper."""
        assert ask(operator.address(), b"hello\n") == b"HELLO\n"
        operator.interrupt()

    assert run(["--port", "0", "--handler", "their_shout:Outer.Shout"], script)[0] == cli.OK


def test_handler_is_found_where_the_folder_is_listed_already(folder, monkeypatch):
    """As it is for `python -m`: it is not listed twice."""
    monkeypatch.syspath_prepend(os.getcwd())
    path = sys.path[:]
    assert cli.load_handler("threaded_echo:EchoHandler") is EchoHandler
    assert sys.path == path


@pytest.mark.parametrize(("source", "name", "reason"), [
    (None, "theirs_not:H", "cannot import the handler's module 'theirs_not': "
                           "ModuleNotFoundError: No module named 'theirs_not'"),
    ("1 / 0", "theirs:H", "cannot import the handler's module 'theirs': ZeroDivisionError: division by zero"),
    ("raise SystemExit(0)", "theirs:H", "cannot import the handler's module 'theirs': SystemExit: 0"),
    ("raise ValueError('two\\nlines')", "theirs:H", "cannot import the handler's module 'theirs': "
                                                    "ValueError: two lines"),
    ("", "theirs:H", "module 'theirs' has no 'H'"),
    ("class H: pass", "theirs:H.Inner", "module 'theirs' has no 'H.Inner'"),
    ("class H: pass", "theirs:H",
     "'theirs:H' is not a handler: a subclass of socketserver.BaseRequestHandler is needed"),
    ("def h(): pass", "theirs:h",
     "'theirs:h' is not a handler: a subclass of socketserver.BaseRequestHandler is needed"),
])
def test_handler_that_cannot_be_loaded_is_told(source, name, reason, folder, capsys):
    """In one line, with the reason."""
    if source is not None:
        (folder / "theirs.py").write_text(source)
    assert run(["--port", "0", "--handler", name]) == (cli.FAILED, [])
    assert capsys.readouterr().err == f"threaded_echo: {reason}\n"


# How it is called.

@pytest.mark.parametrize(("arguments", "names"), [
    (["--port", "a"], "--port"),
    (["--port", "-1"], "--port"),
    (["--port", "65536"], "--port"),
    (["--duration", "a"], "--duration"),
    (["--duration", "-1"], "--duration"),
    (["--duration", "nan"], "--duration"),
    (["--drain-timeout", "inf"], "--drain-timeout"),
    (["--force-timeout", "-0.1"], "--force-timeout"),
    (["--workers", "0"], "--workers"),
    (["--workers", "two"], "--workers"),
    (["--handler", ""], "--handler"),
    (["--handler", "module"], "--handler"),
    (["--handler", "module:"], "--handler"),
    (["--handler", ":Class"], "--handler"),
    (["--unix", ""], "--unix"),
    (["--unix", "path", "--host", "name"], "--host"),
    (["--quiet", "--verbose"], "--verbose"),
    (["--unknown"], "--unknown"),
    (["more"], "more"),
])
def test_wrong_usage_is_an_exit_status(arguments, names, capsys):
    """And the argument is named."""
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert names in capsys.readouterr().err.splitlines()[-1]


def test_help_names_the_defaults(capsys):
    """They are the server's own."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in ("127.0.0.1", "9999", ThreadedTCPServer.drain_timeout, ThreadedTCPServer.force_timeout):
        assert f"(default: {default})" in text


def test_module_that_is_run_is_the_command(monkeypatch, capsys):
    """`python -m threaded_echo`."""
    monkeypatch.setattr(sys, "argv", ["threaded_echo", "--port", "0", "--duration", "0"])
    monkeypatch.delitem(sys.modules, "threaded_echo.__main__")
    with pytest.raises(SystemExit) as raised:
        runpy.run_module("threaded_echo", run_name="__main__")
    assert raised.value.code == cli.OK
    assert capsys.readouterr().out.startswith("listening on 127.0.0.1:")


def test_process_with_a_survivor_ends_at_once(monkeypatch):
    """It does not wait for what cannot be ended."""
    def end(status):
        """Say how it ended."""
        raise InterruptedError(status)

    monkeypatch.setattr(__main__, "main", lambda: cli.SURVIVORS)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(InterruptedError) as raised:
        __main__.command()
    assert raised.value.args == (cli.SURVIVORS,)
