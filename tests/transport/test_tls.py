"""A listener that a program has wrapped in TLS: its handshakes hold up nobody."""
from __future__ import annotations

import logging
import socket
import socketserver
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.transport import tls

from ..conftest import LOOPBACK
from ..tools import Echo, connect, receive_all

CERTIFICATE = Path(__file__).with_name("certificate.pem")


class TLSServer(ThreadedTCPServer):
    """Wraps its listening socket, as programs do."""

    def server_activate(self):
        """Wrap, and listen."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.socket.listen()


def connect_tls(server):
    """Connect with a handshake; the certificate is our own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    return context.wrap_socket(connect(server), server_hostname="localhost")


def test_client_that_never_shakes_hands_holds_up_nobody(serve):
    """Others are served meanwhile; a stop ends them all."""
    server = serve(Echo, TLSServer)
    with connect(server) as silent, connect_tls(server) as client:
        client.sendall(b"secret")
        assert client.recv(100) == b"secret" and len(server.clients) == 2
        report = server.stop()
        assert (report.drained, report.forced) == (2, 0)
        for connection in (client, silent):
            with suppress(ssl.SSLError):  # an alert: the stream ended without one
                receive_all(connection)


def test_client_that_speaks_no_tls_is_no_failure(serve, caplog):
    """A failed handshake is told at info level, with the client's number."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(Echo, TLSServer)
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        receive_all(client)
    server.stop()
    assert "client 1: its TLS handshake has failed" in caplog.text
    assert (server.stats().failed, server.stats().refused) == (0, 1)


def test_tls_client_that_vanishes_is_no_failure(serve, caplog):
    """An end without a close alert, in the middle of a record or not, is no error of ours."""
    server = serve(Echo, TLSServer)
    with connect_tls(server) as client:
        client.sendall(b"x")
        client.recv(1)
        with socket.socket(fileno=client.detach()) as plain:
            plain.sendall(b"\x17\x03\x03\x00\x20 half a record")
    server.stop()
    assert server.stats().failed == 0 and not caplog.records


def test_connection_that_cannot_be_wrapped_is_gone():
    """A connection reset before it was wrapped is told as such, and closed."""
    class Context:
        """Finds no peer."""

        options = 0

        def wrap_socket(self, connection, **keywords):
            """As ssl does."""
            raise OSError(22, "Invalid argument")

    class Listener(socket.socket):
        """A listening socket with such a context."""

        context = Context()

    with Listener() as listener:
        listener.bind(LOOPBACK)
        listener.listen()
        with connect(listener.getsockname()) as client:
            with pytest.raises(ConnectionAbortedError, match="Invalid argument"):
                tls.accept(listener)
            assert client.recv(1) == b""


def test_handler_that_reads_to_the_end_gets_its_reply_out_when_the_server_stops(serve):
    """The wake of a stop is an end of stream, on TLS as on TCP, and not a fatal error."""
    class Handler(socketserver.BaseRequestHandler):
        """Replies when its client's stream has ended."""

        def handle(self):
            """Read to the end, then reply."""
            received = b""
            while data := self.request.recv(100):
                received += data
                self.request.sendall(b"!")
            self.request.sendall(b"received " + received)

    server = serve(Handler, TLSServer)
    with connect_tls(server) as client:
        client.sendall(b"secret")
        assert client.recv(1) == b"!"
        report = server.stop()
        assert receive_all(client) == b"received secret"
    assert (report.drained, report.forced) == (1, 0) and server.stats().failed == 0


def test_other_sockets_are_no_tls():
    """Told apart without importing ssl, and left alone."""
    with socket.socket() as plain:
        assert tls.as_tls(plain) is None
        tls.shake_hands(plain)
    assert not tls.is_tls_error(OSError())
