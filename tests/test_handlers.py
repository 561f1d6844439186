"""The handlers: chunks, lines, echo, and what their errors do."""
from __future__ import annotations

import logging
import socket
import socketserver
import threading
from contextlib import suppress

import pytest

from threaded_echo import ClientHandler, EchoHandler, LineHandler, LineTooLong, ThreadedMixIn, current_client
from threaded_echo.handlers import printable

from .conftest import LOOPBACK
from .tools import GUARD, ask, connect, receive, receive_all, running, wait_until


class Shout(LineHandler):
    """Replies in upper case; not at all to an empty line."""

    max_line = 10

    def process(self, line):
        """Return the line in upper case."""
        if line == b"boom":
            raise ZeroDivisionError("boom")
        return line.upper() or None


def test_chunk_handler_sends_what_process_returns(serve):
    """A reply is sent; None and nothing are not."""
    class Handler(ClientHandler):
        """Replies to some."""

        def process(self, data):
            """Reply to b"?" only."""
            return {b"?": b"!", b"0": b""}.get(data)

    server = serve(Handler)
    for question, reply in ((b".", b""), (b"0", b""), (b"?", b"!")):
        assert ask(server, question) == reply


def test_plain_client_handler_swallows_what_comes(serve):
    """process does nothing until it is overridden, for lines too."""
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


@pytest.mark.parametrize("sent, expected", [
    (b"hello\nyou\r\n", b"HELLO\nYOU\n"),
    (b"no end", b"NO END\n"),
    (b"", b""),
    (b"\n\n\r\n", b""),
    (b"a\rb\n", b"A\rB\n"),
    (b"1234567890\n", b"1234567890\n"),
    (b"1234567890\r\n", b"1234567890\n"),
    (b"1234567890", b"1234567890\n"),
])
def test_lines_are_processed_without_their_ends(serve, sent, expected):
    """Either line end, and none at the end of the stream; exactly max_line is allowed."""
    assert ask(serve(Shout), sent) == expected


@pytest.mark.parametrize("sent", [b"ok\n12345678901\nmore\n", b"ok\n12345678901", b"ok\n1234567890\r1",
                                  b"ok\n" + b"x" * 50_000])
def test_line_too_long_ends_the_client_and_is_logged(serve, caplog, sent):
    """The lines before it are answered; then the client is ended, with one warning and no traceback."""
    server = serve(Shout)
    with connect(server) as client:
        assert client.send(sent) >= 14
        assert receive(client, 3) == b"OK\n"
        with suppress(OSError):  # reset: what it sent beyond has not been read
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
    server.stop()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage() == "client 1: a line of more than 10 bytes"
    assert record.exc_info is None
    assert server.stats().failed == 1
    assert issubclass(LineTooLong, ValueError)


def test_line_that_comes_in_pieces_is_put_together(serve):
    """Chunks and lines have nothing to do with each other."""
    server = serve(Shout)
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"ab\nhel")
        assert receive(client, 3) == b"AB\n"
        for piece in (b"l", b"o", b" \r", b"\nx"):
            client.sendall(piece)
        assert receive(client, 7) == b"HELLO \n"
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"X\n"


def test_replies_before_an_error_are_sent(serve, caplog):
    """An exception in process loses no reply that was ready."""
    assert ask(serve(Shout), b"one\ntwo\nboom\nthree\n") == b"ONE\nTWO\n"
    assert "client 1: its handler has failed" in caplog.text and "ZeroDivisionError" in caplog.text


def test_send_in_process_keeps_the_order(serve):
    """What a line handler sends itself comes after the replies to the lines before."""
    class Handler(LineHandler):
        """Sends and replies."""

        def process(self, line):
            """Send, then reply."""
            self.send(b"sent " + line + b"\n")
            return b"reply " + line

    assert ask(serve(Handler), b"1\n2\n") == b"sent 1\nreply 1\nsent 2\nreply 2\n"


@pytest.mark.parametrize("end", ["stop", "disconnect"])
def test_line_that_the_server_cuts_short_is_not_processed(serve, end):
    """Only the client's own end of stream completes a line: what it has not sent yet may change its meaning."""
    lines, first = [], threading.Event()

    class Handler(LineHandler):
        """Keeps the lines."""

        def process(self, line):
            """Keep it."""
            lines.append(line)
            first.set()

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"first\ndelete /home/bob/tm")
        wait_until(first)
        if end == "disconnect":
            server.clients[1].disconnect()
            receive_all(client)
        assert server.stop().clean
    assert lines == [b"first"]


def test_send_of_a_subclass_sends_every_reply(serve):
    """However the lines arrive, a line handler that overrides send has its replies go through it."""
    class Loud(LineHandler):
        """Sends in upper case."""

        def process(self, line):
            """Reply with the line."""
            return line

        def send(self, data):
            """Override."""
            super().send(bytes(data).upper())

    server = serve(Loud)
    assert ask(server, b"one\n") == b"ONE\n"
    assert ask(server, b"one\ntwo\nend") == b"ONE\nTWO\nEND\n"


def test_slow_lines_do_not_hold_replies_back(serve):
    """A reply that has waited longer than a moment is sent ahead of the next line."""
    entered, release = threading.Event(), threading.Event()

    class Handler(LineHandler):
        """Takes its time for some lines."""

        def process(self, line):
            """Wait at b"wait" and b"hold"."""
            if line == b"wait":
                self.stopping.wait(0.01)
            if line == b"hold":
                entered.set()
                wait_until(release)
            return line

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"first\nwait\nhold\n")
        wait_until(entered)
        assert receive(client, 11) == b"first\nwait\n"
        release.set()
        assert receive(client, 5) == b"hold\n"


def test_reply_of_the_wrong_type_is_an_error_at_its_line(serve, caplog):
    """A str in place of bytes names itself; the replies before it are sent."""
    class Handler(LineHandler):
        """Forgets to encode."""

        def process(self, line):
            """Return text for the second line."""
            return line if line == b"1" else line.decode()

    assert ask(serve(Handler), b"1\n2\n") == b"1\n"
    assert "TypeError" in caplog.text


def test_echo_sends_back_and_logs_each_message(serve, caplog):
    """Under the client's number, escaped, a line each; every byte comes back."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    message = b"hello\nyou \x1b[31m\xff\r\nno end"
    server = serve(EchoHandler)
    assert ask(server, message) == message
    server.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "client 1: hello", "client 1: you \\x1b[31m\\xff", "client 1: no end"]


def test_echo_logs_nothing_where_nobody_listens(serve, caplog):
    """Below info level there is no record."""
    caplog.set_level(logging.WARNING, logger="threaded_echo")
    assert ask(serve(EchoHandler), b"hello") == b"hello"
    assert not caplog.records


@pytest.mark.parametrize("message, shown", [
    (b"plain", "plain"), ("grüß".encode(), "grüß"), (b"\x00\x07\x7f", "\\x00\\x07\\x7f"), (b"a\tb", "a\\tb"),
    (b"\xc2\x9b31m", "\\x9b31m"), ("\u202egpj.exe".encode(), "\\u202egpj.exe"), (b"\xff\xfe", "\\xff\\xfe"),
])
def test_message_cannot_drive_a_terminal(message, shown):
    """Control characters of every kind are escaped."""
    assert printable(message) == shown


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
