"""The methods of a server in any order, by hypothesis: each does what it says, whatever was called before."""
from __future__ import annotations

import socket

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from threaded_echo import EchoHandler, ThreadedTCPServer

from ..tools import GUARD, LOOPBACK, receive_all, until


class Calls(RuleBasedStateMachine):
    """A server, and what it is expected to be like."""

    def __init__(self):
        super().__init__()
        self.server = ThreadedTCPServer(LOOPBACK, EchoHandler, drain_timeout=GUARD)
        self.address = self.server.server_address
        self.serving = self.closed = self.suspended = False
        self.limit = None
        self.clients = []

    def teardown(self):
        """Leave nothing."""
        report = self.server.stop()
        self.ended()
        assert report.clean

    def ended(self):
        """Find that every client's stream has ended."""
        for client in self.clients:
            assert receive_all(client) == b""
            client.close()
        self.clients.clear()
        self.serving = False
        stats = self.server.stats()
        assert (stats.live, stats.threads_busy, stats.threads_idle) == (0, 0, 0)

    def has_room(self):
        """Return whether a client would be let in at once."""
        return self.serving and not self.suspended and (self.limit is None or len(self.clients) < self.limit)

    @rule()
    def start(self):
        """Start, or be told why not."""
        try:
            self.server.start()
        except RuntimeError as error:
            assert self.closed and "closed" in str(error) or self.serving and "already" in str(error)
        else:
            assert not self.closed and not self.serving
            self.serving = True

    @rule(method=st.sampled_from(["stop", "server_close"]))
    def stop(self, method):
        """Stop for good; any number of times."""
        getattr(self.server, method)()
        self.closed = True
        self.ended()
        assert self.server.fileno() < 0

    @rule(again=st.booleans())
    def shutdown(self, again):
        """Stop, so that it can serve again."""
        self.server.shutdown()
        self.ended()
        assert (self.server.fileno() < 0) == self.closed
        if again and not self.closed:
            self.start()

    @rule()
    def suspend(self):
        """Accept nobody."""
        self.server.suspend()
        self.suspended = True

    @rule()
    def resume(self):
        """Accept again."""
        self.server.resume()
        self.suspended = False

    @rule(limit=st.one_of(st.none(), st.integers(1, 4)))
    def change_limit(self, limit):
        """Nobody who is there is disconnected."""
        self.server.max_clients = self.limit = limit

    @precondition(has_room)
    @rule()
    def connect(self):
        """Be let in, and be served."""
        client = socket.create_connection(self.address, GUARD)
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        self.clients.append(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data):
        """End the stream, and see the end of the other one, when the server has forgotten the client."""
        with self.clients.pop(data.draw(st.integers(0, len(self.clients) - 1))) as client:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        assert len(self.server.clients) == len(self.clients)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def disconnect(self, data):
        """Be disconnected by the server."""
        with self.clients.pop(data.draw(st.integers(0, len(self.clients) - 1))) as client:
            [number] = [number for number, found in self.server.clients.items()
                        if found.address == client.getsockname()]
            self.server.clients[number].disconnect()
            assert receive_all(client) == b""
        until(lambda: number not in self.server.clients)

    @invariant()
    def counts_add_up(self):
        """Everybody who was accepted is live, or has gone; who is there is served."""
        stats = self.server.stats()
        assert stats.accepted == stats.live + stats.finished + stats.refused
        assert stats.live == len(self.clients) and stats.failed == 0
        for client in self.clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


TestCalls = Calls.TestCase
TestCalls.settings = settings(deadline=None, max_examples=100, stateful_step_count=30, derandomize=True, database=None)
