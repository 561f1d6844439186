"""TLS by the option `ssl_context`: through every hook of socketserver, and to a clean end."""
from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import struct
from contextlib import suppress

import pytest

from threaded_echo import ClientHandler, EchoHandler, ThreadedTCPServer, current_client
from threaded_echo.transport import tls

from .conftest import LOOPBACK
from .overrides import (InOwnThread, InPool, InPoolByFinishRequest, OwnAccept, OwnClose, OwnFinish, OwnShutdown,
                        OwnThreadBody, OwnThreadBodyThatClosesByItself, OwnVerify)
from .tools import Echo, Gate, ask, connect, receive, receive_all, running, subclass, until, wait_until
from .transport.test_certificates import RENEWED, name_of
from .transport.test_tls import CERTIFICATE, connect_tls, server_context, wrap_tls

OVERRIDES = [InPool, InPoolByFinishRequest, InOwnThread, OwnThreadBody, OwnFinish, OwnShutdown, OwnClose, OwnAccept,
             OwnVerify]


def strict(server):
    """Connect with TLS, in a way that tells an end of stream without a close_notify by an error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    return context.wrap_socket(connect(server), server_hostname="localhost", suppress_ragged_eofs=False)


def test_client_is_served_by_tls_and_says_which(serve):
    """Version, cipher and protocol are there before the handler, and after the client has gone."""
    connected, context = [], server_context()
    context.set_alpn_protocols(["echo"])
    server = serve(EchoHandler, subclass(client_connected=lambda server, client: connected.append(client.tls)),
                   ssl_context=context)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.load_verify_locations(CERTIFICATE)
    theirs.set_alpn_protocols(["other", "echo"])
    with theirs.wrap_socket(connect(server), server_hostname="localhost") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        known = server.clients[1]
        cipher = client.cipher()[0]
    server.stop()
    assert connected == [known.tls] and known.state == "gone" and hash(known.tls)
    assert (known.tls.version, known.tls.cipher, known.tls.alpn, known.tls.certificate) == (
        "TLSv1.3", cipher, "echo", None)


def test_client_without_tls_has_no_details(serve):
    """Nothing was agreed on."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and server.clients[1].tls is None


def test_client_of_a_wrapped_connection_has_its_details(serve):
    """The program has wrapped it in the handler's thread, and shaken hands there."""
    class Server(ThreadedTCPServer):
        """Wraps each connection."""

        def finish_request(self, request, client_address):
            """Run the handler on a TLS connection."""
            with server_context().wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)

    server = serve(Echo, Server)
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and server.clients[1].tls.version == "TLSv1.3"


def test_client_with_whom_get_request_has_shaken_hands_has_its_details(serve):
    """It has accepted in its own way, before anybody else knew of the client."""
    class Server(ThreadedTCPServer):
        """Shakes hands at once."""

        def get_request(self):
            """Accept."""
            request, address = super().get_request()
            return server_context().wrap_socket(request, server_side=True), address

    server = serve(Echo, Server)
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and server.clients[1].tls.version == "TLSv1.3"
        server.clients[1].send(b"y")
        assert client.recv(1) == b"y"


def test_client_with_whom_process_request_has_shaken_hands_can_be_sent_to(serve):
    """By a send, a broadcast and a reply: what kept them from going out ahead of the handshake is taken away."""
    class Server(ThreadedTCPServer):
        """Shakes hands when the server knows of the client, and ahead of its thread."""

        def process_request(self, request, client_address):
            """Serve a client."""
            request.do_handshake()
            super().process_request(request, client_address)

    server = serve(EchoHandler, Server, ssl_context=server_context())
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and server.clients[1].tls.version == "TLSv1.3"
        server.clients[1].send(b"y")
        assert server.broadcast(b"z") == ()
        assert receive(client, 2) == b"yz"


def test_send_to_a_wrapped_connection_waits_for_nothing_until_the_handshake_is_done(serve):
    """It raises; else it would take part in the handshake."""
    class Server(ThreadedTCPServer):
        """Wraps each connection in the handler's thread."""

        def finish_request(self, request, client_address):
            """Wrap, and leave the handshake to whoever reads first."""
            with server_context().wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secure:
                super().finish_request(secure, client_address)

    server = serve(Echo, Server)
    with connect(server) as plain:
        until(lambda: server.clients and tls.as_tls(server.clients[1]._connection.request))
        with pytest.raises(ConnectionAbortedError, match="its TLS handshake is not done yet"):
            server.clients[1].send(b"too early")
        with wrap_tls(plain) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            server.clients[1].send(b"y")
            assert client.recv(1) == b"y"


@pytest.mark.parametrize("base", OVERRIDES)
def test_hook_of_a_program_gets_the_tls_socket(serve, base):
    """Whatever it overrides, clients are served, get a close_notify, and are gone at the stop."""
    server = serve(Echo, type("Server", (base, ThreadedTCPServer), {}), ssl_context=server_context())
    with strict(server) as client, strict(server) as other:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        client.unwrap().close()
        other.sendall(b"x")
        assert other.recv(1) == b"x"
        assert server.stop().clean
        assert receive_all(other) == b""
    assert server.told and server.stats().finished == 2


def test_hook_that_closes_by_itself_leaves_nothing(serve):
    """It may end the connection before anything here could say goodbye."""
    server = serve(Echo, type("Server", (OwnThreadBodyThatClosesByItself, ThreadedTCPServer), {}),
                   ssl_context=server_context())
    with connect_tls(server) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        assert server.stop().clean and receive_all(client) == b""


def test_loop_on_handle_request_serves_by_tls():
    """The handshake is not in its way: the call returns before it."""
    with ThreadedTCPServer(LOOPBACK, Echo, ssl_context=server_context()) as server, connect(server) as plain:
        server.handle_request()
        with wrap_tls(plain) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_connection_that_a_program_has_accepted_itself_is_wrapped():
    """It hands that to process_request."""
    with ThreadedTCPServer(LOOPBACK, Echo, ssl_context=server_context()) as server, connect(server) as plain:
        server.process_request(*server.socket.accept())
        with wrap_tls(plain) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_request_that_is_no_socket_is_turned_away(serve, caplog):
    """It cannot be wrapped, and must not be served in the clear."""
    caplog.set_level(logging.DEBUG, logger="threaded_echo")
    turned_away = []

    class Server(ThreadedTCPServer):
        """Returns something of its own, once."""

        def get_request(self):
            """Accept."""
            request, address = super().get_request()
            if turned_away:
                return request, address
            turned_away.append(request)
            request.close()
            return "no socket", address

    server = serve(Echo, Server, ssl_context=server_context())
    with connect(server) as client:
        assert receive_all(client) == b""
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert "'no socket' is no socket" in caplog.text


@pytest.mark.parametrize(("value", "error"), [
    ("certificate.pem", TypeError), (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ValueError)])
def test_wrong_context_is_told(value, error):
    """It is checked where it is given."""
    with pytest.raises(error, match="ssl_context"):
        ThreadedTCPServer(LOOPBACK, Echo, ssl_context=value)


def test_server_of_datagrams_takes_no_context():
    """It is told as serving begins."""
    server_class = type("Server", (ThreadedTCPServer,), {"socket_type": socket.SOCK_DGRAM, "ssl_context":
                                                         server_context()})
    with server_class(LOOPBACK, Echo, bind_and_activate=False) as server:
        with pytest.raises(ValueError, match="ssl_context needs a server of streams"):
            server.start()


def test_context_that_is_replaced_is_for_new_clients(serve):
    """For a certificate with a key of another kind, for example."""
    server = serve(Echo, ssl_context=server_context())
    with connect_tls(server) as client:
        renewed = server_context()
        renewed.load_cert_chain(RENEWED)
        server.ssl_context = renewed
        assert name_of(server) == "renewed"
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_nothing_is_sent_in_the_clear_before_the_handshake(serve):
    """From the moment when a client can be seen, a send of another thread raises."""
    server = serve(Echo, ssl_context=server_context())
    with connect(server) as plain:
        until(lambda: server.clients)
        with pytest.raises(ConnectionAbortedError, match="client 1: its TLS handshake is not done yet"):
            server.clients[1].send(b"in the clear")
        with wrap_tls(plain) as secure:
            until(lambda: server.clients[1].state == "serving")
            server.clients[1].send(b"not in the clear")
            assert receive(secure, 16) == b"not in the clear"


def test_stalled_handshakes_hold_up_nobody_and_a_stop_ends_them(serve):
    """One client says nothing, another half a record; the stop cuts neither, and sends nothing in the clear."""
    server = serve(Echo, ssl_context=server_context())
    with connect(server) as silent, connect(server) as half, strict(server) as client:
        half.sendall(b"\x16\x03\x01\x02")
        client.sendall(b"x")
        assert client.recv(1) == b"x" and len(server.clients) == 3
        until(lambda: {client.state for client in server.clients.values()} == {"handshaking", "serving"})
        report = server.stop()
        assert (report.drained, report.forced) == (3, 0)
        assert receive_all(client) == b""
        for connection in (silent, half):
            with suppress(ConnectionError):
                assert receive_all(connection)[:1] in (b"", b"\x15"), "nothing but an alert"
    assert server.stats().failed == 0


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("opening", [b"GET / HTTP/1.0\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(100), b""])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_broken_handshake_costs_its_client_only(serve, caplog, opening, leave):
    """Garbage, an end of stream or a reset is logged with the client's number, and is no failure of a handler."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(Echo, ssl_context=server_context())
    with connect_tls(server) as other:
        client = connect(server)
        until(lambda: server.stats().accepted == 2)
        client.sendall(opening)
        leave(client)
        other.sendall(b"x")
        assert other.recv(1) == b"x"
        until(lambda: server.stats().refused == 1)
        other.sendall(b"y")
        assert other.recv(1) == b"y"
    server.stop()
    assert server.stats().failed == 0 and "client 2: its TLS handshake has failed" in caplog.text


def test_handler_replies_after_a_stop_and_says_goodbye(serve):
    """Nothing of it goes out in the clear: the client reads the reply, then a close_notify."""
    gate = Gate(lambda handler: handler.request.sendall(b"the reply"))
    server = serve(gate.handler, ssl_context=server_context())
    stopping = server.stopping
    with strict(server) as client:
        wait_until(gate.entered)
        with running(server.stop):
            wait_until(stopping)
            gate.release.set()
            assert receive_all(client) == b"the reply"


def test_client_that_verify_request_has_refused_gets_a_close_notify(serve):
    """It has shaken hands by then, and was told nothing."""
    server = serve(Echo, subclass(verify_request=lambda *arguments: False), ssl_context=server_context())
    with strict(server) as client:
        assert receive_all(client) == b""


def test_goodbye_to_a_client_that_reads_nothing_does_not_wait(serve):
    """There is no room for it; the thread serves its next client."""
    class Fill(ClientHandler):
        """Sends until the kernel takes no more."""

        def handle(self):
            """Fill."""
            if current_client().number > 1:
                return super().handle()
            self.request.setblocking(False)
            with suppress(ssl.SSLWantWriteError):
                while True:
                    self.request.send(bytes(65536))

        def process(self, data):
            """Echo."""
            return data

    server = serve(Fill, ssl_context=server_context())
    with connect_tls(server):
        until(lambda: server.stats().finished)
        with connect_tls(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    assert server.stats().failed == 0


def test_client_that_leaves_in_the_middle_of_a_send_is_cut(serve):
    """Another thread sends to a client that reads nothing, and its handler ends: no goodbye, and no wait for it."""
    sent = []

    def flood():
        with suppress(OSError):
            while True:
                server.clients[1].send(bytes(65536))
                sent.append(None)

    gate = Gate()
    server = serve(gate.handler, ssl_context=server_context())
    with connect_tls(server):
        wait_until(gate.entered)
        connection = server.clients[1]._connection
        with running(flood):
            until(lambda: sent and connection.sending.locked())
            gate.release.set()
    server.stop()
    assert server.stats().finished == 1


def test_goodbye_is_left_out_where_the_handler_has_unwrapped_or_closed(serve):
    """Nothing of TLS is left by then."""
    class Unwrap(socketserver.BaseRequestHandler):
        """Ends TLS by itself."""

        def handle(self):
            """Unwrap, and for the second client close."""
            if current_client().number > 1:
                return self.request.close()
            self.request.unwrap().sendall(b"plain")

    server = serve(Unwrap, ssl_context=server_context())
    with connect_tls(server) as client, client.unwrap() as plain:
        assert receive(plain, 5) == b"plain"
    with connect_tls(server) as client:
        assert receive_all(client) == b""
    server.stop()
    assert server.stats().failed == 0


def test_data_of_a_client_is_its_own_and_stays():
    """A dict, made when the program first asks for it."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server), connect(server):
        for _ in range(2):
            server.handle_request()
        first, second = server.clients.values()
        first.data["name"] = "Ada"
        assert (first.data, second.data) == ({"name": "Ada"}, {})
    assert first.state == "gone" and first.data == {"name": "Ada"}


@pytest.mark.parametrize("wrong", ["cert.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)])
def test_wrong_context_assigned_to_a_server_that_serves_costs_who_comes(serve, caplog, monkeypatch, wrong):
    """It is said in the log; a right one is used again."""
    monkeypatch.setattr("threaded_echo.accepting.failures.BACK_OFF", 0.001)
    server = serve(Echo)
    assert ask(server) == b"ping\n"
    server.ssl_context = wrong
    with connect(server) as client:
        assert receive_all(client) == b""
    server.ssl_context = None
    assert ask(server) == b"ping\n"
    assert "a client could not be accepted: [Errno 22] ssl_context must be " in caplog.text
    assert server.stats().accept_errors == 1
