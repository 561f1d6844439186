"""The statistics of a server."""
from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys

import pytest

from threaded_echo import ClientHandler, ServerStats, ThreadedTCPServer, current_client
from threaded_echo.observe.stats import Counts

from ..conftest import LOOPBACK
from ..tools import Echo, ask, connect, receive, receive_all


def test_fields_are_those_of_the_contract():
    """And the histograms."""
    assert [field.name for field in dataclasses.fields(ServerStats)] == [
        "accepted", "refused", "live", "peak", "finished", "failed", "accept_errors", "bytes_received", "bytes_sent",
        "threads_busy", "threads_idle", "offloads_running", "offloads_waiting", "offloads_done", "offloads_failed",
        "offload_wait", "offload_run", "seconds_up", "disconnected", "refused_by", "durations"]


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


def test_reasons_are_counted_of_the_refused_and_of_those_that_the_server_has_ended(serve):
    """A client that leaves by itself has no reason, and one that a stop ends has."""
    class Server(ThreadedTCPServer):
        """Refuses the second."""

        def verify_request(self, request, client_address):
            """Count."""
            return current_client().number != 2

    class Handler(ClientHandler):
        """Disconnects who says so."""

        def process(self, data):
            """Do it, or echo."""
            if data == b"disconnect":
                self.client.disconnect()
            return data

    server = serve(Handler, Server)
    assert ask(server) == b"ping\n"
    assert ask(server, b"") == b""
    with connect(server) as third, connect(server) as fourth:
        third.sendall(b"disconnect")
        receive_all(third)
        fourth.sendall(b"x")
        receive(fourth, 1)
        server.stop()
    stats = server.stats()
    assert (stats.refused_by, stats.disconnected) == ({"verify": 1}, {"disconnect": 1, "stop": 1})
    assert stats.refused_by["limit"] == 0 and "limit" not in stats.refused_by
    assert (stats.finished, stats.refused) == (3, 1)


def test_counts_by_reason_are_read_only_and_copied_like_a_dict():
    """For JSON and other processes, too; a snapshot is still hashable."""
    counts = Counts(stop=2)
    for change in (lambda: counts.update(stop=3), lambda: counts.pop("stop"), counts.clear, counts.popitem,
                   lambda: counts.setdefault("idle", 1), lambda: counts.__setitem__("idle", 1),
                   lambda: counts.__delitem__("stop"), lambda: counts.__ior__({"idle": 1})):
        with pytest.raises(TypeError, match="read-only"):
            change()
    assert counts == copy.deepcopy(counts) == pickle.loads(pickle.dumps(counts)) == {"stop": 2}
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        stats = server.stats()
        assert json.loads(json.dumps(dataclasses.asdict(stats)))["refused_by"] == {}
        assert hash(stats) == hash(copy.copy(stats))
