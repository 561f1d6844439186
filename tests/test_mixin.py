"""The mix-in as a whole: its state, several servers at once, what it tells its handlers."""
from __future__ import annotations

import os
import socketserver
from contextlib import suppress

import pytest

from threaded_echo import ThreadedTCPServer, current_client
from threaded_echo.state import ServerState

from .conftest import LOOPBACK
from .tools import Echo, Gate, ask, connect, receive, receive_all, wait_until


def test_stopping_hook_wakes_a_waiting_handler(serve):
    """A handler that waits on server.stopping, in place of sleeping, ends with the stop."""
    gate = Gate(lambda handler: handler.server.stopping.wait(3600))
    server = serve(gate.handler)
    with connect(server) as client:
        gate.release.set()
        wait_until(gate.entered)
        assert server.stop().drained == 1
        assert receive(client, 1) == b""


def test_server_in_a_handler_of_another_keeps_the_clients_apart(serve):
    """A handler that serves one request of a server of its own still has its client, and can stop its server."""
    reports = []

    class Outer(socketserver.BaseRequestHandler):
        """Opens a server for one more connection."""

        def handle(self):
            """Serve it, and stop both servers."""
            mine = current_client()
            with ThreadedTCPServer(LOOPBACK, Echo) as inner:
                with connect(inner) as client:
                    inner.handle_request()
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
                    assert inner.stop().drained == 1
                try:
                    raise ZeroDivisionError
                except ZeroDivisionError:
                    inner.handle_error(None, "nowhere")
            assert current_client() is mine and mine.state == "serving"
            reports.append(self.server.stop(drain=30))

    server = serve(Outer)
    with connect(server) as client:
        assert receive_all(client) == b""
    assert server.stop().clean and server.stats().failed == 0
    assert reports[0].clean and reports[0].forced == 0


def test_state_is_there_without_an_init():
    """A program's ``__init__`` may come to it before socketserver's does."""
    server = ThreadedTCPServer.__new__(ThreadedTCPServer)
    assert server._threaded_state is ServerState.of(server)


def test_state_is_made_once():
    """It is made on first use, and then found again by whoever asks."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert ServerState.of(server) is ServerState.of(server) is server._threaded_state


def test_repr_tells_address_whether_it_serves_and_how_many_are_live(serve):
    """It is for people who read a log or use a debugger."""
    server = serve(Echo)
    address = server.server_address
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert repr(server) == f"<ThreadedTCPServer on {address!r}, serving, 1 live>"
    server.stop()
    assert repr(server) == f"<ThreadedTCPServer on {address!r}, not serving, 0 live>"


def test_server_that_asks_for_its_clients_before_it_is_made_finds_none():
    """The mix-in has no ``__init__`` to call: its state is made on first use."""
    class Server(ThreadedTCPServer):
        """Looks around first."""

        def __init__(self):
            """Look, then be made."""
            self.found = dict(self.clients), self.stopping.is_set()
            super().__init__(LOOPBACK, Echo)

    with Server() as server:
        assert server.found == ({}, False)
        assert server.start() is server


def test_client_that_is_handed_on_is_the_other_servers_only(serve):
    """A process_request that calls another server's hands its client over: the stop of the first leaves it alone."""
    backend = serve(Echo)

    class Front(ThreadedTCPServer):
        """Only accepts."""

        def process_request(self, request, client_address):
            """Hand on."""
            backend.process_request(request, client_address)

    front = serve(Echo, Front)
    with connect(front) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1" and len(backend.clients) == 1 and not front.clients
        report = front.stop()
        assert report.clean and (report.drained, report.forced) == (0, 0)
        client.sendall(b"2")
        assert client.recv(1) == b"2"
        assert backend.stop().drained == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_knows_no_clients_and_its_close_leaves_the_parents_alone(serve):
    """The usual idiom of a program that forks: the child closes its copy of the server."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        child = os.fork()
        if child == 0:
            known = 1
            with suppress(BaseException):  # the test must not go on in the child, whatever it meets
                known = len(server.clients) + server.stats().live + server.stopping.is_set()
                server.server_close()
            os._exit(known)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.sendall(b"2")
        assert client.recv(1) == b"2" and len(server.clients) == 1
        assert ask(server) == b"ping\n"


def test_request_of_another_servers_client_is_not_this_ones(serve):
    """A handler may use another server's hooks for its own request: its client stays its own server's."""
    other = ThreadedTCPServer(LOOPBACK, Echo)

    class Handler(socketserver.BaseRequestHandler):
        """Has the other server serve and close its request."""

        def handle(self):
            """Hand the request on."""
            other.finish_request(self.request, self.client_address)
            other.shutdown_request(self.request)

    server = serve(Handler)
    with other:
        assert ask(server) == b"ping\n"
        server.stop()
        assert not server.clients and (server.stats().finished, other.stats().finished) == (1, 0)
