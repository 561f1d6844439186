"""The signals that ``server.run`` obeys, and those that it leaves alone."""
from __future__ import annotations

import signal
import threading

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import running as run_module
from threaded_echo.accepting import signals

from ..tools import Echo, Flood, Gate, ask, connect, receive_all, running, until, wait_until
from .operating import SIGNALS, run, send, server_of

pytestmark = pytest.mark.usefixtures("handlers_are_restored")


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

        def _threaded_stop(self, *arguments):
            """Come to the second signal first."""
            if not arguments:
                send(signal.SIGINT)
            return super()._threaded_stop(*arguments)

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
def test_exception_of_another_signal_handler_stops_the_server_and_is_raised(monkeypatch, signals_more):
    """It is the caller's once everything has ended, for which a signal does not have to wait."""
    gate = Gate()
    server = server_of(gate.handler, drain_timeout=300)

    waiting, wait = threading.Event(), run_module._Run._wait
    monkeypatch.setattr(run_module._Run, "_wait", lambda *arguments: (waiting.set(), wait(*arguments)))

    def fail(number, frame):
        raise LookupError("by a signal")

    def script():
        with connect(server):
            wait_until(gate.entered)
            wait_until(waiting)
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
    monkeypatch.setattr(run_module, "_FIRST_WAIT", 0.0)  # no wait at all: each one ends without a signal
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
        signals._restore_in_child()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
    for number, handler in zip(SIGNALS, kept, strict=True):
        signal.signal(number, handler)
    assert (before, ours) == ([signal.SIGTERM], [signal.SIGTERM])


def test_second_signal_as_the_stop_begins_to_wait_cuts_the_connections(monkeypatch):
    """It comes after the stop has looked how long to wait, and before it waits: nobody is there yet to be woken."""
    flood = Flood()
    server = server_of(flood.handler, drain_timeout=300)
    changed = server._threaded_state.registry.changed
    waits = []

    def wait(timeout=None, wait=changed.wait):
        if server.stopping.is_set() and not waits and not server._threaded_state.loops.running:
            waits.append(timeout)
            signal.raise_signal(signal.SIGTERM)
        return wait(timeout)

    monkeypatch.setattr(changed, "wait", wait)

    def script():
        with connect(server):
            wait_until(flood.sending)
            send(signal.SIGINT)
            wait_until(gone)

    gone = threading.Event()
    server.client_disconnected = lambda client: gone.set()
    report = run(server, script)
    assert waits and (report.drained, report.forced) == (0, 1)
