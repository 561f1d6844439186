"""The standard library's own servers on the mix-in: http, wsgi, xmlrpc, logging's listener, pydoc's loop."""
from __future__ import annotations

import http.client
import http.server
import json
import logging.config
import pydoc
import select
import struct
import threading
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, current_client

from ..conftest import LOOPBACK
from ..tools import GUARD, Gate, ask, connect, receive_all, running, until, wait_until


class HTTPHandler(http.server.BaseHTTPRequestHandler):
    """Answers with the number of the client, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        client = current_client()
        assert client is not None
        body = f"client {client.number}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing to standard error."""


class QuietWSGIHandler(wsgiref.simple_server.WSGIRequestHandler):
    """Writes nothing to standard error."""

    log_message = HTTPHandler.log_message


def get(server: Any) -> bytes:
    """Send a request, and return the body of the answer once the server has ended the connection."""
    head, _, body = ask(server, b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    return body


def get_again(connection: http.client.HTTPConnection) -> bytes:
    """Send a request on a connection that is kept, and return the body of the answer."""
    connection.request("GET", "/")
    with connection.getresponse() as response:
        assert response.status == 200
        return response.read()


def left_over(server: Any) -> int:
    """Count what a stopped server still has: clients and threads."""
    stats = server.stats()
    assert stats.accepted == stats.finished + stats.refused
    return len(server.clients) + stats.live + stats.threads_busy + stats.threads_idle


@pytest.mark.parametrize("base", [http.server.HTTPServer, http.server.ThreadingHTTPServer])
def test_http_server_on_the_mixin_numbers_its_clients_and_stops(base: type) -> None:
    """Each connection is a client; one that keeps its connection is told of the same number again, until the stop."""
    server_class: Any = type("Server", (ThreadedMixIn, base), {})
    with server_class(LOOPBACK, HTTPHandler).start() as server:
        assert get(server) == b"client 1"
        idle = http.client.HTTPConnection(*server.server_address, timeout=GUARD)
        assert [get_again(idle), get_again(idle)] == [b"client 2", b"client 2"]
        report = server.stop()
        assert (report.drained, report.forced, report.clean) == (1, 0, True)
        assert idle.sock.recv(1) == b""
        idle.close()
    assert left_over(server) == 0


def test_http_request_in_progress_at_a_stop_is_answered() -> None:
    """A stop waits for the answer that is being made, and the client gets it whole."""
    gate = Gate()

    class Handler(HTTPHandler):
        """Answers once it is released."""

        def do_GET(self) -> None:
            """Wait for the release, then answer."""
            gate.entered.set()
            wait_until(gate.release)
            super().do_GET()

    class Server(ThreadedMixIn, http.server.ThreadingHTTPServer):
        """Under test."""

    with Server(LOOPBACK, Handler).start() as server:
        stopping = server.stopping
        bodies: list[bytes] = []
        with running(lambda: bodies.append(get(server))):
            wait_until(gate.entered)
            with running(server.stop):
                wait_until(stopping)
                gate.release.set()
    assert bodies == [b"client 1"]
    assert left_over(server) == 0


def test_wsgi_server_on_the_mixin_serves_and_ends_an_idle_client() -> None:
    """An application sees its client; one that connects and says nothing is ended by the stop."""
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        client = current_client()
        assert client is not None
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"client {client.number} {environ['PATH_INFO']}".encode()]

    class Server(ThreadedMixIn, wsgiref.simple_server.WSGIServer):
        """Under test."""

    made: Any = wsgiref.simple_server.make_server(*LOOPBACK, application, Server, QuietWSGIHandler)
    with made.start() as server, connect(server) as silent:
        assert get(server) == b"client 2 /"
        report = server.stop()
        assert (report.drained, report.forced, report.clean) == (1, 0, True)
        assert receive_all(silent) == b""
    assert left_over(server) == 0


def test_xmlrpc_server_on_the_mixin_answers_two_clients_at_once() -> None:
    """A call that waits for another client's call holds nobody up."""
    met = threading.Barrier(2)

    def meet() -> int:
        met.wait(GUARD)
        client = current_client()
        assert client is not None
        return client.number

    class Server(ThreadedMixIn, xmlrpc.server.SimpleXMLRPCServer):
        """Under test."""

    with Server(LOOPBACK, logRequests=False).start() as server:
        server.register_function(meet)
        numbers: list[object] = []

        def call() -> None:
            with xmlrpc.client.ServerProxy("http://{}:{}".format(*server.server_address)) as proxy:
                numbers.append(proxy.meet())

        with running(call), running(call):
            pass
    assert sorted(numbers) == [1, 2]
    assert left_over(server) == 0


def test_logging_listener_on_the_threaded_server_configures_and_ends_an_idle_client(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """logging.config.listen applies what a client sends, and its end is not held up by a client that says nothing."""
    made = []

    class Server(ThreadedTCPServer):
        """Under test; makes itself known."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            made.append(self)

    monkeypatch.setattr(logging.config, "ThreadingTCPServer", Server)
    configuration = json.dumps({"version": 1, "incremental": True,
                                "loggers": {"tests.listened_to": {"level": "CRITICAL"}}}).encode()
    listener = logging.config.listen(0)
    listener.start()
    wait_until(listener.ready)
    [server] = made
    server.timeout = 0.01  # how often its own loop looks whether it is to end
    try:
        with connect(server) as silent:
            with connect(server) as client:
                client.sendall(struct.pack(">L", len(configuration)) + configuration)
                assert receive_all(client) == b""
            assert logging.getLogger("tests.listened_to").level == logging.CRITICAL
            logging.config.stopListening()
            listener.join(GUARD)
            assert not listener.is_alive()
            assert receive_all(silent) == b""
    finally:
        logging.config.stopListening()
        listener.join(GUARD)
    assert server.stats().accepted == 2
    assert left_over(server) == 0


def test_pydoc_server_on_the_mixin_serves_and_quits_with_an_idle_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydoc's own loop of select and handle_request serves pages, and its server_close ends a silent client."""
    class Server(ThreadedMixIn, http.server.HTTPServer):
        """Under test."""

    monkeypatch.setattr(http.server, "HTTPServer", Server)
    thread: Any = pydoc._start_server(lambda url, kind: f"{kind} {url}", "localhost", 0)
    assert thread.error is None
    server = thread.docserver
    with connect(server) as silent:
        assert get(server) == b"text/html /"
        with running(thread.stop):
            until(lambda: server.quit)
            with suppress(ConnectionError), connect(server):  # wakes its loop, unless that has quit already
                pass
        assert receive_all(silent) == b""
    assert server.stats().accepted >= 2
    assert left_over(server) == 0


def test_handle_request_in_a_loop_of_the_programs_own_numbers_and_ends_clients() -> None:
    """A program that selects by itself and quits by a flag gets threads, numbers and an end as with serve_forever."""
    class Server(ThreadedMixIn, http.server.HTTPServer):
        """Under test, as pydoc has it."""

        quit = False

        def serve_until_quit(self) -> None:
            while not self.quit:
                if select.select([self], [], [], GUARD)[0]:
                    self.handle_request()
            self.server_close()

    server = Server(LOOPBACK, HTTPHandler)
    with running(server.serve_until_quit), connect(server) as silent:
        assert get(server) == b"client 2"
        server.quit = True
        with suppress(ConnectionError), connect(server):  # wakes the loop, unless that has quit already
            pass
        assert receive_all(silent) == b""
    assert left_over(server) == 0
