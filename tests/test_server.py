"""The concrete servers, and the mix-in over other kinds of server."""
from __future__ import annotations

import socket
import socketserver

import pytest

from threaded_echo import EchoHandler, ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer, current_client

from .conftest import LOOPBACK
from .tools import Echo, ask


def test_server_is_one_of_socketservers():
    """Programs and type checks see what they know."""
    assert issubclass(ThreadedTCPServer, socketserver.ThreadingTCPServer)
    assert issubclass(ThreadedUnixStreamServer, socketserver.ThreadingUnixStreamServer)
    with ThreadedTCPServer(LOOPBACK) as server:
        assert server.RequestHandlerClass is EchoHandler


def test_unix_server_serves(tmp_path):
    """It takes the options as keywords, as the TCP server does."""
    path = str(tmp_path / "socket")
    with ThreadedUnixStreamServer(path, EchoHandler, drain_timeout=1).start() as server:
        assert ask(server) == b"ping\n" and server.server_address == path


def test_datagrams_are_served(serve):
    """Each datagram of a UDP server is a client with a number, and has no connection to wake."""
    class Handler(socketserver.DatagramRequestHandler):
        """Replies with its number."""

        def handle(self):
            """Reply."""
            self.wfile.write(b"%d" % current_client().number)

    server_class = type("Server", (ThreadedMixIn, socketserver.ThreadingUDPServer), {})
    with server_class(LOOPBACK, Handler).start() as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        for number in (b"1", b"2"):
            client.sendto(b"?", server.server_address)
            assert client.recv(100) == number


def test_bind_error_leaves_nothing():
    """For a port that is taken or out of range, or an address of somebody else, the system's own error is raised."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        with pytest.raises(OSError, match="in use"):
            ThreadedTCPServer(server.server_address, Echo)
    with pytest.raises(OverflowError, match="port"):
        ThreadedTCPServer(("127.0.0.1", 70000), Echo)
    with pytest.raises(OSError, match="assign"):
        ThreadedTCPServer(("192.0.2.1", 0), Echo)
