"""TLS as programs bring it to socketserver: a wrapped listener, a wrapped connection, an upgrade in the handler."""
from __future__ import annotations

import http.server
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, Gate, connect, receive, receive_all, running, wait_until

Offer = Callable[..., ssl.SSLSocket]
Trust = Callable[[socket.socket], ssl.SSLSocket]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1, and the contexts of a server that has it and of a client that believes it."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=GUARD)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


@pytest.fixture
def offer(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Offer:
    """Wrap a server's side of a connection, or its listener, in TLS."""
    def wrap(connection: socket.socket, **keywords: Any) -> ssl.SSLSocket:
        return contexts[0].wrap_socket(connection, server_side=True, **keywords)
    return wrap


@pytest.fixture
def trust(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Trust:
    """Wrap a client's side of a connection in TLS, and shake hands."""
    def wrap(connection: socket.socket) -> ssl.SSLSocket:
        return contexts[1].wrap_socket(connection, server_hostname="127.0.0.1")
    return wrap


def has_ended(client: socket.socket) -> bool:
    """Read the end of a connection; ahead of it nothing but an alert, OpenSSL's answer to how a stop wakes it."""
    try:
        data = receive_all(client)
    except ssl.SSLError:
        return isinstance(client, ssl.SSLSocket)
    return not data or data[:1] == b"\x15" and not isinstance(client, ssl.SSLSocket)


def nothing_left(server: Any) -> bool:
    """Tell whether a stopped server has neither clients nor threads."""
    stats = server.stats()
    return not (server.clients or stats.live or stats.threads_busy or stats.threads_idle)


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer, without the date and without a line on standard error."""
        self.wfile.write(ANSWER)


@pytest.mark.parametrize("when", ["after binding", "in server_activate"])
def test_client_that_never_shakes_hands_keeps_no_other_out(when: str, offer: Offer, trust: Trust) -> None:
    """A silent client keeps nobody out, and the stop ends it as well as the one that idles after its request."""
    class Server(ThreadedMixIn, http.server.ThreadingHTTPServer):
        def server_activate(self) -> None:
            if when == "in server_activate":
                self.socket = offer(self.socket)
            super().server_activate()

    server = Server(LOOPBACK, Pages)
    if when == "after binding":
        server.socket = offer(server.socket)
    with server.start(), connect(server) as silent, trust(connect(server)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert receive(client, len(ANSWER)) == ANSWER
        assert sorted(server.clients) == [1, 2]
        report = server.stop()
        assert (report.drained, report.forced, report.clean) == (2, 0, True)
        assert has_ended(silent) and has_ended(client)
    assert nothing_left(server)


def test_https_client_that_speaks_plain_http_harms_nobody(offer: Offer, trust: Trust) -> None:
    """A handshake that fails ends that client only."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.socket = offer(server.socket)
    with server.start():
        with connect(server) as mistaken:
            mistaken.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):  # it was not read to its end
                assert b"HTTP/1" not in receive_all(mistaken)
        with trust(connect(server)) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            assert list(server.clients) == [2]
    assert nothing_left(server)


class StartTLS(socketserver.BaseRequestHandler):
    """Upgrades its own connection, as mail servers do, then echoes."""

    offer: Offer

    def setup(self) -> None:
        """Answer the wish to upgrade, and upgrade."""
        assert self.request.recv(8) == b"STARTTLS"
        self.request.sendall(b"go ahead")
        self.request = type(self).offer(self.request)

    def handle(self) -> None:
        """Echo, inside TLS, until end of stream."""
        Echo.handle(self)

    def finish(self) -> None:
        """Close what `setup` has made."""
        self.request.close()


def test_handler_that_upgrades_to_tls_is_woken_by_a_stop(offer: Offer, trust: Trust) -> None:
    """The connection that the server accepted is detached; the stop reaches the one that the handler made of it."""
    handler = type("Handler", (StartTLS,), {"offer": staticmethod(offer)})
    with ThreadedTCPServer(LOOPBACK, handler).start() as server:
        plain = connect(server)
        plain.sendall(b"STARTTLS")
        assert receive(plain, 8) == b"go ahead"
        with trust(plain) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            report = server.stop()
            assert (report.drained, report.forced, report.clean) == (1, 0, True)
            assert has_ended(client)
    assert nothing_left(server)


class Wraps(ThreadedTCPServer):
    """Wraps each connection in TLS, somewhere on its way."""

    offer: Offer


class WrapsInFinishRequest(Wraps):
    """Shakes hands in the handler's thread, the usual way to do so on socketserver."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler on a TLS connection."""
        with type(self).offer(request) as secure:
            super().finish_request(secure, client_address)


class WrapsInGetRequest(Wraps):
    """Wraps what it accepts, and leaves the handshake to the first who reads."""

    offer: Offer

    def get_request(self) -> tuple[Any, Any]:
        """Accept, and wrap."""
        request, client_address = super().get_request()
        return type(self).offer(request, do_handshake_on_connect=False), client_address


class WrapsInProcessRequest(Wraps):
    """Wraps in the serving thread, without a handshake there."""

    offer: Offer

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a TLS connection served."""
        super().process_request(type(self).offer(request, do_handshake_on_connect=False), client_address)


@pytest.mark.parametrize("base", [WrapsInFinishRequest, WrapsInGetRequest, WrapsInProcessRequest])
def test_server_that_wraps_each_connection_is_stopped_in_recv(base: type, offer: Offer, trust: Trust) -> None:
    """Wherever a subclass wraps a connection, its handler is woken, and a silent client's handshake is ended."""
    server_class: Any = type("Server", (base,), {"offer": staticmethod(offer)})
    with server_class(LOOPBACK, Echo).start() as server, connect(server) as silent, trust(connect(server)) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        assert sorted(server.clients) == [1, 2]
        report = server.stop()
        assert (report.drained, report.forced, report.clean) == (2, 0, True)
        assert has_ended(silent) and has_ended(client)
    assert nothing_left(server)


def test_tls_reply_in_the_making_at_a_stop_arrives_inside_tls(offer: Offer, trust: Trust) -> None:
    """A handler in the middle of its work finishes it, and its client can read the reply."""
    gate = Gate(lambda handler: handler.request.sendall(b"the reply"))
    server = ThreadedTCPServer(LOOPBACK, gate.handler)
    server.socket = offer(server.socket)
    with server.start():
        stopping = server.stopping
        with trust(connect(server)) as client:
            wait_until(gate.entered)
            with running(server.stop):
                wait_until(stopping)
                assert server.clients[1].state == "serving"
                gate.release.set()
                assert receive_all(client) == b"the reply"
    assert nothing_left(server)


def test_tls_send_blocked_at_a_stop_is_cut_and_leaks_nothing_in_clear(offer: Offer, trust: Trust) -> None:
    """A handler in a send that its client does not read is forced out, and nothing is ever sent outside TLS."""
    secret, sending = b"not to be seen" * 1000, threading.Event()

    class Pours(socketserver.BaseRequestHandler):
        """Sends for ever."""

        def handle(self) -> None:
            """Send until the connection is cut."""
            while True:
                self.request.sendall(secret)
                sending.set()

    server = ThreadedTCPServer(LOOPBACK, Pours)
    server.socket = offer(server.socket)
    with server.start():
        client = trust(connect(server))
        wait_until(sending)
        report = server.stop(drain=0)
        assert (report.drained, report.forced, report.clean) == (0, 1, True)
        with socket.socket(fileno=client.detach()) as raw:
            raw.settimeout(GUARD)
            assert secret[:14] not in receive_all(raw)
    assert nothing_left(server)
