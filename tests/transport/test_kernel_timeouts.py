"""Time-outs that the kernel keeps: silent peers, and sends that make no progress."""
from __future__ import annotations

import errno
import os
import socket
import socketserver
import ssl
import struct
import threading

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer, current_client
from threaded_echo.transport import kernel_timeouts
from threaded_echo.transport.kernel_timeouts import ListenerTimeouts, has_send_timed_out

from ..conftest import LOOPBACK
from ..tools import Echo, Flood, ask, connect, receive_all, subclass, until, wait_until
from .test_tls import TLSServer, connect_tls

TCP = socket.IPPROTO_TCP


def timeouts_of(connection):
    """Return what is set on a socket: keep-alive, its seconds, interval and probes, the sends' milliseconds."""
    if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return (0, connection.getsockopt(TCP, socket.TCP_USER_TIMEOUT))
    return tuple(connection.getsockopt(TCP, option) for option in (
        socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT))


class Told(Echo):
    """Keeps what is set on its connection."""

    seen: list

    def setup(self):
        """Look."""
        self.seen.append(timeouts_of(self.request))


@pytest.fixture
def told():
    """A handler class, and a server that is made with the options; ``told(server_class, ...)`` serves one client."""
    def start(server_class=ThreadedTCPServer, **options):
        """Return what is set on an accepted connection, without one call for it."""
        seen: list = []
        with server_class(LOOPBACK, type("Handler", (Told,), {"seen": seen}), **options) as server:
            assert ask(server.start()) == b"ping\n"
            assert server._threaded_state.kernel_timeouts.set_on_each is None
        [found] = seen
        return found

    return start


@pytest.mark.parametrize("options, expected", [
    ({}, (60, 15, 4, 0)), ({"keepalive": 1}, (1, 1, 4, 0)), ({"keepalive": 0.2}, (1, 1, 4, 0)),
    ({"keepalive": 32767}, (32767, 8192, 4, 0)), ({"keepalive": None}, (0, 0)),
    ({"send_timeout": 1.5}, (60, 15, 4, 1500)), ({"send_timeout": 0.0001, "keepalive": None}, (0, 1)),
    ({"send_timeout": 1e9}, (60, 15, 4, 2**31 - 1))])
def test_connection_inherits_the_time_outs_of_its_listener(told, options, expected):
    """They are whole seconds, rounded up, and whole milliseconds, in the kernel's range."""
    assert told(**options) == expected


def test_listener_that_a_program_has_replaced_gets_them(told):
    """It is the one that is there when serving begins."""
    def server_activate(self):
        """Replace the socket, and listen."""
        self.socket.close()
        self.socket = socket.create_server(LOOPBACK)
        self.server_address = self.socket.getsockname()

    assert told(subclass(server_activate=server_activate), send_timeout=2.0) == (60, 15, 4, 2000)


def test_listener_that_is_wrapped_in_tls_gets_them(serve):
    """Its connections are wrapped after they have inherited."""
    handler = type("Handler", (Told,), {"seen": []})
    with connect_tls(serve(handler, TLSServer, send_timeout=2.0)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert handler.seen == [(60, 15, 4, 2000)]


def test_keep_alive_that_a_program_has_set_on_its_listener_stays_unless_the_option_is_set(told):
    """The default of the option does not undo the program's own choice."""
    def server_bind(self):
        """Bind, and set it."""
        ThreadedTCPServer.server_bind(self)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket.setsockopt(TCP, socket.TCP_KEEPIDLE, 7)
        self.socket.setsockopt(TCP, socket.TCP_KEEPINTVL, 8)
        self.socket.setsockopt(TCP, socket.TCP_KEEPCNT, 9)
        self.socket.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 12)

    server_class = subclass(server_bind=server_bind)
    assert told(server_class) == (7, 8, 9, 12)
    assert told(server_class, keepalive=None) == (7, 8, 9, 12)
    assert told(server_class, keepalive=20, send_timeout=1) == (20, 5, 4, 1000)


def test_change_holds_when_the_server_serves_again():
    """Also if it takes back what was set before."""
    seen: list = []
    with ThreadedTCPServer(LOOPBACK, type("Handler", (Told,), {"seen": seen}), send_timeout=1.0) as server:
        for server.keepalive, server.send_timeout in ((60.0, 1.0), (20.0, 3.0), (60.0, None), (None, None)):
            assert ask(server.start()) == b"ping\n"
            server.shutdown()
        with connect(server) as client:
            server.keepalive = 8.0
            server.handle_request()
            assert client.getsockname()
        with connect(server) as client:
            server.handle_request()
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    assert seen[:4] == [(60, 15, 4, 1000), (20, 5, 4, 3000), (60, 15, 4, 0), (0, 0)] and seen[-1] == (8, 2, 4, 0)


def test_loop_on_handle_request_sets_them_once(monkeypatch):
    """What the program sets on its listener afterwards stays, and another listener is another matter."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.timeout = 0
        server.handle_request()
        server.socket.setsockopt(TCP, socket.TCP_KEEPIDLE, 5)
        server.handle_request()
        assert timeouts_of(server.socket) == (5, 15, 4, 0)
        server.socket.close()
        server.socket = socket.create_server(LOOPBACK)
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        server.keepalive = None
        server.handle_request()
        assert timeouts_of(server.socket)[0] != 0, "the program has turned it on, and nobody else turns it off"


def test_platform_where_nothing_is_inherited_sets_them_on_each_connection(monkeypatch):
    """As it is on macOS, say: the listener is left alone."""
    monkeypatch.setattr(kernel_timeouts, "_IS_INHERITED", False)
    seen: list = []
    with ThreadedTCPServer(LOOPBACK, type("Handler", (Told,), {"seen": seen}), send_timeout=1.0) as server:
        assert ask(server.start()) == b"ping\n"
        assert timeouts_of(server.socket) == (0, 0)
        server.shutdown()
        server.send_timeout = None
        assert ask(server.start()) == b"ping\n"
        server.shutdown()
        server.keepalive, server.send_timeout = None, 2.0
        assert ask(server.start()) == b"ping\n"
        server.shutdown()
        server.send_timeout = None
        assert ask(server.start()) == b"ping\n"
        assert server._threaded_state.kernel_timeouts.set_on_each is None
    assert seen == [(60, 15, 4, 1000), (60, 15, 4, 0), (0, 2000), (0, 0)]


def test_connection_that_is_reset_already_or_no_socket_is_left_to_its_handler(monkeypatch):
    """Whatever is wrong with it is not the door's concern."""
    timeouts = ListenerTimeouts()
    with socket.socket(socket.AF_UNIX) as listener:
        timeouts.set_up(listener, 60.0, 1.0)
    with socket.socket() as closed:
        pass
    timeouts.set_on_each(closed)
    timeouts.set_on_each(object())


def test_what_is_no_stream_listener_is_left_alone():
    """Handlers of datagrams send through the listening socket itself; a closed one is no error here."""
    server_class = type("Server", (ThreadedMixIn, socketserver.UDPServer), {"send_timeout": 1.0})
    with server_class(LOOPBACK, socketserver.DatagramRequestHandler).start() as server:
        assert server._threaded_state.kernel_timeouts.set_on_each is None
        assert not server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    timeouts = ListenerTimeouts()
    with socket.socket() as closed:
        pass
    for listener in (None, closed):
        timeouts.set_up(listener, 60.0, 1.0)


def test_platform_without_a_name_for_something_goes_without(monkeypatch):
    """Keep-alive is turned on all the same."""
    for name in ("TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name)
    with socket.create_server(LOOPBACK) as listener:
        ListenerTimeouts().set_up(listener, 5.0, None)
        assert listener.getsockopt(TCP, socket.TCP_KEEPIDLE) == 5


# Sends that make no progress.

def log_reasons(**body):
    """Make a server class that keeps the reasons."""
    reasons: list = []
    return reasons, subclass(client_disconnected=lambda self, client: reasons.append(client.reason), **body)


def test_client_that_reads_nothing_is_ended(serve, caplog):
    """The handler, which knows nothing of this package, is in the middle of a send."""
    caplog.set_level("INFO", logger="threaded_echo")
    reasons, server_class = log_reasons()
    server = serve(Flood().handler, server_class, send_timeout=0.2)
    with connect(server) as connection:
        until(lambda: server.stats().finished == 1)
        connection.close()
    server.stop()
    assert reasons == ["send"] and server.stats().failed == 0
    assert [record.getMessage() for record in caplog.records] == [
        "client 1 was disconnected: it did not take what was sent to it"]


def test_tls_client_that_reads_nothing_is_ended(serve):
    """The error comes through OpenSSL."""
    reasons: list = []
    server_class = type("Server", (TLSServer,), {
        "client_disconnected": lambda self, client: reasons.append(client.reason)})
    server = serve(Flood().handler, server_class, send_timeout=0.2)
    with connect_tls(server):
        until(lambda: server.stats().finished == 1)
    server.stop()
    assert reasons == ["send"] and server.stats().failed == 0


def test_client_on_a_unix_socket_that_reads_nothing_is_ended(tmp_path):
    """There each send has the time-out."""
    reasons: list = []
    server_class = type("Server", (ThreadedUnixStreamServer,), {
        "client_disconnected": lambda self, client: reasons.append(client.reason)})
    with server_class(str(tmp_path / "socket"), Flood().handler, send_timeout=0.1).start() as server:
        with connect(server) as connection:
            until(lambda: server.stats().finished == 1)
            receive_all(connection)
    assert reasons == ["send"] and server.stats().failed == 0


def test_platform_without_the_time_out_for_tcp_limits_each_send(serve, monkeypatch):
    """The same way as for Unix sockets."""
    monkeypatch.setattr(kernel_timeouts, "_IS_INHERITED", False)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    reasons, server_class = log_reasons()
    server = serve(Flood().handler, server_class, send_timeout=0.1)
    with connect(server) as connection:
        until(lambda: server.stats().finished == 1)
        receive_all(connection)
    server.stop()
    assert reasons == ["send"] and server.stats().failed == 0


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_send_of_another_thread_that_makes_no_progress_is_a_time_out(tmp_path, family):
    """It raises an error, and the handler, which receives at the time, meets one, too: either may be the time-out."""
    with (ThreadedTCPServer(LOOPBACK, Echo, send_timeout=0.1) if family == "tcp" else
          ThreadedUnixStreamServer(str(tmp_path / "socket"), Echo, send_timeout=0.1)).start() as server:
        with connect(server) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            [client] = server.clients.values()
            with pytest.raises(OSError) as raised:
                client.send(b"x" * 100_000_000)
            if isinstance(raised.value, TimeoutError) or family == "unix":
                assert raised.value.errno == errno.ETIMEDOUT
                assert "client 1 takes nothing of what is sent to it" in str(raised.value)
            until(lambda: client.state == "gone")
            assert client.reason == "send"
            with pytest.raises(ConnectionError):
                client.send(b"x")
    assert server.stats().failed == 0


def test_handler_that_waits_for_a_client_that_takes_nothing_is_told(serve):
    """The kernel ends the connection while the handler receives: the undelivered bytes tell why."""
    reasons, server_class = log_reasons()

    class Handler(socketserver.BaseRequestHandler):
        """Fills the client's buffer, and its own."""

        def handle(self):
            """Send what the kernel takes, then receive."""
            self.request.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    self.request.send(b"x" * 100_000)
            self.request.setblocking(True)
            self.request.recv(1)

    server = serve(Handler, server_class, send_timeout=0.2)
    with connect(server):
        until(lambda: server.stats().finished == 1)
    server.stop()
    assert reasons == ["send"] and server.stats().failed == 0


def test_slow_reader_is_not_ended(serve):
    """It takes longer than the time-out for the whole, and never as long without any progress."""
    done = threading.Event()
    seen: list = []

    class Handler(socketserver.BaseRequestHandler):
        """Sends much."""

        def handle(self):
            """Send."""
            self.request.sendall(b"x" * 20_000_000)
            seen.append(current_client().reason)
            done.set()

    server = serve(Handler, send_timeout=5.0)
    with connect(server) as connection:
        while not done.is_set() and connection.recv(65536):
            pass
        wait_until(done)
        receive_all(connection)
    assert seen == [None]


def timed_out():
    """Make the error of a connection whose time is up."""
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def test_errors_of_another_kind_are_no_send_that_has_timed_out():
    """What keep-alive or the kernel itself gives up, a time-out of Python's, a socket that does not block."""
    with socket.create_server(LOOPBACK) as listener, socket.create_connection(listener.getsockname()) as outer:
        request, _ = listener.accept()
        with request:
            assert not has_send_timed_out(request, timed_out()), "no time-out is set"
            request.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1000)
            assert not has_send_timed_out(request, timed_out()), "the client has taken everything"
            assert not has_send_timed_out(request, TimeoutError("timed out"))
            assert not has_send_timed_out(request, ZeroDivisionError())
            assert not has_send_timed_out(request, None)
            assert not has_send_timed_out(request, ssl.SSLEOFError(8, "EOF occurred")), "nothing is undelivered"
            assert not has_send_timed_out(request, BlockingIOError(errno.EAGAIN, "again")), "no time-out is set"
            request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 1, 0))
            assert has_send_timed_out(request, BlockingIOError(errno.EAGAIN, "again"))
            request.setblocking(False)
            assert not has_send_timed_out(request, BlockingIOError(errno.EAGAIN, "again")), "it never waits"
            assert outer.fileno() >= 0
    assert not has_send_timed_out(request, timed_out()), "it is closed"
    assert not has_send_timed_out(object(), timed_out())
