"""``server.run``: what ends it, which signals it obeys, and what it leaves as it was."""
from __future__ import annotations

import logging
import math
import os
import signal
import socketserver
import threading

import pytest

from threaded_echo import ClientHandler, ThreadedMixIn, ThreadedTCPServer
from threaded_echo.accepting import signals

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, Flood, Gate, ask, connect, receive_all, running, until, wait_until

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_are_restored():
    """Let signals that come late do nothing, and check that the handlers are there again."""
    def ignore(number, frame):
        """Do nothing."""

    before = [signal.signal(number, ignore) for number in SIGNALS]
    yield
    after = [signal.signal(number, handler) for number, handler in zip(SIGNALS, before, strict=True)]
    assert after == [ignore, ignore]


def server_of(handler, server_class=ThreadedTCPServer, **options):
    """Make a server that listens, and does not serve yet."""
    return server_class(LOOPBACK, handler, **options)


def send(number):
    """Send this process a signal, which the kernel hands to the main thread."""
    os.kill(os.getpid(), number)


def run(server, script, duration=None):
    """Run a server in this thread, and a script in another; return the report.

    The server listens already. When a client has been served, `run` has begun, and obeys signals.
    """
    outcome = []

    def operate():
        try:
            script()
        except BaseException as error:
            outcome.append(error)
            server.stop(0)

    with running(operate):
        report = server.run(duration)
    if outcome:
        raise outcome[0]
    return report


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_stops_the_server_and_the_report_is_returned(number):
    """A client that is there is drained, and the listening socket is closed."""
    server = server_of(Echo)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            send(number)
            assert receive_all(client) == b""

    report = run(server, script)
    assert (report.drained, report.forced, report.survivors) == (1, 0, ())
    assert server.fileno() < 0


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


def test_thread_that_is_not_the_main_one_obeys_no_signals():
    """The signal handlers of the program are left alone there."""
    server = server_of(Echo)
    reports = []
    before = [signal.getsignal(number) for number in SIGNALS]
    with running(lambda: reports.append(server.run())):
        assert ask(server) == b"ping\n"
        assert [signal.getsignal(number) for number in SIGNALS] == before
        server.stop()
    assert reports[0].clean


def test_second_signal_cuts_the_connections():
    """A handler that blocks is not waited for any longer."""
    flood = Flood()
    server = server_of(flood.handler, drain_timeout=300)

    def script():
        with connect(server):
            wait_until(flood.sending)
            send(signal.SIGINT)
            wait_until(server.stopping)
            send(signal.SIGTERM)
            wait_until(gone)

    gone = threading.Event()
    server.client_disconnected = lambda client: gone.set()
    report = run(server, script)
    assert (report.drained, report.forced) == (0, 1)


def test_second_signal_before_the_first_ones_stop_has_begun_cuts_the_connections():
    """The stop that comes late has nothing left to do, whichever of them it is."""
    class Late(ThreadedTCPServer):
        """Is interrupted on its way to a stop."""

        def _stop(self, *arguments):
            """Come to the second signal first."""
            if not arguments:
                send(signal.SIGINT)
            return super()._stop(*arguments)

    flood = Flood()
    server = server_of(flood.handler, Late, drain_timeout=300)

    def script():
        with connect(server):
            wait_until(flood.sending)
            send(signal.SIGTERM)
            wait_until(server.stopping)
            until(lambda: not server.clients)

    run(server, script)
    assert server.stats().finished == 1


@pytest.mark.parametrize("signals_more", [0, 1])
def test_exception_of_another_signal_handler_stops_the_server_and_is_raised(signals_more):
    """It is the caller's once everything has ended, for which a signal does not have to wait."""
    gate = Gate()
    server = server_of(gate.handler, drain_timeout=300)

    def fail(number, frame):
        raise LookupError("by a signal")

    def script():
        with connect(server):
            wait_until(gate.entered)
            send(signal.SIGUSR1)
            wait_until(server.stopping)
            for _ in range(signals_more):
                send(signal.SIGINT)
            gate.release.set()

    before = signal.signal(signal.SIGUSR1, fail)
    try:
        with pytest.raises(LookupError, match="by a signal"):
            run(server, script)
    finally:
        signal.signal(signal.SIGUSR1, before)
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


@pytest.mark.parametrize("handler", [signal.SIG_IGN, None])
def test_signal_that_the_process_ignores_stays_ignored(handler, monkeypatch):
    """So does one whose handler Python does not know, since that could not be restored."""
    server = server_of(Echo)
    known = signal.getsignal(signal.SIGINT)
    if handler is None:
        monkeypatch.setattr(signal, "getsignal", lambda number: None)
    else:
        signal.signal(signal.SIGINT, handler)
    during = []

    def script():
        assert ask(server) == b"ping\n"
        monkeypatch.undo()
        during.append(signal.getsignal(signal.SIGINT))
        server.stop()

    try:
        run(server, script)
    finally:
        signal.signal(signal.SIGINT, known)
    assert during == [known if handler is None else handler]


def test_wait_of_the_main_thread_ends_by_itself(monkeypatch):
    """A signal that comes just before the wait begins is noticed when that ends, and not only at the next signal."""
    server = server_of(Echo)
    monkeypatch.setattr(signals, "_FIRST_WAIT", 0.0)  # no wait at all: each one ends without a signal
    assert run(server, lambda: (ask(server), send(signal.SIGINT))).clean


def test_signal_in_a_forked_process_is_not_the_servers(monkeypatch):
    """SIGTERM does there what it did before the server was run; SIGINT, which a terminal sends to all, does nothing."""
    before, ours = [], []

    def note(number, frame):
        before.append(number)

    kept = [signal.signal(number, note) for number in SIGNALS]
    with signals.handled(ours.append):
        signal.raise_signal(signal.SIGTERM)
        assert (before, ours) == ([], [signal.SIGTERM])
        monkeypatch.setattr(signals.os, "getpid", lambda: 0)
        signals._restore_sigterm()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
    for number, handler in zip(SIGNALS, kept, strict=True):
        signal.signal(number, handler)
    assert (before, ours) == ([signal.SIGTERM], [signal.SIGTERM])


def test_run_logs_its_steps_between_info_and_warning(caplog):
    """A program that sets up logging sees where it listens, and what the stop did."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = server_of(Echo)
    host, port = server.server_address
    run(server, lambda: (ask(server), send(signal.SIGINT)))
    assert [record.event for record in caplog.records] == ["listening", "stopping", "stopped"]
    assert {record.levelno for record in caplog.records} == {signals.NOTICE}
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
