"""How the command is called: handlers, workers, wrong usage."""
from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading

import pytest

import threaded_echo
from threaded_echo import ClientHandler, EchoHandler, ThreadedTCPServer
from threaded_echo.command import run as cli
from threaded_echo.command.arguments import parse, server_options
from threaded_echo.offloading import threads

from .. import calls
from ..tools import ask, connect, receive_all, run_as_program
from .operating import run


class Where(ClientHandler):
    """Tells in which process its work is done."""

    def process(self, data):
        """Reply with it."""
        return b"%d" % self.offload(os.getpid)


def test_workers_compute_for_the_handler(named):
    """What the handler offloads runs in another process, and no process is left at the end."""
    def script(operator):
        """Ask for a worker's process."""
        assert int(ask(operator.address(), b"x")) != os.getpid()
        operator.interrupt()

    status, _ = run(["--port", "0", "--workers", "2", "--handler", named(Where)], script)
    assert status == cli.OK
    assert not multiprocessing.active_children()


def test_worker_threads_compute_for_the_handler(named, monkeypatch, capsys):
    """In this process. That they do not help with the GIL is a line like any other, and no thread is left."""
    monkeypatch.setattr(threads, "has_gil", lambda: True)
    monkeypatch.setattr(threads, "warned", threading.Event())

    def script(operator):
        """Ask for the process."""
        assert int(ask(operator.address(), b"x")) == os.getpid()
        operator.interrupt()

    status, _ = run(["--port", "0", "--workers", "2", "--worker-threads", "--handler", named(Where)], script)
    assert status == cli.OK
    assert "threaded_echo: this Python has the GIL: WorkerThreads compute one at a time" in capsys.readouterr().err


def test_workers_that_cannot_start_are_an_exit_status(monkeypatch, capsys):
    """One line says why, and the status is that of a failure."""
    monkeypatch.setattr("threaded_echo.offloading.worker.work", calls.end_as_it_starts)
    assert cli.main(["--port", "0", "--workers", "1"]) == cli.FAILED
    assert capsys.readouterr().err.startswith("threaded_echo: cannot serve: a worker process has ended as it starte")


def test_limits_refuse_a_client_and_say_so():
    """A line tells its number, its address and the reason, and nothing else is told about it."""
    def script(operator):
        """Take the one place, and come once more."""
        address = operator.address()
        with connect(address) as first:
            operator.line()
            with connect(address) as second:
                port = second.getsockname()[1]
                assert receive_all(second) == b""
            assert operator.line() == f"client 2 refused from 127.0.0.1:{port}: limit"
            with socket.create_connection(address, source_address=("127.0.0.2", 0)) as third:
                assert receive_all(third) == b""
            assert operator.line().endswith(": limit")
            first.shutdown(socket.SHUT_WR)
            assert receive_all(first) == b"" and operator.line() == "client 1 disconnected"
        operator.interrupt()

    status, lines = run(["--port", "0", "--max-clients", "1", "--at-limit", "refuse", "--max-clients-per-host", "1"],
                        script)
    assert status == cli.OK and len(lines) == 7


def test_handler_from_the_current_folder_serves(folder):
    """The module is beside where the command is run, and the class is within another class."""
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
    """`python -m` has listed the current folder, which is not listed twice."""
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
    """One line on standard error tells the reason."""
    if source is not None:
        (folder / "theirs.py").write_text(source)
    assert run(["--port", "0", "--handler", name]) == (cli.FAILED, [])
    assert capsys.readouterr().err == f"threaded_echo: {reason}\n"


@pytest.mark.parametrize(("arguments", "names"), [
    (["--port", "a"], "--port"),
    (["--port", "-1"], "--port"),
    (["--port", "65536"], "--port"),
    (["--port", "\u0663"], "--port"),
    (["--port", "9999", "--unix", "path"], "argument --port: not allowed with argument --unix"),
    (["--unix", "path", "--idle-timeout", "1"], "argument --idle-timeout: not allowed with argument --unix"),
    (["--idle-timeout", "0"], "argument --idle-timeout: must be None or more than 0 seconds, not 0.0"),
    (["--lifetime", "soon"], "argument --lifetime: must be a number, not 'soon'"),
    (["--duration", "-1"], "argument --duration: must not be negative: -1"),
    (["--duration", "inf"], "argument --duration: must be from 0 to "),
    (["--duration", "soon"], "argument --duration: must be a number, not 'soon'"),
    (["--workers", "1.5"], "argument --workers: must be a whole number, not '1.5'"),
    (["--workers", "0"], "argument --workers: must be at least one worker process: 0"),
    (["--worker-threads"], "argument --worker-threads: needs --workers N"),
    (["--logs-per-client", "0"], "--logs-per-client"),
    (["--max-clients", "0"], "argument --max-clients: must be None or at least 1, not 0"),
    (["--max-clients-per-host", "many"], "--max-clients-per-host"),
    (["--at-limit", "panic"], "--at-limit"),
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
    (["--systemd", "--unix", "path"], "--unix"),
    (["--systemd", "--port", "1"], "argument --port: not allowed with argument --systemd"),
    (["--unix-mode", "660"], "argument --unix-mode: needs argument --unix"),
    (["--unix", "path", "--unix-mode", "rw"], "argument --unix-mode: must be an octal number from 0 to 777, not 'rw'"),
    (["--unix", "path", "--unix-mode", "1777"], "--unix-mode"),
    (["--unix", "path", "--unix-mode", "00660"], "--unix-mode"),
    (["--linger-timeout", "-1"], "--linger-timeout"),
    (["--quiet", "--verbose"], "--verbose"),
    (["--metrics-port", "65536"], "--metrics-port"),
    (["--metrics-host", "localhost"], "argument --metrics-host: needs --metrics-port N"),
    (["--unknown"], "--unknown"),
    (["more"], "more"),
])
def test_wrong_usage_is_an_exit_status(arguments, names, capsys):
    """The status is 2, and the last line names the argument."""
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert names in capsys.readouterr().err.splitlines()[-1]


def test_help_names_the_defaults(capsys):
    """The defaults in the help are the server's own."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in ("127.0.0.1", "9999", ThreadedTCPServer.drain_timeout, ThreadedTCPServer.force_timeout,
                    ThreadedTCPServer.logs_per_client):
        assert f"(default: {default})" in text


def test_examples_in_the_help_are_right(capsys):
    """Each is a line that the shell and the command take: `threaded_echo` by itself is none, installed or not."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = [line.split() for line in capsys.readouterr().out.partition("examples:")[2].splitlines() if line]
    assert len(lines) >= 4
    for line in lines:
        assert line[:3] == ["python3", "-m", "threaded_echo"]
        assert parse([argument.strip('"') for argument in line[3:]])


def test_version_is_that_of_the_package(capsys):
    """The name is in front of it."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"threaded_echo {threaded_echo.__version__}\n"


def test_options_are_those_of_the_server():
    """An option that is not given is left to the server."""
    plain = server_options(parse([]))
    assert plain == {"idle_timeout": None, "lifetime": None, "drain_timeout": 5.0, "force_timeout": 1.0,
                     "logs_per_client": 100, "proxy_protocol": (), "executor": None, "one_cpu": False,
                     "max_clients": None, "at_limit": "wait", "max_clients_per_host": None,
                     "unix_mode": None, "allow_reuse_port": False, "linger_timeout": 0.0}
    arguments = ["--one-cpu", "--workers", "2", "--drain-timeout", "7", "--idle-timeout", "60", "--lifetime", "3.5"]
    assert server_options(parse(arguments)) == plain | {
        "one_cpu": True, "executor": 2, "drain_timeout": 7.0, "idle_timeout": 60.0, "lifetime": 3.5}


def test_deadlines_of_the_command_end_its_clients():
    """What has ended a client is printed once."""
    def script(operator):
        """Connect, and say nothing."""
        with connect(operator.address()) as client:
            assert receive_all(client) == b""
        while "disconnected: " not in operator.line():
            pass
        operator.interrupt()

    status, lines = run(["--port", "0", "--lifetime", "0.05", "--idle-timeout", "40"], script)
    assert status == cli.OK
    assert [line for line in lines if "was disconnected" in line] == [
        "client 1 was disconnected: its lifetime is over"]


def test_module_that_is_run_is_the_command(monkeypatch, capsys):
    """`python -m threaded_echo` runs the command with the arguments of the process."""
    monkeypatch.setattr(sys, "argv", ["threaded_echo", "--port", "0", "--duration", "0"])
    with pytest.raises(SystemExit) as raised:
        run_as_program("threaded_echo.__main__")
    assert raised.value.code == cli.OK
    assert capsys.readouterr().out.startswith("listening on 127.0.0.1:")
