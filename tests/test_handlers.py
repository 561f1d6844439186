"""The handler of chunks, and what all handlers have."""
from __future__ import annotations

import http.server
import socket
import socketserver
import threading

import pytest

from threaded_echo import ClientHandler, EchoHandler, LineHandler, ThreadedMixIn, current_client

from .conftest import LOOPBACK
from .tools import GUARD, ask, connect, receive, running, wait_until


def test_chunk_handler_sends_what_process_returns(serve):
    """A reply is sent; None and an empty reply send nothing."""
    class Handler(ClientHandler):
        """Replies to some."""

        def process(self, data):
            """Reply to b"?" only."""
            return {b"?": b"!", b"0": b""}.get(data)

    server = serve(Handler)
    for question, reply in ((b".", b""), (b"0", b""), (b"?", b"!")):
        assert ask(server, question) == reply


def test_plain_client_handler_swallows_what_comes(serve):
    """Until it is overridden, process does nothing, for lines too."""
    assert ask(serve(ClientHandler)) == b""
    assert ask(serve(LineHandler)) == b""


def test_handler_has_its_client_and_server_before_setup(serve):
    """setup and finish keep their meaning, and need not call super()."""
    seen = []

    class Handler(ClientHandler):
        """Looks around."""

        def setup(self):
            """Look."""
            seen.append((self.client is current_client(), self.server, self.stopping, self.client.thread))

        def finish(self):
            """Say goodbye."""
            self.send(b"bye")

    server = serve(Handler)
    assert ask(server) == b"bye"
    [(same, its_server, stopping, thread)] = seen
    assert same and its_server is server and stopping is server.stopping and isinstance(thread, threading.Thread)


def test_small_replies_leave_at_once(serve):
    """TCP_NODELAY is set, even where setup is overridden."""
    class Handler(ClientHandler):
        """Tells."""

        def setup(self):
            """Override."""

        def process(self, data):
            """Tell the option."""
            return b"%d" % self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert ask(serve(Handler)) not in (b"", b"0")


def test_handler_on_a_stock_server_is_a_clear_error():
    """Without the mix-in there is no client to serve."""
    errors = []

    class Stock(socketserver.TCPServer):
        """Keeps the error."""

        def handle_error(self, request, client_address):
            """Keep it."""
            import sys
            errors.append(sys.exc_info()[1])

    with Stock(LOOPBACK, EchoHandler) as server, connect(server):
        server.handle_request()
    assert isinstance(errors[0], TypeError) and "ThreadedMixIn" in str(errors[0])


def test_sends_of_several_threads_never_interleave(serve):
    """Each whole send arrives in one piece, the handler's own among them."""
    ready = threading.Event()

    class Handler(ClientHandler):
        """Sends much, at the same time as others."""

        def process(self, data):
            """Send ten times."""
            ready.set()
            for _ in range(10):
                self.send(b"h" * 100_000)

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"go")
        wait_until(ready)
        [its_client] = server.clients.values()

        def send(letter):
            for _ in range(10):
                its_client.send(letter * 100_000)

        with running(send, b"a"), running(send, b"b"):
            data = receive(client, 3_000_000)
    blocks = {data[start:start + 100_000] for start in range(0, len(data), 100_000)}
    assert blocks == {letter * 100_000 for letter in (b"h", b"a", b"b")}


def test_large_chunks_follow_a_full_one(serve):
    """A client that sends much is read in larger pieces, and in small ones again afterwards."""
    sizes = []

    class Handler(ClientHandler):
        """Notes what is asked for."""

        def setup(self):
            """Watch the connection."""
            request = self.request

            class Watched:
                """Notes what is asked for."""

                def recv(self, size):
                    """Receive."""
                    sizes.append(size)
                    return request.recv(size)

            self.request = Watched()

        def process(self, data):
            """Echo."""
            return data

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"x" * 16384)
        assert receive(client, 16384) == b"x" * 16384
        while 65536 not in sizes:
            client.sendall(b"x" * 16384)
            assert receive(client, 16384) == b"x" * 16384
        client.sendall(b"y")
        assert receive(client, 1) == b"y"
    server.stop()
    assert set(sizes) == {16384, 65536} and sizes[-1] == 16384


def test_reply_that_is_not_bytes_is_an_error_that_names_process(serve, caplog):
    """Even one that is false, such as "" or 0, does not go unnoticed."""
    replies = ["text", "", 0]

    class Handler(ClientHandler):
        """Forgets to encode."""

        def process(self, data):
            """Return the next wrong reply."""
            return replies[0]

    server = serve(Handler)
    while replies:
        assert ask(server, b"?") == b""
        server.shutdown()
        assert f"TypeError: Handler.process must return bytes or None, not {replies.pop(0)!r}" in caplog.text
        server.start()
    server.stop()
    assert server.stats().failed == 3


def test_reply_of_every_kind_of_bytes_is_sent(serve):
    """What is bytes-like need not be bytes."""
    class Handler(ClientHandler):
        """Replies with its own data."""

        def process(self, data):
            """Return them in another shape."""
            return bytearray(data) if data == b"array" else memoryview(data)

    server = serve(Handler)
    assert ask(server, b"array") == b"array"
    assert ask(server, b"view") == b"view"


def test_type_error_of_a_send_of_its_own_is_not_blamed_on_process(serve, caplog):
    """The reply was right: whatever the subclass's send has met is logged as it is."""
    class Handler(ClientHandler):
        """Sends in its own way."""

        def process(self, data):
            """Echo."""
            return data

        def send(self, data):
            """Fail."""
            raise TypeError("an error of its own")

    server = serve(Handler)
    assert ask(server, b"?") == b""
    server.stop()
    assert "TypeError: an error of its own" in caplog.text and "must return" not in caplog.text


@pytest.mark.parametrize("base", [ClientHandler, LineHandler])
def test_send_of_a_subclass_sends_the_replies(serve, base):
    """It may encode, say, whatever process returns."""
    class Handler(base):
        """Frames what it sends."""

        def process(self, data):
            """Echo."""
            return data

        def send(self, data):
            """Send in brackets."""
            super().send(b"<" + data.strip() + b">")

    assert ask(serve(Handler), b"hello\n") == b"<hello>"


def test_handler_put_last_among_the_bases_adds_its_client_to_another(serve):
    """A handler that knows nothing of this package gets its client, and keeps its own way to handle."""
    class Page(http.server.BaseHTTPRequestHandler, ClientHandler):
        """Answers with its client's number."""

        def do_GET(self):
            """Answer."""
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nclient %d" % self.client.number)

        def log_message(self, *arguments):
            """Say nothing."""

    assert ask(serve(Page), b"GET / HTTP/1.0\r\n\r\n").endswith(b"client 1")


def test_handler_put_first_where_it_would_hide_the_others_handle_is_an_error():
    """The error says what to do; a subclass that has a handle of its own hides nothing unawares."""
    with pytest.raises(TypeError, match="App: LineHandler hides the handle.. of BaseHTTPRequestHandler; put LineHandler"
                                        " last among the bases"):
        type("App", (LineHandler, http.server.BaseHTTPRequestHandler), {})
    type("App", (LineHandler, http.server.BaseHTTPRequestHandler), {"handle": lambda self: None})


def test_handler_of_datagrams_is_given_its_client():
    """A datagram handler with ClientHandler last among its bases has no connection, and all the rest."""
    class Handler(socketserver.DatagramRequestHandler, ClientHandler):
        """Replies with its number."""

        def handle(self):
            """Reply."""
            self.wfile.write(b"%d" % self.client.number)

    server_class = type("Server", (ThreadedMixIn, socketserver.UDPServer), {})
    with server_class(LOOPBACK, Handler).start() as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(GUARD)
        client.sendto(b"?", server.server_address)
        assert client.recv(100) == b"1"
