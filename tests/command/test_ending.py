"""What ends the command, signals above all, and its exit status."""
from __future__ import annotations

import errno
import io
import os
import re
import signal
import socket
import socketserver
import threading
from contextlib import redirect_stdout, suppress

import pytest

from threaded_echo import LineHandler, ThreadedTCPServer, __main__, stopping
from threaded_echo.accepting.loop import Background
from threaded_echo.command import run as cli

from ..tools import GUARD, Gate, ask, connect, receive, receive_all, running, wait_until
from .operating import STOPPED, run, run_until


class Blocked(socketserver.BaseRequestHandler):
    """Sends for ever to a client that reads nothing: only cutting the connection ends it."""

    def handle(self) -> None:
        """Send."""
        while True:
            self.request.sendall(bytes(1 << 20))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_it(number):
    """SIGINT and SIGTERM each stop the server with success."""
    status, lines = run_until(number)
    assert status == cli.OK
    assert [line.split()[0] for line in lines] == ["listening", "stopping:", "stopped"]


def test_end_of_the_duration_stops_it():
    """The command ends by itself when the time is up."""
    status, lines = run(["--port", "0", "--duration", "0"])
    assert status == cli.OK
    assert lines[1] == "stopping: 0 clients live"
    assert re.fullmatch(STOPPED.format(0, 0, 0), lines[2])


def test_longest_duration_can_be_waited():
    """The longest duration that the check lets through is not an error later."""
    assert run_until(signal.SIGINT, "--duration", str(int(threading.TIMEOUT_MAX)))[0] == cli.OK


def test_handler_that_stops_the_server_ends_the_command(named):
    """The command does not wait any longer for a server that has stopped serving."""
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
    """The second signal ends the waiting for a handler that blocks."""
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
    """If the output breaks while a handler finishes its work, the handler still finishes."""
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
    """A handler's module may use other signals."""
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
    """The exception of another signal handler reaches the caller once everything has ended."""
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
    """Standard error names the handler that is still running, and the lines where it is."""
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
    assert error.startswith("threaded_echo: still running after the stop:\nclient 1, from ")
    assert "wait_until(gate.release)" in error
    left = set(threading.enumerate()).difference(before)
    gate.release.set()
    for thread in left:
        thread.join(GUARD)


def test_serving_loop_that_fails_is_an_exit_status(monkeypatch, capsys):
    """The error is on standard error, and the clients that are live are stopped."""
    def fail(server):
        """Break the listening socket, and fail to accept."""
        server.socket.shutdown(socket.SHUT_RDWR)
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
        f"threaded_echo: the listening socket has failed, the serving loop ends: {error}",
        f"threaded_echo: stopped by an error: {error}"]


@pytest.mark.parametrize("thread_class", [threading.Thread, Background])
def test_server_without_threads_is_told(thread_class, monkeypatch, capsys):
    """Whichever thread cannot start, one line says so, and nothing is left open."""
    def fail(thread):
        """Fail to start."""
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread_class, "start", fail)
    monkeypatch.setattr(stopping, "_TAIL", 0.01)  # for the background thread, which never ran
    assert cli.main(["--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == "threaded_echo: cannot serve: can't start new thread\n"


def test_server_without_descriptors_is_told(monkeypatch, capsys):
    """One line tells the system's reason."""
    def fail():
        """Open nothing."""
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", fail)
    assert cli.main(["--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == f"threaded_echo: cannot serve: [Errno {errno.EMFILE}] Too many open files\n"


def test_thread_that_is_not_the_main_one_runs_it_without_signals():
    """A program may run the command in any thread, until the duration is over."""
    results: list[int] = []
    output = io.StringIO()
    with redirect_stdout(output):
        with running(lambda: results.append(cli.main(["--port", "0", "--duration", "0"]))):
            pass
    assert results == [cli.OK]
    assert output.getvalue().startswith("listening on 127.0.0.1:")


def test_process_with_a_survivor_ends_at_once(monkeypatch):
    """The process does not wait for a handler that cannot be ended."""
    def end(status):
        """Say how it ended."""
        raise InterruptedError(status)

    monkeypatch.setattr(__main__, "main", lambda: cli.SURVIVORS)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(InterruptedError) as raised:
        __main__.command()
    assert raised.value.args == (cli.SURVIVORS,)
