"""What the kernel tells of a connection."""
from __future__ import annotations

import socket
import struct
import sys

import pytest

from threaded_echo.transport.tcp_info import read_stall, read_traffic

linux = pytest.mark.skipif(sys.platform != "linux", reason="the counts are Linux's")


@pytest.fixture
def pair():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            yield client, server


@linux
def test_bytes_are_counted_both_ways(pair):
    """The counts are exactly the bytes that passed."""
    client, server = pair
    assert read_traffic(server)[:2] == (0, 0)
    client.sendall(b"hello")
    server.recv(5, socket.MSG_WAITALL)
    server.sendall(b"abc")
    client.recv(3, socket.MSG_WAITALL)
    traffic = read_traffic(server)
    assert (traffic.received, traffic.sent) == (5, 3)
    assert 0 <= traffic.idle < 20


@linux
def test_bytes_that_the_peer_has_not_read_are_counted_as_sent(pair):
    """What waits in the kernel has been sent, as far as the program can tell."""
    client, server = pair
    server.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += server.send(b"x" * 65536)
    assert read_traffic(server).sent == sent


@linux
def test_end_of_stream_is_no_byte(pair):
    """The kernel counts the peer's end of stream as one byte more: we do not."""
    client, server = pair
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    while server.recv(10):
        pass
    assert read_traffic(server).received == 5


@linux
def test_reset_connection_keeps_its_counts(pair):
    """A client that resets is still counted."""
    client, server = pair
    client.sendall(b"hello")
    server.recv(5, socket.MSG_WAITALL)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert read_traffic(server).received == 5


def test_other_sockets_tell_nothing():
    """A Unix socket and a closed one have no such counts."""
    one, other = socket.socketpair()
    with one, other:
        assert read_traffic(one) is None
    assert read_traffic(one) is None


def test_other_platforms_tell_nothing(pair, monkeypatch):
    """Where the structure is not Linux's, nothing is read."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "plan9")
        assert read_traffic(pair[1]) is None


@linux
def test_old_kernel_tells_nothing(pair):
    """A shorter structure lacks the fields."""
    class Old(socket.socket):
        """As a kernel before 4.19."""

        def getsockopt(self, *arguments):
            """Return too little."""
            return super().getsockopt(*arguments)[:200]

    with Old(fileno=pair[1].detach()) as old:
        assert read_traffic(old) is None


class Racing(socket.socket):
    """A connection whose end of stream arrives while its counts are read: its state is told as it was before."""

    told = 0

    def getsockopt(self, *arguments):
        """Tell the first time that it is established."""
        raw = super().getsockopt(*arguments)
        self.told += 1
        return raw if self.told > 1 else b"\1" + raw[1:]


@linux
def test_end_of_stream_that_arrives_in_the_middle_is_no_byte(pair):
    """The kernel reads the state ahead of the counts: bytes never go back by one afterwards."""
    client, server = pair
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    while server.recv(10):
        pass
    with Racing(fileno=socket.dup(server.fileno())) as racing:
        assert read_traffic(racing).received == 5


@linux
def test_stall_is_known_while_something_is_undelivered(pair):
    """A peer that has taken everything stalls nothing, whatever it reads."""
    client, server = pair
    assert read_stall(server) is None
    server.sendall(b"hello")
    client.recv(5, socket.MSG_WAITALL)
    assert read_stall(server) is None
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            server.send(b"x" * 65536)
    assert 0 <= read_stall(server) < 20


def test_stall_is_not_known_elsewhere(pair, monkeypatch):
    """On another platform, and on a kernel whose structure is shorter."""
    class Short(socket.socket):
        """Of an old kernel."""

        def getsockopt(self, *arguments):
            """Return less."""
            return b"x" * 100

    if sys.platform == "linux":
        with Short() as connection:
            assert read_stall(connection) is None
    monkeypatch.setattr(sys, "platform", "other")
    assert read_stall(pair[1]) is None
