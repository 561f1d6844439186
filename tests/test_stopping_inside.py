"""The stop, called from inside: by handlers, and by hooks in the serving thread."""
from __future__ import annotations

import socketserver
import threading

import pytest

from threaded_echo import ClientHandler, StopReport, ThreadedTCPServer

from .conftest import LOOPBACK
from .tools import GUARD, Echo, Gate, ask, connect, receive_all, wait_until


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
def test_stop_from_a_handler_ends_the_others_but_not_itself(serve, method):
    """A handler that stops its server is not waited for, and can still reply."""
    results = []

    class Handler(ClientHandler):
        """Stops its server on demand."""

        def process(self, data: bytes) -> bytes | None:
            """Stop at b"stop"."""
            if data != b"stop":
                return data
            results.append(getattr(self.server, method)())
            assert set(self.server.clients) == {self.client.number}
            return b"stopped"

    server = serve(Handler)
    with connect(server) as other, connect(server) as client:
        for each in (other, client):
            each.sendall(b"x")
            each.recv(1)
        client.sendall(b"stop")
        assert receive_all(client) == b"stopped"
        assert receive_all(other) == b""
    if method == "stop":
        assert (results[0].drained, results[0].clean) == (1, True)
    assert server.stop().clean
    assert not server.clients


def test_handlers_that_stop_at_once_do_not_wait_for_each_other(serve):
    """Two handlers and the main thread stop at once, and nobody waits for a time-out."""
    barrier = threading.Barrier(3)
    reports: list[StopReport] = []

    class Handler(socketserver.BaseRequestHandler):
        """Stops its server, with others."""

        def handle(self) -> None:
            """Meet the others, then stop."""
            barrier.wait(GUARD)
            reports.append(self.server.stop(drain=3600, force=3600))

    server = serve(Handler)
    with connect(server), connect(server):
        barrier.wait(GUARD)
        outside = server.stop(drain=3600, force=3600)
    assert outside.clean and outside.forced == 0
    assert len(reports) == 2 and all(report.clean and report.forced == 0 for report in reports)


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
@pytest.mark.parametrize("hook", ["service_actions", "verify_request"])
def test_stop_from_the_serving_thread_does_not_wait_for_it(serve, method, hook):
    """A stop in a hook that the loop calls ends the clients, and the loop afterwards."""
    # One is called at each poll, the other for a client, which is then served and woken like those before it.
    wanted = threading.Event()

    def stop(self, *arguments):
        if wanted.is_set():
            wanted.clear()
            getattr(self, method)()
        return True

    def serve_forever(self, poll_interval=0.5):
        """Poll, as a loop with service_actions does, but more often."""
        ThreadedTCPServer.serve_forever(self, 0.01)

    server = serve(Echo, type("Server", (ThreadedTCPServer,), {hook: stop, "serve_forever": serve_forever}))
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        wanted.set()
        if hook == "verify_request":
            with connect(server) as second:
                assert receive_all(second) == b""
        assert receive_all(client) == b""
    report = server.stop()
    assert report.clean and report.forced == 0


def test_survivors_of_a_handlers_stop_do_not_include_itself(serve):
    """The report of a caller from inside names the others only."""
    gate = Gate()
    reports = []

    class Handler(ClientHandler):
        """Stops its server; the first client's handler never ends."""

        def process(self, data: bytes) -> bytes:
            """Stop, or wait at the gate."""
            if data == b"stop":
                reports.append(self.server.stop(drain=0.01, force=0.01))
            else:
                gate.entered.set()
                wait_until(gate.release)
            return b"done"

    server = serve(Handler)
    with connect(server) as first, connect(server) as second:
        first.sendall(b"wait")
        wait_until(gate.entered)
        second.sendall(b"stop")
        assert receive_all(second) == b"done"
        gate.release.set()
    [survivor] = reports[0].survivors
    assert survivor.client.number == 1
    server.stop(drain=GUARD)


def test_handler_that_stops_is_not_cut_by_its_own_stop(serve):
    """Cutting the connections spares those whose handlers wait for the stop."""
    sending = threading.Event()

    class Handler(ClientHandler):
        """Stops its server, or sends without end."""

        def process(self, data: bytes) -> bytes:
            """Stop, or flood."""
            if data == b"stop":
                return b"%d" % self.server.stop(drain=0.01).forced
            while True:
                self.send(b"x" * 100_000)
                sending.set()

    server = serve(Handler)
    with connect(server) as first, connect(server) as second:
        first.sendall(b"flood")
        wait_until(sending)
        second.sendall(b"stop")
        assert receive_all(second) == b"1"


def test_survivors_of_a_stop_in_the_serving_thread_are_reported(serve):
    """A stop in a hook of the loop gives up as any other."""
    gate = Gate()
    reports = []

    def service_actions(self):
        if gate.entered.is_set() and not reports:
            reports.append(self.stop(drain=0.01, force=0.01))

    server = type("Server", (ThreadedTCPServer,), {"service_actions": service_actions})(LOOPBACK, gate.handler)
    with connect(server):
        server.serve_forever(poll_interval=0.001)
        gate.release.set()
    assert [survivor.client.number for survivor in reports[0].survivors] == [1]
    server.stop(drain=GUARD)


def test_stop_from_outside_cuts_a_handler_whose_own_stop_is_over(serve):
    """The connection of a handler that stops the server is spared by that stop, but not by the one that follows it."""
    stopping = threading.Event()

    class Handler(ClientHandler):
        """Stops its server, then sends until it is cut."""

        def process(self, data: bytes) -> None:
            """Stop when the other one waits, and flood."""
            stopping.set()
            self.server.stop(drain=0.01, force=0.01)
            while True:
                self.send(b"x" * 100_000)

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"stop")
        wait_until(stopping)
        report = server.stop(drain=0.1, force=GUARD)
    assert report.clean and server.stats().finished == 1


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
def test_stop_in_client_disconnected_does_not_wait_for_its_own_thread(serve, method):
    """A hook that stops the server after the client has gone is in a handler's thread all the same."""
    stopped = threading.Event()

    class Server(ThreadedTCPServer):
        """Serves one client."""

        def client_disconnected(self, client):
            """Stop."""
            getattr(self, method)()
            stopped.set()

    server = serve(Echo, Server, drain_timeout=GUARD, force_timeout=0)
    assert ask(server) == b"ping\n"
    assert stopped.wait(GUARD / 2), "it has waited for itself"
    assert server.stop().clean


@pytest.mark.parametrize("method", ["stop", "server_close"])
def test_background_thread_that_stops_behind_its_loop_is_joined_at_once(serve, monkeypatch, method):
    """A serve_forever that closes the server in its ``finally`` and a stop do not wait for each other."""
    monkeypatch.setattr("threaded_echo.stopping._TAIL", GUARD)

    class Server(ThreadedTCPServer):
        """Closes itself."""

        def serve_forever(self, poll_interval=0.5):
            """Serve, then close."""
            try:
                super().serve_forever(poll_interval)
            finally:
                getattr(self, method)()

    for _ in range(20):
        report = serve(Echo, Server).stop()
        assert report.clean and report.seconds < GUARD / 2


def test_stop_in_verify_request_does_not_wait_for_the_client_that_is_being_verified():
    """Nobody serves that client yet, and the stop is called by the thread that would have it served."""
    reports: list[StopReport] = []

    class Server(ThreadedTCPServer):
        """Stops when a client comes."""

        def verify_request(self, request, client_address):
            """Stop."""
            reports.append(self.stop(drain=GUARD / 10, force=0.01))
            return True

    server = Server(LOOPBACK, Echo)
    with connect(server):
        server.serve_forever()
    assert reports[0].survivors == () and reports[0].forced == 0
    assert server.stop().clean
