"""The client: what it tells about itself, what programs may do with it, and every step of its life."""
from __future__ import annotations

import socket
import sys
import threading
from datetime import datetime, timedelta, timezone

import pytest

from threaded_echo import ThreadedUnixStreamServer

from ..tools import Echo, Gate, connect, receive, receive_all, wait_until
from .conftest import make


def test_client_tells_about_itself(serve):
    """It has a number, an address, a thread, an age, a state, a time and its traffic."""
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
    """If the kernel cannot tell, they are None, and so they are in the statistics."""
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
    """The other one is not touched, a second call changes nothing, and a client that has gone is left alone."""
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
    """The handler goes on until it uses its connection, and its client is "disconnecting" until then."""
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
    """It is a ConnectionError, which names the client by its number."""
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


# Every step of a client's life: what it is called with, and what becomes of (state, reason, outcome).

THREAD = threading.main_thread()
STEPS = {
    "begin": lambda client: client._begin(THREAD, "serving"),
    "shake hands": lambda client: client._begin(THREAD, "handshaking"),
    "serve": lambda client: client._move("serving"),
    "compute": lambda client: client._move("computing"),
    "wake": lambda client: client._wake(),
    "disconnect": lambda client: client.disconnect(),
    "cut": lambda client: client._cut("stop"),
    "refuse": lambda client: client._refuse("verify"),
    "fail": lambda client: client._fail(),
    "no thread": lambda client: client._fail("thread"),
    "end": lambda client: client._end(),
}


def take(client, steps):
    """Take a client through steps; return its state, its reason and its outcome after the last one."""
    for step in steps:
        STEPS[step](client)
    return client.state, client.reason, client._outcome


@pytest.mark.parametrize("steps, expected", [
    ([], ("accepted", None, None)),
    (["begin"], ("serving", None, None)),
    (["shake hands"], ("handshaking", None, None)),
    (["shake hands", "serve"], ("serving", None, None)),
    (["begin", "compute"], ("computing", None, None)),
    (["begin", "compute", "serve"], ("serving", None, None)),
    (["begin", "end"], ("gone", None, "finished")),
    (["end"], ("gone", None, "finished")),
    (["begin", "fail"], ("serving", None, "failed")),
    (["begin", "fail", "end"], ("gone", None, "failed")),
    (["no thread"], ("accepted", "thread", "failed")),
    (["no thread", "end"], ("gone", "thread", "failed")),
    (["refuse"], ("accepted", "verify", "refused")),
    (["shake hands", "refuse", "end"], ("gone", "verify", "refused")),
    (["refuse", "fail"], ("accepted", "verify", "refused")),  # what its closing raises does not make it a failure
    (["fail", "no thread"], ("accepted", "thread", "failed")),
])
def test_client_that_the_server_does_not_end_goes_from_phase_to_phase(pair, steps, expected):
    """Its outcome is settled once."""
    client = pair[1]
    assert take(client, steps) == expected
    client._end()


@pytest.mark.parametrize("before", [[], ["begin"], ["shake hands"], ["begin", "compute"]])
def test_wake_leaves_the_phase_and_tells_the_reason(pair, before):
    """The handler goes on until it meets the end of its stream; `compute` and `serve` still take turns."""
    client = pair[1]
    phase = take(client, before)[0]
    assert take(client, ["wake"]) == (phase, "stop", None)
    assert take(client, ["compute"])[0] == "computing"
    assert take(client, ["serve"])[0] == "serving"
    assert take(client, ["end"]) == ("gone", "stop", "finished")


@pytest.mark.parametrize("before", [[], ["begin"], ["shake hands"], ["begin", "compute"]])
@pytest.mark.parametrize("step, reason", [("disconnect", "disconnect"), ("cut", "stop")])
def test_disconnecting_client_has_no_way_back(pair, before, step, reason):
    """Whatever its handler does next, it stays there until it has gone; its first reason stays, too."""
    client = pair[1]
    take(client, before)
    assert take(client, [step]) == ("disconnecting", reason, None)
    for way in ("begin", "shake hands", "serve", "compute", "wake", "disconnect", "cut"):
        assert take(client, [way]) == ("disconnecting", reason, None), way
    assert client.thread is THREAD, "its thread is known all the same: the stop has to find it"
    assert take(client, ["refuse"]) == ("disconnecting", reason, "refused")
    assert take(client, ["end"]) == ("gone", reason, "refused")


def test_reason_is_the_first_one(pair):
    """A client that was woken by a stop is not disconnected for another reason afterwards."""
    client = pair[1]
    assert take(client, ["begin", "wake", "disconnect"]) == ("disconnecting", "stop", None)
    assert take(client, ["refuse"])[1] == "stop"
    client._end()


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("refuse", "fail", "no thread", "end")])
def test_client_that_has_gone_stays_as_it_was(pair, step):
    """It has no thread, takes no reason, and cannot go twice."""
    client = pair[1]
    client._begin(THREAD, "serving")
    assert client._end() is True
    age = client.age
    assert take(client, [step]) == ("gone", None, "finished")
    assert client._end() is False
    assert client.thread is None and client.age == age


def test_end_of_stream_is_the_clients_own_if_it_came_first(pair):
    """That decides whether the last line, which has no end, is whole."""
    outer, client = pair
    assert client._has_ended_its_stream(), "whoever asks has seen an end of stream, and the server has ended nothing"
    if sys.platform == "linux":
        outer.shutdown(socket.SHUT_WR)
        assert client._connection.request.recv(1) == b""
        client._wake()
        client.disconnect()
        assert client._has_ended_its_stream()
    client._end()


@pytest.mark.parametrize("step", ["wake", "disconnect", "cut"])
def test_end_of_stream_is_the_servers_if_the_client_has_ended_nothing(pair, step):
    """What the client sends afterwards changes nothing."""
    outer, client = pair
    STEPS[step](client)
    assert not client._has_ended_its_stream()
    outer.shutdown(socket.SHUT_WR)
    STEPS["disconnect"](client)
    assert not client._has_ended_its_stream()
    client._end()


def test_send_that_failed_half_way_makes_every_later_one_raise(pair):
    """The client may have a part of the message, in the middle of which the next one must not go on."""
    outer, client = pair
    client._connection.request.settimeout(0.01)
    with pytest.raises(TimeoutError):
        client.send(b"x" * 100_000_000)
    client._connection.request.settimeout(20)
    for _ in range(2):
        with pytest.raises(ConnectionAbortedError, match="client 1: an earlier send has failed"):
            client.send(b"y")
    client.disconnect()
    assert b"y" not in receive_all(outer)
    client._end()


@pytest.mark.parametrize("data, error", [("text", TypeError), (memoryview(b"a-b-")[::2], BufferError)])
def test_send_of_what_is_not_bytes_is_an_error_and_nothing_else(pair, data, error):
    """Nothing was sent, and the next send works."""
    outer, client = pair
    with pytest.raises(error):
        client.send(data)
    client.send(b"bytes")
    assert receive(outer, 5) == b"bytes"
    client._end()


def test_send_to_a_client_that_has_reset_raises_the_systems_error(pair):
    """The error is the one that the handler itself would meet."""
    outer, client = pair
    client._connection.request.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError) as raised:
        client.send(b"x")
    assert raised.value.errno is not None
    client._end()
