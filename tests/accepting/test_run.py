"""``server.run``: what ends it other than a signal, and what it returns, raises and logs."""
from __future__ import annotations

import logging
import math
import signal
import socketserver
import threading

import pytest

from threaded_echo import ClientHandler, ThreadedMixIn, ThreadedTCPServer
from threaded_echo.accepting import running

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, connect, receive_all, wait_until
from .operating import run, send, server_of

pytestmark = pytest.mark.usefixtures("handlers_are_restored")


def test_end_of_the_duration_stops_the_server():
    """No signal is needed."""
    assert server_of(Echo).run(0).clean
    assert server_of(Echo).run(duration=0.0).drained == 0


@pytest.mark.parametrize(("duration", "error"), [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError),
                                                 ("5", TypeError), (True, TypeError)])
def test_duration_that_cannot_be_waited_is_an_error(duration, error):
    """The error names the argument, and the server has not served."""
    with server_of(Echo) as server:
        with pytest.raises(error, match="duration"):
            server.run(duration)
        assert server.start() is server


def test_handler_that_stops_the_server_ends_the_run():
    """A handler may stop its server, whose report then is returned."""
    class Stopper(ClientHandler):
        """Stops its server."""

        def process(self, data):
            """Stop."""
            self.server.stop()

    server = server_of(Stopper)
    report = run(server, lambda: ask(server))
    assert report.clean
    assert server.fileno() < 0


def test_other_thread_that_stops_the_server_ends_the_run():
    """The two stops are one: both know of the client that was there."""
    server = server_of(Echo)
    reports = []

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            reports.append(server.stop())

    assert run(server, script).clean
    assert reports[0].drained == 1


def test_stop_while_it_starts_ends_the_run():
    """Somebody stops the server before its loop accepts."""
    stoppers = []

    class Stopped(ThreadedTCPServer):
        """Is stopped as it begins to serve."""

        def serve_forever(self, poll_interval=0.5):
            """Serve once a stop has begun in another thread."""
            stoppers.append(threading.Thread(target=self.stop))
            stoppers[0].start()
            wait_until(self.stopping)
            super().serve_forever(poll_interval)

    assert server_of(Echo, Stopped).run().clean
    stoppers[0].join(GUARD)


def test_server_that_cannot_start_is_an_error_and_stays_as_it_was():
    """A server that serves already goes on serving, and a closed one says so."""
    with server_of(Echo).start() as server:
        with pytest.raises(RuntimeError, match="already serving"):
            server.run()
        assert ask(server) == b"ping\n"
    with pytest.raises(RuntimeError, match="closed"):
        server.run()


def test_error_that_ends_the_loop_is_raised_after_the_stop():
    """The clients that are there get the end of their stream first."""
    class Failing(ThreadedTCPServer):
        """Its serving loop fails when it is told to."""

        fails = threading.Event()

        def serve_forever(self, poll_interval=0.5):
            """Poll often."""
            super().serve_forever(0.01)

        def service_actions(self):
            """Fail, if it is time for that."""
            if self.fails.is_set():
                raise LookupError("an error of the loop")

    server = server_of(Echo, Failing)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            server.fails.set()
            assert receive_all(client) == b""

    with pytest.raises(LookupError, match="an error of the loop"):
        run(server, script)
    assert server.fileno() < 0


def test_thread_that_cannot_start_is_an_error_and_the_server_stays_as_it_was(monkeypatch):
    """There may be too many threads. The server can serve when there are fewer."""
    def fail(thread):
        raise RuntimeError("can't start new thread")

    with server_of(Echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError, match="new thread"):
                server.run()
        assert ask(server.start()) == b"ping\n"


def test_run_logs_its_steps_between_info_and_warning(caplog):
    """A program that sets up logging sees where it listens, and what the stop did."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = server_of(Echo)
    host, port = server.server_address
    run(server, lambda: (ask(server), send(signal.SIGINT)))
    assert [record.event for record in caplog.records] == ["listening", "stopping", "stopped"]
    assert {record.levelno for record in caplog.records} == {running.NOTICE}
    assert caplog.messages[:2] == [f"listening on {host}:{port}", "stopping: 0 clients live"]


def test_program_with_a_run_of_its_own_keeps_it():
    """A class below the mix-in may have the name for something else."""
    class Existing(socketserver.ThreadingTCPServer):
        """Has a run."""

        def run(self):
            """Not the mix-in's."""
            return "its run"

    with type("Upgraded", (ThreadedMixIn, Existing), {})(LOOPBACK, Echo) as server:
        assert server.run() == "its run"


def test_exception_as_the_loop_has_just_been_started_stops_the_server(monkeypatch):
    """A signal handler of the program's may raise at any moment, also between the thread's start and the wait."""
    server = server_of(Echo)
    loops = server._threaded_state.loops
    begin = loops.begin

    def interrupted(*arguments):
        begin(*arguments).wait_until_accepting()
        raise LookupError("by a signal")

    monkeypatch.setattr(loops, "begin", interrupted)
    try:
        with pytest.raises(LookupError, match="by a signal"):
            server.run()
        assert server.stopping.is_set() and server.fileno() < 0
    finally:
        server.stop()
