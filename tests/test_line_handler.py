"""The handler of lines: their ends, their limit, and the order of the replies."""
from __future__ import annotations

import logging
import socket
import threading
import types
from contextlib import suppress

import pytest

from threaded_echo import LineHandler, LineTooLong

from .tools import ask, connect, receive, receive_all, running, wait_until


class Shout(LineHandler):
    """Replies in upper case; not at all to an empty line."""

    max_line = 10

    def process(self, line):
        """Return the line in upper case."""
        if line == b"boom":
            raise ZeroDivisionError("boom")
        return line.upper() or None


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
    """A line ends in either way, or with the stream, and may be exactly max_line bytes long."""
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


def test_slow_lines_do_not_hold_replies_back(serve, monkeypatch):
    """A reply that has waited longer than a moment is sent ahead of the next line."""
    entered, release = threading.Event(), threading.Event()
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("threaded_echo.handlers.monotonic", lambda: clock.now)

    class Handler(LineHandler):
        """Takes its time for some lines."""

        def process(self, line):
            """Take a second at b"slow", and wait at b"hold"."""
            if line == b"slow":
                clock.now += 1.0
            if line == b"hold":
                entered.set()
                wait_until(release)
            return line

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"first\nslow\nhold\n")
        wait_until(entered)
        assert receive(client, 11) == b"first\nslow\n"
        release.set()
        assert receive(client, 5) == b"hold\n"


def test_reply_of_the_wrong_type_is_an_error_at_its_line(serve, caplog):
    """The error of a str in place of bytes shows it, and the replies before it are sent."""
    class Handler(LineHandler):
        """Forgets to encode."""

        def process(self, line):
            """Return text for the second line."""
            return line if line == b"1" else line.decode()

    assert ask(serve(Handler), b"1\n2\n") == b"1\n"
    assert "TypeError: Handler.process must return bytes or None, not '2'" in caplog.text


@pytest.mark.parametrize("end", ["stop", "disconnect"])
def test_line_that_has_not_come_to_its_end_is_not_processed_when_the_server_ends_the_stream(serve, end):
    """The client may not have sent the rest: ``delete /home/bob/tm`` waits for its ``p``."""
    processed, received = [], threading.Event()

    class Handler(LineHandler):
        """Notes what it is given, and says when it has received the half line."""

        def setup(self):
            """Watch the connection."""
            request = self.request

            class Watched:
                """Says when something has come."""

                def recv(self, size):
                    """Receive."""
                    if handler.lines and not received.is_set():
                        received.set()
                    return request.recv(size)

            handler = self
            self.lines = 0
            self.request = Watched()

        def process(self, line):
            """Note it."""
            self.lines += 1
            processed.append(line)
            return b"done"

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"whole\ndelete /home/bob/tm")
        assert receive(client, 5) == b"done\n"
        wait_until(received)
        if end == "stop":
            server.stop()
        else:
            server.clients[1].disconnect()
        assert receive_all(client) == b""
    server.stop()
    assert processed == [b"whole"] and server.stats().failed == 0


def test_line_that_has_not_come_to_its_end_is_processed_if_the_client_ended_its_stream_before_a_stop(serve):
    """The end of stream was the client's own, although the handler sees it only after the stop."""
    gate, processed = threading.Event(), []
    entered = threading.Event()

    class Handler(LineHandler):
        """Waits in its first line."""

        def process(self, line):
            """Wait, then note it."""
            entered.set()
            wait_until(gate)
            processed.append(line)

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"first\n")
        wait_until(entered)
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        with running(server.stop):
            wait_until(server.stopping)
            gate.set()
            assert receive_all(client) == b""
    assert processed == [b"first", b"last"]


def test_replies_of_every_kind_of_bytes_are_sent_with_their_line_ends(serve):
    """What is bytes-like need not be bytes; anything else is an error that names process."""
    class Handler(LineHandler):
        """Replies with its own line."""

        def process(self, line):
            """Return it in another shape."""
            return {b"array": bytearray(line), b"view": memoryview(line)}.get(line)

    assert ask(serve(Handler), b"array\nview\nnone\n") == b"array\nview\n"


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
