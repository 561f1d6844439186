"""A listener that a program has wrapped in TLS: its handshakes hold up nobody."""
from __future__ import annotations

import logging
import socket
import socketserver
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from threaded_echo import ThreadedTCPServer, current_client
from threaded_echo.transport import tls

from ..conftest import LOOPBACK
from ..tools import Echo, connect, receive, receive_all, until

CERTIFICATE = Path(__file__).with_name("certificate.pem")


def server_context():
    """Make the context of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


class TLSServer(ThreadedTCPServer):
    """Wraps its listening socket, as programs do."""

    def server_activate(self):
        """Wrap, and listen."""
        self.socket = server_context().wrap_socket(self.socket, server_side=True)
        self.socket.listen()


def connect_tls(server, version=ssl.TLSVersion.TLSv1_3):
    """Connect with a handshake, of at most that version."""
    return wrap_tls(connect(server), version)


def wrap_tls(connection, version=ssl.TLSVersion.TLSv1_3):
    """Shake hands on a connection; the certificate is our own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    context.load_verify_locations(CERTIFICATE)
    return context.wrap_socket(connection, server_hostname="localhost")


def test_client_that_never_shakes_hands_holds_up_nobody(serve):
    """Others are served meanwhile, and a stop ends them all."""
    server = serve(Echo, TLSServer)
    with connect(server) as silent, connect_tls(server) as client:
        client.sendall(b"secret")
        assert client.recv(100) == b"secret" and len(server.clients) == 2
        report = server.stop()
        assert (report.drained, report.forced) == (2, 0)
        for connection in (client, silent):
            with suppress(ssl.SSLError):  # an alert: the stream ended without one
                receive_all(connection)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handler_that_reads_to_the_end_replies_after_a_stop(serve, version):
    """The end of stream that a stop makes keeps nothing from being sent, as on TCP; the client has not failed."""
    class Count(socketserver.StreamRequestHandler):
        """Says that it reads, and replies with how much that was."""

        def handle(self):
            """Read to the end."""
            self.wfile.write(b"ready")
            self.wfile.write(b"%d bytes" % len(self.rfile.read()))

    server = serve(Count, TLSServer)
    with connect_tls(server, version) as client:
        assert receive(client, 5) == b"ready"
        client.sendall(b"12345")
        server.stop()
        assert receive(client, 7) == b"5 bytes"
    assert server.stats().failed == 0


def test_verify_request_sees_a_client_that_has_shaken_hands(serve):
    """It may ask for the certificate, as on socketserver's own server; a client that it refuses is counted."""
    versions = []

    class Server(TLSServer):
        """Refuses the second client."""

        def verify_request(self, request, client_address):
            """Keep what TLS says."""
            versions.append(request.version())
            return len(versions) == 1

    server = serve(Echo, Server)
    with connect_tls(server) as client, connect_tls(server) as other:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and receive_all(other) == b""
    server.stop()
    assert versions == ["TLSv1.3"] * 2 and server.stats().refused == 1


def test_client_that_speaks_no_tls_is_no_failure(serve, caplog):
    """A failed handshake is logged at info level, with the client's number."""
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
    """A connection that was reset before it could be wrapped is a ConnectionAbortedError, and is closed."""
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


def test_other_sockets_are_no_tls():
    """They are told apart without importing ssl, and left alone."""
    with socket.socket() as plain:
        assert tls.as_tls(plain) is None
        tls.shake_hands(plain)
    assert not tls.is_tls_error(OSError())


def test_verify_request_sees_a_tls_client_after_its_handshake(serve):
    """As on socketserver's own servers, it may look at the client's certificate; it is asked once."""
    seen = []

    class Server(TLSServer):
        """Refuses the second client."""

        def verify_request(self, request, client_address):
            """Look."""
            seen.append((request.version() is not None, current_client().number))
            return len(seen) == 1

    server = serve(Echo, Server)
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        with connect_tls(server) as refused, suppress(ssl.SSLError, ConnectionError):
            assert receive_all(refused) == b""
    server.stop()
    assert seen == [(True, 1), (True, 2)]
    assert (server.stats().refused, server.stats().finished) == (1, 1)


def test_verify_request_that_fails_after_a_handshake_costs_its_client_only(serve, caplog):
    """The error is handled as any other of that client."""
    class Server(TLSServer):
        """Fails for the first client."""

        def verify_request(self, request, client_address):
            """Fail."""
            if current_client().number == 1:
                raise ZeroDivisionError("its certificate")
            return True

    server = serve(Echo, Server)
    with connect_tls(server) as client, suppress(ssl.SSLError, ConnectionError):
        assert receive_all(client) == b""
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    server.stop()
    assert "client 1: its handler has failed" in caplog.text and "ZeroDivisionError: its certificate" in caplog.text
    assert server.stats().failed == 1


def test_send_of_another_thread_before_the_handshake_raises_and_nothing_goes_out(serve):
    """It would go out in the clear. After the handshake it works."""
    server = serve(Echo, TLSServer)
    with connect(server) as plain:
        until(lambda: server.clients and server.clients[1].state == "handshaking")
        client = server.clients[1]
        with pytest.raises(ConnectionAbortedError, match="client 1: its TLS handshake is not done yet"):
            client.send(b"in the clear")
        with wrap_tls(plain) as secure:
            secure.sendall(b"x")
            assert secure.recv(1) == b"x"
            client.send(b"not in the clear")
            assert receive(secure, 16) == b"not in the clear"


def test_handshake_of_a_connection_that_a_program_has_wrapped_itself_may_fail(serve, caplog):
    """It is done before the handler runs, which does not run then; the client is no failure."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    ran = []

    class Server(ThreadedTCPServer):
        """Wraps each connection in the handler's thread."""

        def finish_request(self, request, client_address):
            """Wrap, and leave the handshake to whoever reads first."""
            with server_context().wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secure:
                super().finish_request(secure, client_address)

    class Handler(Echo):
        """Says that it has run."""

        def setup(self):
            """Note it."""
            ran.append(current_client().number)

    server = serve(Handler, Server)
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(ConnectionError):
            receive_all(client)
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    server.stop()
    assert ran == [2] and "client 1: its TLS handshake has failed" in caplog.text and server.stats().failed == 0


def test_handshake_outside_any_client_may_fail(caplog):
    """A program serves what it has accepted and wrapped by itself."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        request, address = server.socket.accept()
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with server_context().wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secure:
            server.finish_request(secure, address)
    assert "its TLS handshake has failed" in caplog.text


def test_listener_that_takes_a_ragged_end_for_an_error_is_left_as_it_is(serve):
    """A program that wants to know of every end without a close alert still does."""
    class Server(ThreadedTCPServer):
        """Wraps its listening socket, and wants to know."""

        def server_activate(self):
            """Wrap, and listen."""
            self.socket = server_context().wrap_socket(self.socket, server_side=True, suppress_ragged_eofs=False)
            self.socket.listen()

    server = serve(Echo, Server)
    options = server.socket.context.options
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert server.socket.context.options == options
        with suppress(ssl.SSLError):  # the handler closes without an alert of its own
            client.unwrap()


def test_client_above_the_limit_is_sent_no_byte_in_the_clear(serve):
    """It is closed without the reply, which only TLS could carry; its handshake would hold up others."""
    server = serve(Echo, TLSServer, max_clients=1, at_limit="refuse", limit_reply=b"secret")
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        with connect(server) as refused:
            assert receive_all(refused) == b""
    server.stop()
    assert server.stats().refused_by == {"limit": 1}
