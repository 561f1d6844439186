"""Whole messages, each under a deadline, on plain and on TLS connections."""
from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from threaded_echo import ClientHandler, LineHandler, LineTooLong
from threaded_echo.clients import receiving
from threaded_echo.clients.receiving import Receiver
from threaded_echo.transport.deadline import Deadline

from ..tools import GUARD, ask, connect, receive, receive_all, running, until, wait_until
from ..transport.test_tls import TLSServer, connect_tls, server_context


class Clock:
    """A clock that a test turns."""

    now = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Time the deadlines of messages by a clock that stands still."""
    made = Clock()
    monkeypatch.setattr(receiving, "Deadline", lambda seconds: Deadline(seconds, made))
    return made


def make(body: Callable[[Any], object]) -> type[ClientHandler]:
    """Make a handler class with a ``handle`` of its own; what it raises is sent by its name."""
    class Handler(ClientHandler):
        """Under test."""

        def handle(self):
            """Run the body."""
            try:
                body(self)
            except Exception as error:
                with suppress(OSError):
                    self.send(f"{type(error).__name__}: {error}".encode())

    return Handler


class End:
    """One end of a connection, and what receives from it."""

    def __init__(self, request: Any, outer: socket.socket) -> None:
        self.request, self.outer = request, outer
        self.receiver = Receiver(threading.Lock())

    def exactly(self, size: int, timeout: float | None = None) -> bytes:
        """Receive so many bytes."""
        return self.receiver.exactly(self.request, size, timeout)

    def until(self, separator: bytes = b"\n", limit: int = 65536, timeout: float | None = None) -> bytes:
        """Receive up to a separator."""
        return self.receiver.until(self.request, separator, limit, timeout)


@pytest.fixture
def plain():
    """A plain connection."""
    request, outer = socket.socketpair()
    with request, outer:
        yield End(request, outer)


@pytest.fixture(params=["plain", "tls"])
def end(request):
    """A plain connection, and one with TLS."""
    inner, outer = socket.socketpair()
    with inner, outer:
        if request.param == "plain":
            yield End(inner, outer)
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with server_context().wrap_socket(inner, server_side=True, do_handshake_on_connect=False) as secure:
            with running(secure.do_handshake):
                client = context.wrap_socket(outer)
            with client:
                yield End(secure, client)


@pytest.mark.parametrize("timeout", [None, 0, GUARD])
def test_messages_that_arrive_together_are_returned_one_by_one(end, timeout):
    """What is beyond one of them is kept for the next, whichever method asks; nothing of it is lost."""
    end.outer.sendall(b"head\r\n\r\nbody-1more\n")
    assert end.until(b"\r\n\r\n", timeout=GUARD) == b"head\r\n\r\n", "the separator, too"
    assert end.exactly(6, timeout) == b"body-1"
    assert end.exactly(0, timeout) == b""
    assert end.until(timeout=timeout) == b"more\n"


@pytest.mark.parametrize("timeout", [None, GUARD])
def test_message_that_arrives_in_pieces_is_whole(end, timeout):
    """Also if its separator is cut in two, and if it is larger than any buffer."""
    def send():
        for piece in (b"a" * 100_000, b"b\r", b"\n\r", b"\nrest"):
            end.outer.sendall(piece)

    with running(send):
        assert end.exactly(100_000, timeout) == b"a" * 100_000
        assert end.until(b"\r\n\r\n", timeout=timeout) == b"b\r\n\r\n"
        assert end.exactly(4, timeout) == b"rest"


def test_trickle_of_bytes_does_not_beat_the_deadline(end, clock, monkeypatch):
    """It is for the whole message, not for each receive; what has come is kept for the next call."""
    received = []
    receive_more = Receiver._receive

    def receive_slowly(self, missing, *arguments):
        """Send a byte, and let time pass, for each time that more is received."""
        end.outer.sendall(b"%d" % (len(received) % 10))
        received.append(missing)
        receive_more(self, missing, *arguments)
        clock.now += 3

    monkeypatch.setattr(Receiver, "_receive", receive_slowly)
    with pytest.raises(TimeoutError, match="4 of 100 bytes have come within 10 seconds"):
        end.exactly(100, 10)
    assert received == [100, 99, 98, 97, 96]
    with pytest.raises(TimeoutError, match=r"[89] bytes without b'\\n' have come within 10.5 seconds"):
        end.until(timeout=10.5)
    monkeypatch.undo()
    assert end.exactly(10, GUARD) == b"0123456789", "those that came too late, too"


def test_silent_client_times_out_and_may_go_on(end):
    """Here by the real clock: neither the connection nor its own time-out is changed by it."""
    for call in (lambda: end.exactly(1, 0), lambda: end.exactly(1, 0.001), lambda: end.until(timeout=0.001)):
        with pytest.raises(TimeoutError):
            call()
    assert end.request.gettimeout() is None
    end.outer.sendall(b"hello\n")
    assert end.until(timeout=GUARD) == b"hello\n"
    end.request.sendall(b"and back")
    assert receive(end.outer, 8) == b"and back"


@pytest.mark.parametrize("timeout", [None, GUARD])
def test_stream_that_ends_in_the_middle_is_an_end_of_file(end, timeout):
    """What has come is not returned, however often one asks; a message that is whole still is."""
    end.outer.sendall(b"one\nhalf")
    socket.socket.shutdown(end.outer, socket.SHUT_WR)  # with TLS, an end without a close_notify
    assert end.until(timeout=timeout) == b"one\n"
    for _ in range(2):
        with pytest.raises(EOFError, match=r"the stream has ended after 4 bytes without b'\\n'"):
            end.until(timeout=timeout)
        with pytest.raises(EOFError, match="the stream has ended after 4 of 5 bytes"):
            end.exactly(5, timeout)
    assert end.exactly(4, timeout) == b"half"


def test_message_above_its_limit_is_too_long(plain):
    """The separator is not counted; a part of one may still become the rest of it."""
    plain.outer.sendall(b"12345\r\n123456\r\n")
    assert plain.until(b"\r\n", 5) == b"12345\r\n"
    with pytest.raises(LineTooLong, match=r"a message of more than 5 bytes before b'\\r\\n'"):
        plain.until(b"\r\n", 5)
    assert plain.exactly(8) == b"123456\r\n"
    plain.outer.sendall(b"12345\r")
    with pytest.raises(TimeoutError):
        plain.until(b"\r\n", 5, 0)
    plain.outer.sendall(b"6")
    with pytest.raises(LineTooLong):
        plain.until(b"\r\n", 5)


@pytest.mark.parametrize("arguments, error", [(("exactly", -1), ValueError), (("exactly", 1, -1), ValueError),
                                              (("exactly", 1, "2"), TypeError), (("until", b""), ValueError)])
def test_wrong_argument_is_an_error(plain, arguments, error):
    """Nothing is received for it."""
    with pytest.raises(error):
        getattr(plain, arguments[0])(*arguments[1:])


def test_bytes_ahead_of_a_handshake_do_not_pass_for_the_clients(plain):
    """A handler that has wrapped its connection in the meantime begins anew."""
    plain.outer.sendall(b"starttls\nslipped in\n")
    assert plain.until() == b"starttls\n"
    with socket.socket(fileno=plain.request.detach()) as plain.request:
        plain.outer.sendall(b"the client's\n")
        assert plain.until() == b"the client's\n"


def test_part_of_a_tls_record_does_not_hold_up_the_deadline(serve):
    """The rest of it may never come; the handler, and other threads, can still send, and go on receiving later."""
    go_on = threading.Event()

    def handle(handler):
        with pytest.raises(TimeoutError):
            handler.receive_exactly(5, 0.01)
        handler.send(b"late")
        wait_until(go_on)
        handler.send(handler.receive_exactly(5, GUARD))

    server = serve(make(handle), TLSServer)
    with connect(server) as raw:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = context.wrap_bio(incoming, outgoing)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
        finished = outgoing.read()
        client.write(b"hello")
        record = outgoing.read()
        raw.sendall(finished + record[:7])

        def receive_secure(size):
            data = b""
            while len(data) < size:
                try:
                    data += client.read(size)
                except ssl.SSLWantReadError:
                    incoming.write(raw.recv(65536))
            return data

        assert receive_secure(4) == b"late"
        server.clients[1].send(b"from another thread")
        assert receive_secure(19) == b"from another thread"
        go_on.set()
        raw.sendall(record[7:])
        assert receive_secure(5) == b"hello"


def test_send_of_another_thread_is_waited_for_no_longer_than_the_deadline(serve):
    """While it lasts, nothing can be received on a TLS connection without a risk for it."""
    entered = threading.Event()

    def handle(handler):
        wait_until(entered)
        try:
            handler.receive_exactly(5, 0.001)
        except TimeoutError:
            timed_out.set()
        handler.receive_exactly(6)

    timed_out = threading.Event()
    server = serve(make(handle), TLSServer)
    with connect_tls(server) as client:
        until(lambda: server.clients and server.clients[1].state == "serving")
        its_client = server.clients[1]
        client.sendall(b"hello")
        with running(its_client.send, b"x" * 20_000_000):
            until(its_client._connection.sending.locked)
            entered.set()
            wait_until(timed_out)
            assert len(receive(client, 20_000_000)) == 20_000_000, "the send goes on as if nothing had been"


def test_tls_that_has_to_send_ahead_of_receiving_waits_for_that(plain, monkeypatch):
    """As it may do for a new key: it waits until the connection can take something."""
    waits = []

    class Secure:
        """Says what OpenSSL would."""

        answers = [ssl.SSLWantWriteError, ssl.SSLWantReadError, b"x"]

        def gettimeout(self):
            """Tell it."""
            return 7.0

        def settimeout(self, seconds):
            """Note it."""
            waits.append(seconds)

        def recv(self, size):
            """Give the next answer."""
            answer = self.answers.pop(0)
            if isinstance(answer, bytes):
                return answer
            raise answer

    def wait_for(connection, remaining, to_send):
        waits.append(to_send)
        return True

    monkeypatch.setattr(receiving, "wait_for", wait_for)
    monkeypatch.setattr(receiving.tls, "as_tls", lambda connection: connection)
    plain.request.close()
    plain.request = Secure()
    assert plain.exactly(1, GUARD) == b"x"
    assert waits == [0, 7.0, True, 0, 7.0, False, 0, 7.0]
    plain.request = plain.outer


@pytest.mark.parametrize("timeout", [None, GUARD])
def test_stop_ends_the_wait_for_a_message(serve, timeout):
    """It is an end of the stream, which the handler can still answer."""
    server = serve(make(lambda handler: handler.receive_exactly(10, timeout)))
    with connect(server) as client:
        client.sendall(b"half")
        until(lambda: server.clients and server.clients[1].bytes_received == 4)
        assert server.stop().drained == 1
        assert receive_all(client) == b"StreamEnded: the stream has ended after 4 of 10 bytes"


def test_protocol_with_headers_and_bodies_is_served(serve):
    """As a handler would use it: a line says how long the body is."""
    def handle(handler):
        while True:
            size = int(handler.receive_until(b"\n", limit=5, timeout=GUARD))
            handler.send(handler.receive_exactly(size, timeout=GUARD)[::-1])

    assert ask(serve(make(handle)), b"3\nabc2\nde12345\n" + b"x" * 12345) == (
        b"cbaed" + b"x" * 12345 + b"StreamEnded: the stream has ended after 0 bytes without b'\\n'")
    assert ask(serve(make(handle)), b"123456\n").startswith(b"LineTooLong: a message of more than 5 bytes")


@pytest.mark.parametrize("question, timeout, failed, logged", [
    (b"", None, 0, []), (b"half", None, 0, []),
    (b"half", 0.001, 1, ["WARNING client 1: 4 of 10 bytes have come within 0.001 seconds"])])
def test_message_that_the_handler_does_not_get_ends_its_client(serve, caplog, question, timeout, failed, logged):
    """A client that goes is no failure; one that is late is told in one line, without a traceback."""
    class Handler(ClientHandler):
        """Lets the error pass."""

        def handle(self):
            """Receive, once the question has arrived."""
            self.request.recv(len(question), socket.MSG_PEEK | socket.MSG_WAITALL)
            self.receive_exactly(10, timeout)

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(question)
        if timeout is None:
            client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    server.stop()
    stats = server.stats()
    assert (stats.finished, stats.failed) == (1, failed)
    assert [f"{record.levelname} {record.getMessage()}" for record in caplog.records] == logged
    assert all(record.exc_info is None for record in caplog.records)


def test_own_time_out_of_the_socket_stays(serve):
    """A handler's settimeout is for its own reads: these messages have theirs, and leave it alone."""
    def handle(handler):
        handler.request.settimeout(GUARD)
        assert handler.receive_exactly(2, GUARD) == b"ab"
        handler.send(b"%d" % handler.request.gettimeout())

    server = serve(make(handle), TLSServer)
    with connect_tls(server) as client:
        client.sendall(b"ab")
        assert receive_all(client) == b"%d" % GUARD


@pytest.mark.parametrize("base, sent, reply", [
    (ClientHandler, b"ann\nrest", b"ann: rest"), (ClientHandler, b"ann\n", b""),
    (LineHandler, b"ann\none\r\ntwo\nthree", b"ann: one\nann: two\nann: three\n"), (LineHandler, b"ann\n", b""),
])
@pytest.mark.parametrize("options", [{}, {"idle_timeout": GUARD}], ids=["plain", "idle"])
def test_what_has_come_with_a_login_in_setup_is_processed(serve, base, sent, reply, options):
    """A client need not wait for an answer to its first message before it sends the second one."""
    class Handler(base):
        """Expects a name first."""

        def setup(self):
            """Receive it."""
            self.user = self.receive_until(timeout=GUARD).strip()

        def process(self, data):
            """Say who has said it."""
            return self.user + b": " + data

    assert ask(serve(Handler, **options), sent) == reply


def test_rest_that_is_longer_than_is_asked_for_is_received_in_parts(plain):
    """Then the connection's own bytes follow."""
    plain.outer.sendall(b"name\nabcde")
    assert plain.receiver.until(plain.request, b"\n", 10, None) == b"name\n"
    receive_rest = plain.receiver.rest_of(plain.request)
    assert [receive_rest(3), receive_rest(3)] == [b"abc", b"de"]
    plain.outer.sendall(b"fg")
    assert receive_rest(3) == b"fg"


def test_rest_of_another_connection_is_not_processed(plain):
    """Bytes ahead of a handshake do not pass for what comes after it, here either."""
    plain.outer.sendall(b"name\nslipped in")
    assert plain.receiver.until(plain.request, b"\n", 10, None) == b"name\n"
    other, peer = socket.socketpair()
    with other, peer:
        peer.sendall(b"own")
        assert plain.receiver.rest_of(other)(99) == b"own"
