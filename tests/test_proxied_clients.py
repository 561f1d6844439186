"""Clients behind a proxy, by the option `proxy_protocol`: their addresses, their order of steps, and who is refused."""
from __future__ import annotations

import errno
import logging
import socket
import socketserver
import sys
from contextlib import ExitStack

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer, current_client

from .conftest import LOOPBACK
from .overrides import ABOVE_ONLY, EITHER_SIDE
from .tools import Echo, ask, connect, receive, receive_all, subclass, until
from .transport.test_proxy_protocol import IPV4, v2
from .transport.test_tls import server_context, wrap_tls

HEADER = b"PROXY TCP4 192.0.2.1 127.0.0.1 1234 80\r\n"
REAL = ("192.0.2.1", 1234)


class Where(socketserver.BaseRequestHandler):
    """Replies with its client's address, as the handler was given it, and as the client has it."""

    def handle(self):
        """Read a line, and tell."""
        line = self.request.recv(100)
        client = current_client()
        self.request.sendall(f"{line.decode().strip()} {self.client_address} {client.address} {client.peer}".encode())


def told(line, address, peer):
    """Return what `Where` tells."""
    return f"{line} {address} {address} {peer}".encode()


@pytest.mark.parametrize("header", [HEADER, v2(0x21, 0x11, IPV4)])
def test_client_has_the_real_address_and_its_peer_the_proxys(serve, header):
    """The handler, the hooks and the client agree; it stays when the client has gone."""
    seen = []
    server = serve(Where, subclass(client_connected=lambda server, client: seen.append((client, client.address))),
                   proxy_protocol="127.0.0.0/8")
    with connect(server) as client:
        client.sendall(header + b"hello\n")
        assert receive_all(client) == told("hello", REAL, client.getsockname())
        peer = client.getsockname()
    server.stop()
    client, address = seen[0]
    assert address == client.address == REAL and client.peer == peer and client.state == "gone"


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(0x20, 0)])
def test_client_of_which_the_proxy_tells_nothing_has_the_proxys_address(serve, header):
    """It may be the proxy itself, which looks whether the server is alive."""
    server = serve(Where, proxy_protocol="127.0.0.1")
    with connect(server) as client:
        client.sendall(header + b"hello\n")
        assert receive_all(client) == told("hello", client.getsockname(), client.getsockname())


def test_client_without_a_proxy_is_its_own_peer(serve):
    """Both if the option is not set, and if it comes from elsewhere."""
    for networks in ((), "192.0.2.0/24"):
        server = serve(Where, proxy_protocol=networks)
        with connect(server) as client:
            client.sendall(b"hello\n")
            assert receive_all(client) == told("hello", client.getsockname(), client.getsockname())


def test_header_is_nothing_special_without_the_option(serve):
    """It is data."""
    assert ask(serve(Echo), HEADER) == HEADER


@pytest.mark.parametrize(("networks", "data", "reason"), [
    ("127.0.0.1", b"GET / HTTP/1.0\r\n\r\n", "no header, but b'GET / HTTP/1.0\\r'"),
    ("127.0.0.1", b"PROXY TCP4 \x1b[2J 127.0.0.1 1 80\r\n", "a broken header: b'PROXY TCP4 \\x1b[2J 127.0.0.1 1 80"),
    ("127.0.0.1", b"PROXY", "the stream has ended before it"),
    ("192.0.2.0/24", HEADER, "a header from an address that is not in proxy_protocol"),
])
def test_refused_client_is_counted_and_logged_and_others_are_served(serve, caplog, networks, data, reason):
    """Its handler never runs."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    ran, gone = [], []
    server = serve(type("Handler", (Echo,), {"setup": lambda handler: ran.append(None)}), proxy_protocol=networks)
    with connect(server) as client:
        until(lambda: server.clients)
        gone.append(server.clients[1])
        client.sendall(data)
        try:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        except OSError as error:  # what it has sent was not received, and it is reset
            assert error.errno in (errno.ECONNRESET, errno.ENOTCONN)
    until(lambda: server.stats().refused == 1)
    assert not ran and gone[0].reason == "handshake"
    assert ask(server, (HEADER if networks == "127.0.0.1" else b"") + b"x") == b"x"
    assert f"client 1: its PROXY header was refused: {reason}" in caplog.text
    assert server.stats().failed == 0


def test_proxy_that_only_connects_is_refused_without_much_ado(serve, caplog):
    """Many see in that way whether a server is alive, every other second."""
    caplog.set_level(logging.DEBUG, logger="threaded_echo")
    server = serve(Echo, proxy_protocol="127.0.0.1")
    connect(server).close()
    until(lambda: server.stats().refused == 1)
    server.stop()
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "client 1 went away before its PROXY header" in caplog.text


def test_header_that_does_not_come_is_refused_when_the_time_is_up(serve, caplog):
    """A client elsewhere that says nothing is served by then: it may wait for the server to begin."""
    class Greeter(socketserver.BaseRequestHandler):
        """Speaks first."""

        def handle(self):
            """Greet."""
            self.request.sendall(b"welcome")

    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(Greeter, proxy_protocol="127.0.0.1", handshake_timeout=0.01)
    with connect(server) as client:
        assert receive_all(client) == b""
    assert "its PROXY header was refused: it did not come in time" in caplog.text
    server = serve(Greeter, proxy_protocol="192.0.2.0/24", handshake_timeout=0.01)
    with connect(server) as client:
        assert receive_all(client) == b"welcome"


@pytest.mark.parametrize("networks", ["127.0.0.1", "192.0.2.0/24"])
def test_silent_client_holds_up_nobody_and_a_stop_ends_it(serve, networks):
    """Before its first bytes it is handshaking, and nothing can be sent to it."""
    server = serve(Echo, proxy_protocol=networks, handshake_timeout=None)
    data = HEADER if networks == "127.0.0.1" else b""
    with connect(server) as silent, connect(server) as client:
        client.sendall(data + b"x")
        assert receive(client, 1) == b"x"
        until(lambda: server.clients[1].state == "handshaking")
        with pytest.raises(ConnectionAbortedError, match="client 1: its PROXY header has not come yet"):
            server.clients[1].send(b"too early")
        server.clients[2].send(b"y")
        assert receive(client, 1) == b"y"
        assert server.stop().forced == 0
        assert receive_all(silent) == receive_all(client) == b""


def test_steps_come_in_their_order(serve):
    """The header, TLS, verify_request, client_connected: all in the handler's thread."""
    steps = []

    class Server(ThreadedTCPServer):
        """Notes what it is asked."""

        def verify_request(self, request, client_address):
            """Note."""
            client = current_client()
            steps.append(("verify", client_address, client.tls.version, client.thread.name))
            return True

        def client_connected(self, client):
            """Note."""
            steps.append(("connected", client.address, client.tls.version, client.thread.name))

    server = serve(Where, Server, proxy_protocol="127.0.0.1", ssl_context=server_context())
    plain = connect(server)
    plain.sendall(HEADER)
    until(lambda: server.clients and server.clients[1].address == REAL)
    with pytest.raises(ConnectionAbortedError):
        server.clients[1].send(b"in the clear")
    with wrap_tls(plain) as client:
        client.sendall(b"hello\n")
        assert receive_all(client) == told("hello", REAL, client.getsockname())
    server.stop()
    assert [step[:3] for step in steps] == [("verify", REAL, "TLSv1.3"), ("connected", REAL, "TLSv1.3")]
    assert steps[0][3] == steps[1][3] != "MainThread"


def test_header_comes_ahead_of_tls_also_from_who_speaks_no_tls(serve, caplog):
    """The deadline is for both; the log tells which of them has failed."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(Echo, proxy_protocol="127.0.0.1", ssl_context=server_context())
    with connect(server) as client:
        client.sendall(HEADER + b"GET / HTTP/1.0\r\n\r\n")
        try:
            receive_all(client)
        except ConnectionResetError:
            pass
    until(lambda: server.stats().refused == 1)
    assert "client 1: its TLS handshake has failed" in caplog.text


def test_verify_request_refuses_by_the_real_address(serve):
    """It is not asked about the proxy."""
    server = serve(Echo, subclass(verify_request=lambda server, request, address: address[0] != REAL[0]),
                   proxy_protocol=["127.0.0.1"])
    assert ask(server, HEADER) == b""
    assert ask(server, HEADER.replace(b"192.0.2.1", b"192.0.2.2") + b"x") == b"x"
    server.stop()
    assert server.stats().refused == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError])
def test_verify_request_that_fails_costs_its_client_only(serve, caplog, error):
    """Whatever it raises is a failure of that client, not of its header."""
    def fail(*arguments):
        raise error("its address")

    server = serve(Echo, subclass(verify_request=fail), proxy_protocol="127.0.0.1")
    assert ask(server, HEADER) == b""
    server.stop()
    assert "client 1: its handler has failed" in caplog.text and server.stats().failed == 1


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("base", [*ABOVE_ONLY, *(hook for hook in EITHER_SIDE if hook.__name__ != "OwnActions")])
def test_hook_of_a_program_gets_the_real_address(serve, base, tls):
    """Whatever it overrides, the header is received first."""
    server = serve(Where, type("Server", (base, ThreadedTCPServer), {}), proxy_protocol="127.0.0.1",
                   ssl_context=server_context() if tls else None)
    client = connect(server)
    client.sendall(HEADER)
    with wrap_tls(client) if tls else client as client:
        client.sendall(b"hello\n")
        assert receive_all(client) == told("hello", REAL, client.getsockname())
    assert server.stop().clean and server.stats().finished == 1


def test_loop_on_handle_request_serves_clients_of_a_proxy():
    """The options are the same there."""
    with ThreadedTCPServer(LOOPBACK, Where, proxy_protocol="127.0.0.1") as server, connect(server) as client:
        server.handle_request()
        client.sendall(HEADER + b"hello\n")
        assert receive_all(client) == told("hello", REAL, client.getsockname())


def test_connection_that_a_program_has_accepted_itself_has_a_header():
    """It hands that to process_request, and never serves in any other way."""
    with ThreadedTCPServer(LOOPBACK, Where, proxy_protocol="127.0.0.1") as server, connect(server) as client:
        server.process_request(*server.socket.accept())
        client.sendall(HEADER + b"hello\n")
        assert receive_all(client) == told("hello", REAL, client.getsockname())


def test_unix_socket_may_be_a_proxys(serve, tmp_path):
    """By the word for it; a network of addresses does not mean it."""
    for networks, header, address in ((["unix"], HEADER, REAL), ("127.0.0.1", b"", "")):
        path = str(tmp_path / f"socket{len(header)}")
        with ThreadedUnixStreamServer(path, Where, proxy_protocol=networks).start() as server:
            with connect(server) as client:
                client.sendall(header + b"hello\n")
                assert receive_all(client) == told("hello", address, "")


def test_missing_package_is_told_as_serving_begins(monkeypatch):
    """And only if the option is set."""
    monkeypatch.setitem(sys.modules, "proxyprotocol.detect", None)
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert ask(server.start()) == b"ping\n"
    for serve in (ThreadedTCPServer.start, ThreadedTCPServer.handle_request):
        with ThreadedTCPServer(LOOPBACK, Echo, proxy_protocol="127.0.0.1") as server:
            with pytest.raises(ImportError, match="pip install proxy-protocol"):
                serve(server)


def test_server_of_datagrams_takes_no_header():
    """There is nothing that a header could come ahead of."""
    class Server(ThreadedMixIn, socketserver.ThreadingUDPServer):
        """Datagrams."""

        proxy_protocol = ("127.0.0.1",)

    with Server(LOOPBACK, Echo) as server:
        with pytest.raises(ValueError, match="proxy_protocol needs a server of streams"):
            server.start()


def test_share_of_a_host_is_that_of_the_real_client(serve):
    """Behind a proxy all connections come from one address; those that their headers name are told apart."""
    server = serve(Echo, proxy_protocol="127.0.0.0/8", max_clients_per_host=1, limit_reply=b"full")
    with ExitStack() as stack:
        answers = []
        for host in (b"10.0.0.1", b"10.0.0.2", b"10.0.0.1"):
            client = stack.enter_context(connect(server))
            client.sendall(b"PROXY TCP4 " + host + b" 10.9.9.9 1000 2000\r\nhi")
            answers.append(receive(client, 2))
        assert answers == [b"hi", b"hi", b"fu"]
    server.stop()
    assert server.stats().refused_by == {"host limit": 1}
