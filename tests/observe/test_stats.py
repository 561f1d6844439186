"""The statistics of a server."""
from __future__ import annotations

import sys

from threaded_echo import ClientHandler, ThreadedTCPServer, current_client

from ..conftest import LOOPBACK
from ..tools import Echo, ask, connect, receive, receive_all


def test_statistics_add_up(serve):
    """The accepted clients are live, finished or refused, and the bytes are those that passed."""
    class Server(ThreadedTCPServer):
        """Refuses every third."""

        def verify_request(self, request, client_address):
            """Count."""
            return current_client().number % 3 != 0

    server = serve(Echo, Server)
    assert server.stats().seconds_up > 0
    for number in range(1, 7):
        if number % 3:
            assert ask(server, b"hello") == b"hello"
        else:
            with connect(server) as connection:
                assert receive_all(connection) == b""
    with connect(server) as connection:
        connection.sendall(b"abc")
        receive(connection, 3)
        stats = server.stats()
        assert (stats.accepted, stats.refused, stats.live, stats.finished, stats.failed) == (7, 2, 1, 4, 0)
        assert stats.threads_busy >= 1 and stats.peak >= 1
        if sys.platform == "linux":
            assert stats.bytes_received >= 4 * 5 + 3 and stats.bytes_sent == 4 * 5 + 3
    server.stop()
    assert server.stats().threads_busy == server.stats().threads_idle == 0


def test_statistics_of_a_server_that_has_not_served():
    """Every count is zero."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        stats = server.stats()
        assert (stats.accepted, stats.bytes_received, stats.seconds_up) == (0, 0, 0.0)


def test_client_refused_in_a_handler_of_another_server_is_counted_by_its_own(serve):
    """A handler that accepts for a second server does not mix up the counts of both."""
    class Refusing(ThreadedTCPServer):
        """Turns everybody away."""

        def verify_request(self, request, client_address):
            """Refuse."""
            return False

    class Handler(ClientHandler):
        """Accepts for the other server."""

        def process(self, data):
            """Accept."""
            other.handle_request()
            return data

    with Refusing(LOOPBACK) as other:
        server = serve(Handler)
        with connect(other):
            assert ask(server) == b"ping\n"
        assert (other.stats().accepted, other.stats().refused) == (1, 1)
        assert server.stop().clean
        assert (server.stats().accepted, server.stats().finished, server.stats().refused) == (1, 1, 0)
