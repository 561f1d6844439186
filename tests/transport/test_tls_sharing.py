"""TLS connections that several threads use at once."""
from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress

import pytest

from threaded_echo import current_client
from threaded_echo.transport import tls
from threaded_echo.transport.tls_sharing import SharedTLSSocket, share

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, connect, receive, receive_all, running, until, wait_until
from .test_tls import CERTIFICATE, connect_tls, server_context


@pytest.fixture
def pair():
    """Connect two ends by TLS; the server's is shared."""
    with socket.create_server(LOOPBACK) as listener:
        client = connect(listener.getsockname())
        ours = tls.wrap(server_context(), listener.accept()[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    context.post_handshake_auth = True
    with ours, client:
        with running(tls.shake_hands, ours):
            client = context.wrap_socket(client, server_hostname="localhost")
        assert type(ours) is SharedTLSSocket
        with client:
            yield ours, client


def fill(ours):
    """Send until there is no room."""
    ours.setblocking(False)
    with pytest.raises(ssl.SSLWantWriteError):
        while True:
            ours.send(bytes(16384))


class Watched:
    """OpenSSL's part of a connection; knows (`most`) how many threads were in there at once."""

    def __init__(self, own):
        self._own = own
        self._inside = []
        self.most = 0

    def __getattr__(self, name):
        method = getattr(self._own, name)

        def call(*arguments):
            self._inside.append(name)
            self.most = max(self.most, len(self._inside))
            try:
                return method(*arguments)
            finally:
                self._inside.remove(name)

        return call


def test_one_thread_at_a_time_is_in_openssl(pair):
    """One receives, and has to wait; meanwhile another one sends more than there is room for."""
    ours, client = pair
    watched = ours._sslobj = Watched(ours._sslobj)
    received = []
    with running(lambda: received.append(receive(ours, 3_000_000))), running(ours.sendall, bytes(3_000_000)):
        with running(client.sendall, bytes(3_000_000)):
            assert receive(client, 3_000_000) == bytes(3_000_000)
    assert received == [bytes(3_000_000)] and watched.most == 1
    ours._sslobj = watched._own


def test_sends_of_two_threads_do_not_break_each_other(serve):
    """The handler sends by its socket, and another thread by the client, and there is no room for either."""
    class Both(Echo):
        """Sends much."""

        def handle(self):
            """Send, and wait for the end."""
            self.request.sendall(b"h" * 5_000_000)
            self.request.recv(1)

    server = serve(Both, ssl_context=server_context())
    with connect_tls(server) as client:
        until(lambda: server.clients[1].state == "serving")
        with running(server.clients[1].send, b"c" * 5_000_000):
            until(server.clients[1]._connection.sending.locked)
            data = receive(client, 10_000_000)
    assert (data.count(b"h"), data.count(b"c")) == (5_000_000, 5_000_000)


def test_time_out_is_told_as_it_was_set(pair):
    """And holds for receiving and sending, although the descriptor itself does not block."""
    ours, client = pair
    assert (ours.gettimeout(), ours.timeout, ours.getblocking()) == (None, None, True)
    with pytest.raises(ValueError, match="out of range"):
        ours.settimeout(-1)
    assert ours.gettimeout() is None
    ours.settimeout(0.01)
    with pytest.raises(TimeoutError, match="The read operation timed out"):
        ours.recv(1)
    ours.setblocking(False)
    assert (ours.gettimeout(), ours.getblocking()) == (0.0, False)
    with pytest.raises(ssl.SSLWantReadError):
        ours.recv(1)
    fill(ours)
    ours.settimeout(0.01)
    with pytest.raises(TimeoutError, match="The write operation timed out"):
        ours.send(bytes(16384))
    ours.setblocking(True)
    assert ours.gettimeout() is None


def test_send_that_waits_for_another_threads_has_the_time_out(pair):
    """Nothing of it is mixed into the other one."""
    ours, client = pair
    ours.settimeout(0.01)
    inside, release = threading.Event(), threading.Event()

    def hold():
        with ours._sending:
            inside.set()
            wait_until(release)

    with running(hold):
        wait_until(inside)
        with pytest.raises(TimeoutError, match="The write operation timed out"):
            ours.send(b"x")
        ours.setblocking(False)
        with pytest.raises(ssl.SSLWantWriteError, match="another thread is sending"):
            ours.send(b"x")
        release.set()


def test_half_a_record_keeps_no_other_thread_from_sending(pair):
    """Whoever receives waits for the rest of it, and OpenSSL is free meanwhile."""
    ours, client = pair
    received = []
    with running(lambda: received.append(ours.recv(100))):
        socket.socket.send(client, b"\x17\x03\x03\x00\x20")
        for _ in range(3):
            ours.sendall(b"x")
            assert client.recv(1) == b"x"
        with suppress(OSError):
            socket.socket.shutdown(client, socket.SHUT_WR)
    assert received == [b""]


def test_files_and_large_messages_work(pair):
    """Also of items that are not bytes."""
    ours, client = pair
    with ours.makefile("rb") as reader, ours.makefile("wb") as writer:
        client.sendall(b"a line\nanother\n")
        assert reader.readlines(14) == [b"a line\n", b"another\n"]
        writer.write(bytes(50_000))
        writer.flush()
        assert receive(client, 50_000) == bytes(50_000)
    with running(ours.sendall, memoryview(bytes(400_000)).cast("I")):
        assert receive(client, 400_000) == bytes(400_000)
    assert ours.write(b"x") == 1 and client.recv(1) == b"x"


def test_unwrapped_socket_is_an_ordinary_one(pair):
    """It blocks as it was set to, and what it sends is plain."""
    ours, client = pair
    ours.settimeout(GUARD)
    plain = []
    with running(lambda: plain.append(client.unwrap())):
        assert ours.unwrap() is ours
    assert socket.socket.gettimeout(ours) == ours.gettimeout() == GUARD
    ours.send(b"plain")
    assert receive(plain[0], 5) == b"plain"


def test_handler_that_shuts_down_one_direction_keeps_tls_in_the_other(serve):
    """What another thread sends then is not in the clear; nor is what the handler reads not understood."""
    shut, release = threading.Event(), threading.Event()

    class Shut(Echo):
        """Shuts down."""

        def handle(self):
            """For the first client receiving, for the second one sending."""
            if current_client().number == 1:
                self.request.shutdown(socket.SHUT_RD)
                shut.set()
                wait_until(release)
            else:
                self.request.shutdown(socket.SHUT_WR)
                received.append(receive(self.request, 5))

    received = []
    server = serve(Shut, ssl_context=server_context())
    with connect_tls(server) as client:
        wait_until(shut)
        server.clients[1].send(b"secret")
        assert receive(client, 6) == b"secret"
        release.set()
    with connect_tls(server) as client:
        client.sendall(b"hello")
        assert receive_all(client) == b""
        until(lambda: received == [b"hello"])


def test_shared_socket_that_is_detached_blocks_as_it_was_set(pair):
    """Whoever takes the descriptor knows nothing of all this. What others send does not go there, nor a goodbye."""
    ours, client = pair
    ours.sendall(b"x")
    assert client.recv(1) == b"x"
    with socket.socket(fileno=ours.detach()) as plain:
        assert plain.gettimeout() is None and plain.getblocking()
        for call in (lambda: ours.send(b"x"), lambda: ours.read(1), ours.send_close_notify):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()
        plain.shutdown(socket.SHUT_WR)
        assert socket.socket.recv(client, 1000) == b""


def test_shared_socket_is_closed_by_who_is_alone_in_openssl(pair):
    """Else a handler that closes its own would have another thread's send go on in whatever connection is next."""
    ours, _ = pair
    open_at = []

    class Using:
        """The lock that is held while OpenSSL does something."""

        def __enter__(self):
            open_at.append(ours.fileno() >= 0)

        def __exit__(self, *error):
            open_at.append(ours.fileno() >= 0)

    ours._using = Using()
    ours.close()
    assert open_at == [True, False]


def test_tls_that_ends_in_the_middle_of_a_send_sends_nothing_in_the_clear(pair):
    """The send fails when there is room again."""
    ours, client = pair
    fill(ours)
    ours.setblocking(True)
    errors = []

    def send():
        try:
            ours.sendall(b"secret" * 10_000)
        except ConnectionAbortedError as error:
            errors.append(str(error))

    with running(send):
        until(lambda: not ours._sending.acquire(blocking=False) or ours._sending.release())
        ours._sslobj = None  # as unwrap() in another thread does
        data = bytearray()
        until(lambda: errors or data.extend(socket.socket.recv(client, 65536)))
    assert errors == ["TLS has ended in the middle of a send"] and b"secret" not in data


def test_goodbye_waits_for_nothing(pair):
    """Neither for the peer's own, nor for room."""
    ours, client = pair
    tls.send_close_notify(ours)
    assert receive_all(client) == b"" and ours.gettimeout() is None


def test_certificate_can_be_asked_for_later(pair):
    """The rest of that handshake is for whoever sends and receives."""
    ours, client = pair
    ours.context.verify_mode = ssl.CERT_OPTIONAL
    with suppress(ssl.SSLError):
        ours.verify_client_post_handshake()
    ours.do_handshake()
    ours.sendall(b"x")
    assert client.recv(1) == b"x"


def test_class_of_the_programs_own_is_left_as_it_is(serve):
    """It may have its own way; a stop says goodbye all the same."""
    class Own(ssl.SSLSocket):
        """The program's."""

    context = server_context()
    context.sslsocket_class = Own
    server = serve(Echo, ssl_context=context)
    with connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert type(server.clients[1]._connection.request) is Own
        server.stop()
        assert receive_all(client) == b""


def test_sharing_twice_changes_nothing(pair):
    """A program may call for the details of a handshake again."""
    using = pair[0]._using
    share(pair[0])
    assert pair[0]._using is using
