"""The stop, called by several threads at once."""
from __future__ import annotations

import socketserver
import threading

import pytest

from threaded_echo import StopReport, ThreadedTCPServer, current_client
from threaded_echo.stopping import Stopping

from .tools import GUARD, Echo, Flood, Gate, connect, receive_all, running, together, wait_until


def test_survivor_is_logged_once_for_several_callers(serve, caplog, monkeypatch):
    """There is one line in the log, and one report for all of them."""
    gate, following = Gate(), threading.Semaphore(0)
    follow = Stopping._follow
    monkeypatch.setattr(Stopping, "_follow", lambda self, stop: (following.release(), follow(self, stop))[1])
    server = serve(gate.handler)
    reports: list[StopReport] = []

    def stop() -> None:
        reports.append(server.stop(drain=3600, force=3600))

    with connect(server):
        wait_until(gate.entered)
        with running(stop), running(stop), running(stop):
            for _ in range(2):  # the third one leads
                assert following.acquire(timeout=GUARD)
            reports.append(server.stop(0, 0))
        gate.release.set()
        assert len(reports) == 4 and all(report is reports[0] for report in reports)
        assert len(reports[0].survivors) == 1
        assert len([record for record in caplog.records if "still running" in record.getMessage()]) == 1
        assert server.stop(drain=GUARD).clean


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
def test_eight_callers_at_once_all_return(serve, method):
    """Whoever calls, each returns once everything has ended."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        results = together(8, getattr(server, method))
        assert receive_all(client) == b""
    if method == "stop":
        assert {report.drained for report in results if report.drained} == {1}
    assert not server.clients


def test_second_stop_can_shorten_the_first(serve):
    """stop(0) while a patient stop is draining cuts at once."""
    flood = Flood()
    server = serve(flood.handler)
    reports: list[StopReport] = []
    with connect(server):
        wait_until(flood.sending)
        with running(lambda: reports.append(server.stop(drain=3600, force=3600))):
            wait_until(server.stopping)
            assert server.stop(drain=0).forced == 1
    assert reports[0].forced == 1


def test_second_stop_shortens_the_force_too(serve):
    """stop(force=0) gives up on a survivor that a patient stop waits for."""
    gate = Gate()
    server = serve(gate.handler)
    reports: list[StopReport] = []
    with connect(server) as client:
        wait_until(gate.entered)
        with running(lambda: reports.append(server.stop(drain=0, force=3600))):
            assert receive_all(client) == b"", "it has been cut"
            server.stop(force=0)
        gate.release.set()
    assert not reports[0].clean
    server.stop(drain=GUARD)


def test_close_does_not_shorten_a_patient_stop(serve):
    """What asks for nothing in particular leaves the time of the stop in progress as it is."""
    gate = Gate()
    server = serve(gate.handler, drain_timeout=0.0, force_timeout=0.0)
    reports: list[StopReport] = []
    with connect(server):
        wait_until(gate.entered)
        with running(lambda: reports.append(server.stop(drain=3600))):
            wait_until(server.stopping)
            with running(server.server_close):
                gate.release.set()
    assert reports[0].clean and reports[0].forced == 0


def test_server_close_of_a_subclass_is_called_once(serve):
    """A clean-up in server_close that works only once is safe, however many stops come at once."""
    calls = []

    class Server(ThreadedTCPServer):
        """Counts."""

        def server_close(self):
            """Count, and close."""
            calls.append(current_client())
            super().server_close()

    server = serve(Echo, Server)
    together(8, server.stop)
    server.stop()
    assert len(calls) == 1


def test_second_stop_leaves_the_closing_to_the_first(serve, monkeypatch):
    """While the first one is in the program's server_close, the second one waits for that."""
    closing, asked = threading.Event(), threading.Event()
    calls = []

    class Server(ThreadedTCPServer):
        """Takes its time to close."""

        def server_close(self):
            """Wait until the second one waits."""
            calls.append(1)
            closing.set()
            wait_until(asked)
            super().server_close()

    server = serve(Echo, Server)
    follow = Stopping._follow
    monkeypatch.setattr(Stopping, "_follow", lambda self, stop: (asked.set(), follow(self, stop))[1])
    with running(server.stop):
        wait_until(closing)
        assert server.stop().clean
        assert server.fileno() < 0
    assert calls == [1]


def test_server_close_that_waits_for_its_clients_does_not_hang(serve):
    """A subclass's server_close that first joins what serves its clients finds them woken by the stop."""
    entered, done = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Waits for its client ahead of closing."""

        def server_close(self):
            """Wait, then close."""
            wait_until(done)
            super().server_close()

    class Handler(socketserver.BaseRequestHandler):
        """Says when it is done."""

        def handle(self) -> None:
            """Wait for end of file."""
            entered.set()
            self.request.recv(1)
            done.set()

    server = serve(Handler, Server)
    with connect(server):
        wait_until(entered)
        assert server.stop().clean


def test_close_that_comes_when_the_stop_is_through_with_closing_is_done_by_its_caller(serve, monkeypatch):
    """The leader has closed what was asked for until then, and reports: nobody else would close it."""
    following, late = threading.Event(), []
    server = serve(Echo)
    report, follow = Stopping._report, Stopping._follow

    def report_late(self, stop, *arguments, **keywords):
        if not late:
            late.append(threading.Thread(target=server.server_close))
            late[0].start()
            wait_until(following)
        return report(self, stop, *arguments, **keywords)

    monkeypatch.setattr(Stopping, "_report", report_late)
    monkeypatch.setattr(Stopping, "_follow", lambda self, stop: (following.set(), follow(self, stop))[1])
    server.shutdown()
    late[0].join(GUARD)
    assert not late[0].is_alive() and server.fileno() < 0
