"""The client: what it tells about itself, what programs may do with it, and every step of its life."""
from __future__ import annotations

import sys
import threading
from datetime import datetime, timedelta, timezone

import pytest

from threaded_echo import ThreadedUnixStreamServer

from ..tools import Echo, Gate, connect, receive, receive_all, wait_until
from .conftest import make


def test_client_tells_about_itself(serve):
    """Number, address, thread, age, state, time and traffic."""
    server = serve(Echo)
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    with connect(server) as connection:
        connection.sendall(b"hello")
        receive(connection, 5)
        client = server.clients[1]
        assert (client.number, client.address, client.state) == (1, connection.getsockname(), "serving")
        assert before < client.connected_at < datetime.now(timezone.utc) + timedelta(seconds=1)
        assert client.thread in threading.enumerate()
        assert 0 <= client.age < 20
        assert repr(client) == f"<Client 1 serving {client.address!r}>"
        if sys.platform == "linux":
            assert (client.bytes_received, client.bytes_sent) == (5, 5)
            assert 0 <= client.idle < 20
    server.stop()
    assert (client.state, client.thread) == ("gone", None)
    assert client.age == (age := client.age) and age < 20, "the time that it stayed"
    if sys.platform == "linux":
        assert (client.bytes_received, client.bytes_sent) == (5, 5), "its last counts stay"


def test_client_on_a_unix_socket_has_no_counts(tmp_path):
    """Where the kernel cannot tell, it is None, in the statistics too."""
    path = str(tmp_path / "socket")
    with ThreadedUnixStreamServer(path, Echo).start() as server, connect(server) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        client = server.clients[1]
        assert (client.bytes_received, client.bytes_sent, client.idle) == (None, None, None)
        assert server.stats().bytes_received is server.stats().bytes_sent is None
        client.disconnect()
        assert receive_all(connection) == b""


def test_disconnect_ends_one_client_only(serve):
    """The other one is not touched; twice is as good as once; a gone client is left alone."""
    server = serve(Echo)
    with connect(server) as one, connect(server) as two:
        for connection in (one, two):
            connection.sendall(b"x")
            connection.recv(1)
        by_address = {client.address: client for client in server.clients.values()}
        first = by_address[one.getsockname()]
        first.disconnect()
        first.disconnect()
        assert receive_all(one) == b""
        two.sendall(b"y")
        assert two.recv(1) == b"y"
    server.stop()
    first.disconnect()
    first._wake()
    assert first.reason == "disconnect"
    assert server.stats().failed == 0


def test_disconnect_of_a_busy_handler_says_so(serve):
    """A handler that is elsewhere goes on until it comes to its connection."""
    gate = Gate(lambda handler: handler.request.sendall(b"x" * 10_000_000))
    server = serve(gate.handler)
    with connect(server) as connection:
        wait_until(gate.entered)
        client = server.clients[1]
        client.disconnect()
        assert receive_all(connection) == b"" and client.state == "disconnecting"
        gate.release.set()
    server.stop()
    assert server.stats().failed == 0, "that its send failed is no failure"


def test_send_to_a_gone_client_raises(serve):
    """A ConnectionError, with its number."""
    server = serve(Echo)
    with connect(server) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        client = server.clients[1]
        client.send(b"from outside")
        assert receive(connection, 12) == b"from outside"
    server.stop()
    with pytest.raises(ConnectionError, match="client 1: the client has gone"):
        client.send(b"x")


def test_datagram_has_no_connection_to_shut():
    """A request that is no socket is numbered, and nothing else."""
    client = make((b"data", None), ("127.0.0.1", 9))
    client._wake()
    client.disconnect()
    assert client._connection.traffic() is None and client.state == "disconnecting" and client._connection.is_lost()
