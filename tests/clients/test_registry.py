"""The registry and its clients."""
from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
from datetime import datetime, timedelta, timezone

import pytest

from threaded_echo import ClientHandler, ThreadedTCPServer, ThreadedUnixStreamServer, current_client
from threaded_echo.clients.client import Client
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry

from ..conftest import LOOPBACK
from ..tools import Echo, Gate, ask, connect, receive, receive_all, running, together, wait_until


def make(request, address="nowhere"):
    """Make a client of nobody's."""
    return Client(1, request, address, Period(), None)


@pytest.fixture
def pair():
    """Two ends of a TCP connection: the client's, and the server's with its Client."""
    with socket.create_server(LOOPBACK) as listener, socket.create_connection(listener.getsockname()) as outer:
        request, address = listener.accept()
        with request:
            outer.settimeout(20)
            yield outer, make(request, address)


def test_numbers_are_given_once_in_order(serve):
    """1, 2, 3, also after clients have gone."""
    server = serve(Echo)
    for number in (1, 2, 3):
        with connect(server) as client:
            client.sendall(b"x")
            client.recv(1)
            assert list(server.clients) == [number]
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
            assert not server.clients, "who sees the end finds the client gone"


def test_numbers_are_never_given_twice_by_several_threads():
    """Adding from many threads at once, as programs with own accept loops do."""
    registry = HandlerRegistry()
    clients = []

    def add():
        for _ in range(200):
            clients.append(registry.add(object(), "nowhere", Period()))

    together(4, add)
    assert sorted(client.number for client in clients) == list(range(1, 801))
    together(4, lambda: [registry.remove(client, registry.elsewhere) for client in clients])
    assert (registry.gone(), registry.live, registry.peak) == (800, {}, 800)


def test_client_tells_about_itself(serve):
    """Number, address, thread, age, state, time and traffic."""
    server = serve(Echo)
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    with connect(server) as connection:
        connection.sendall(b"hello")
        receive(connection, 5)
        client = server.clients[1]
        assert (client.number, client.address, client.state) == (1, connection.getsockname(), "serving")
        assert before < client.connected_at < datetime.now(timezone.utc) + timedelta(seconds=1)
        assert client.thread in threading.enumerate()
        assert 0 <= client.age < 20
        assert repr(client) == f"<Client 1 serving {client.address!r}>"
        if sys.platform == "linux":
            assert (client.bytes_received, client.bytes_sent) == (5, 5)
            assert 0 <= client.idle < 20
    server.stop()
    assert (client.state, client.thread) == ("gone", None)
    assert client.age == (age := client.age) and age < 20, "the time that it stayed"
    if sys.platform == "linux":
        assert (client.bytes_received, client.bytes_sent) == (5, 5), "its last counts stay"


def test_client_on_a_unix_socket_has_no_counts(tmp_path):
    """Where the kernel cannot tell, it is None, in the statistics too."""
    path = str(tmp_path / "socket")
    with ThreadedUnixStreamServer(path, Echo).start() as server, connect(server) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        client = server.clients[1]
        assert (client.bytes_received, client.bytes_sent, client.idle) == (None, None, None)
        assert server.stats().bytes_received is server.stats().bytes_sent is None
        client.disconnect()
        assert receive_all(connection) == b""


def test_snapshot_is_read_only_and_does_not_change(serve):
    """What was read stays as it was."""
    server = serve(Echo)
    assert not server.clients
    with connect(server) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        snapshot = server.clients
        with pytest.raises(TypeError):
            snapshot[2] = None
    server.stop()
    assert list(snapshot) == [1] and not server.clients


def test_disconnect_ends_one_client_only(serve):
    """The other one is not touched; twice is as good as once; a gone client is left alone."""
    server = serve(Echo)
    with connect(server) as one, connect(server) as two:
        for connection in (one, two):
            connection.sendall(b"x")
            connection.recv(1)
        by_address = {client.address: client for client in server.clients.values()}
        first = by_address[one.getsockname()]
        first.disconnect()
        first.disconnect()
        assert receive_all(one) == b""
        two.sendall(b"y")
        assert two.recv(1) == b"y"
    server.stop()
    first.disconnect()
    first._wake()
    assert first.reason == "disconnect"
    assert server.stats().failed == 0


def test_disconnect_of_a_busy_handler_says_so(serve):
    """A handler that is elsewhere goes on until it comes to its connection."""
    gate = Gate(lambda handler: handler.request.sendall(b"x" * 10_000_000))
    server = serve(gate.handler)
    with connect(server) as connection:
        wait_until(gate.entered)
        client = server.clients[1]
        client.disconnect()
        assert receive_all(connection) == b"" and client.state == "disconnecting"
        gate.release.set()
    server.stop()
    assert server.stats().failed == 0, "that its send failed is no failure"


def test_send_to_a_gone_client_raises(serve):
    """A ConnectionError, with its number."""
    server = serve(Echo)
    with connect(server) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        client = server.clients[1]
        client.send(b"from outside")
        assert receive(connection, 12) == b"from outside"
    server.stop()
    with pytest.raises(ConnectionError, match="client 1: the client has gone"):
        client.send(b"x")


def test_send_of_another_thread_is_ended_by_the_handlers_end(serve):
    """The closing of a connection and a blocked send by somebody else exclude each other."""
    gate = Gate()
    server = serve(gate.handler)
    sending = threading.Event()
    errors = []

    def send():
        try:
            while True:
                client.send(b"x" * 1_000_000)
                sending.set()
        except OSError as error:
            errors.append(error)

    with connect(server) as connection:
        wait_until(gate.entered)
        client = server.clients[1]
        client._connection.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_000_000)
        with running(send):
            gate.release.set()  # its client reads nothing, so that the send blocks, before or after
            while not errors:
                connection.settimeout(0.01)
                try:
                    connection.recv(1)
                except TimeoutError:
                    continue
    assert isinstance(errors[0], ConnectionError)


def test_handler_that_closes_its_own_socket_is_left_alone(pair):
    """Its descriptor may belong to somebody else by then: that connection is not touched."""
    outer, client = pair
    number = client._connection.request.fileno()
    with socket.create_server(LOOPBACK) as listener, connect(listener.getsockname()) as other:
        request, _ = listener.accept()
        client._connection.request.close()
        os.dup2(request.fileno(), number)
        with request, socket.socket(fileno=number) as innocent:
            client._wake()
            client.disconnect()
            other.sendall(b"still there")
            assert innocent.recv(100) == b"still there"
            assert client._connection.is_taken_over() and client._connection.is_lost()
            client._end()


def test_handler_that_closes_between_is_left_alone(pair, monkeypatch):
    """The race itself: the request is closed, and its descriptor reused, as it is being duplicated."""
    outer, client = pair
    with socket.create_server(LOOPBACK) as listener, connect(listener.getsockname()) as other:
        innocent, _ = listener.accept()

        def duplicate(number, dup=socket.dup):
            client._connection.request.close()
            os.dup2(innocent.fileno(), number)
            copy = dup(number)
            os.close(number)
            return copy

        monkeypatch.setattr(socket, "dup", duplicate)
        with innocent:
            client.disconnect()
            other.sendall(b"still there")
            assert innocent.recv(100) == b"still there"
            client._end()


def test_detached_connection_is_still_woken(pair):
    """A handler that has wrapped its request, as TLS does, sees the end of file all the same."""
    outer, client = pair
    with socket.socket(fileno=client._connection.request.detach()) as wrapped:
        assert client._connection.is_taken_over()
        client._wake()
        assert wrapped.recv(1) == b""
        client.disconnect()
        assert receive_all(outer) == b""
        client._end()


def test_wake_works_when_descriptors_have_run_out(pair, monkeypatch):
    """Without a duplicate, the connection is shut down directly."""
    outer, client = pair

    def fail(number):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "dup", fail)
    client._wake()
    assert client._connection.request.recv(1) == b""
    client._end()


def test_wake_of_a_tls_client_keeps_its_encryption(pair, monkeypatch):
    """SSLSocket.shutdown would drop the TLS object, and a later send would go out in clear."""
    outer, client = pair
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped = context.wrap_socket(client._connection.request, server_side=True, do_handshake_on_connect=False)
    with wrapped:
        client._connection.follow(wrapped)
        monkeypatch.setattr(socket, "dup", lambda number: (_ for _ in ()).throw(OSError(24, "")))
        client._wake()
        assert wrapped._sslobj is not None
        client._end()


def test_follow_after_the_end_changes_nothing(pair):
    """A client that has gone stays gone."""
    outer, client = pair
    registry = HandlerRegistry()
    request = client._connection.request
    client = registry.add(request, client.address, Period())
    assert registry.find(request) is client
    assert registry.remove(client, registry.elsewhere) and not registry.remove(client, registry.elsewhere)
    client._connection.follow(request)
    registry.follow(client, request)
    assert client._connection.request is None and registry.find(request) is None


def test_datagram_has_no_connection_to_shut():
    """A request that is no socket is numbered, and nothing else."""
    client = make((b"data", None), ("127.0.0.1", 9))
    client._wake()
    client.disconnect()
    assert client._connection.traffic() is None and client.state == "disconnecting" and client._connection.is_lost()


def test_current_client_is_that_of_the_calling_thread(serve):
    """In a handler its client; elsewhere None; for foreign handlers too."""
    class Handler(ClientHandler):
        """Tells its number."""

        def process(self, data):
            """Tell, unless it is wrong."""
            client = current_client()
            return b"%d" % client.number if client is self.client else b"no"

    server = serve(Handler)
    assert [ask(server, b"?") for _ in range(3)] == [b"1", b"2", b"3"]
    assert current_client() is None


def test_ten_thousand_clients_are_added_and_removed_like_one():
    """No step looks at the others: the same lines of Python run, on dicts."""
    registry, period = HandlerRegistry(), Period()
    clients = [registry.add(object(), number, period) for number in range(10_000)]

    def steps(work):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()  # a coverage tool's
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(before)
        return count

    assert isinstance(registry.live, dict) and isinstance(registry.closing, dict), "so that no search is in C either"
    removed_with_many = steps(lambda: registry.remove(clients[5_000], registry.elsewhere))
    with_many = steps(lambda: clients.append(registry.add(object(), "nowhere", period)))
    for client in clients:
        registry.remove(client, registry.elsewhere)
    assert not registry.live
    registry.totals()
    assert steps(lambda: clients.append(registry.add(object(), "nowhere", period))) == with_many
    assert steps(lambda: registry.remove(clients[-1], registry.elsewhere)) == removed_with_many


def test_statistics_add_up(serve):
    """accepted == live + finished + refused, and the bytes are those that passed."""
    class Server(ThreadedTCPServer):
        """Refuses every third."""

        def verify_request(self, request, client_address):
            """Count."""
            return current_client().number % 3 != 0

    server = serve(Echo, Server)
    assert server.stats().seconds_up > 0
    for number in range(1, 7):
        if number % 3:
            assert ask(server, b"hello") == b"hello"
        else:
            with connect(server) as connection:
                assert receive_all(connection) == b""
    with connect(server) as connection:
        connection.sendall(b"abc")
        receive(connection, 3)
        stats = server.stats()
        assert (stats.accepted, stats.refused, stats.live, stats.finished, stats.failed) == (7, 2, 1, 4, 0)
        assert stats.threads_busy >= 1 and stats.peak >= 1
        if sys.platform == "linux":
            assert stats.bytes_received >= 4 * 5 + 3 and stats.bytes_sent == 4 * 5 + 3
    server.stop()
    assert server.stats().threads_busy == server.stats().threads_idle == 0


def test_client_refused_in_a_handler_of_another_server_is_counted_by_its_own(serve):
    """A handler that accepts for a second server does not mix up the counts of both."""
    class Refusing(ThreadedTCPServer):
        """Turns everybody away."""

        def verify_request(self, request, client_address):
            """Refuse."""
            return False

    class Handler(ClientHandler):
        """Accepts for the other server."""

        def process(self, data):
            """Accept."""
            other.handle_request()
            return data

    with Refusing(LOOPBACK) as other:
        server = serve(Handler)
        with connect(other):
            assert ask(server) == b"ping\n"
        assert (other.stats().accepted, other.stats().refused) == (1, 1)
        assert server.stop().clean
        assert (server.stats().accepted, server.stats().finished, server.stats().refused) == (1, 1, 0)


def test_statistics_of_a_server_that_has_not_served():
    """All zero."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        stats = server.stats()
        assert (stats.accepted, stats.bytes_received, stats.seconds_up) == (0, 0, 0.0)


class Wrapper:
    """A connection that is no socket, as some TLS libraries have it."""

    def __init__(self, connection):
        self._connection = connection

    def fileno(self):
        """Return the descriptor."""
        return self._connection.fileno()


def test_connection_that_is_no_socket_is_woken_and_released(pair, monkeypatch):
    """It needs a descriptor, and nothing else of a socket."""
    outer, client = pair
    request = client._connection.request
    client._connection.follow(Wrapper(request))
    assert client._connection.traffic() is None and client._connection.is_lost()
    client._wake()
    assert request.recv(1) == b""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "dup", lambda number: (_ for _ in ()).throw(OSError(24, "")))
        client._wake()
    client._end()


def test_descriptor_that_a_file_has_taken_over_is_left_alone(pair, tmp_path):
    """The handler has closed its socket, and its descriptor is a file's."""
    outer, client = pair
    number = client._connection.request.fileno()
    with open(tmp_path / "file", "w") as file:
        client._connection.request.close()
        os.dup2(file.fileno(), number)
        client._wake()
        os.write(number, b"still there")
        os.close(number)
    assert (tmp_path / "file").read_text() == "still there"
    client._end()


def test_unix_descriptor_that_another_client_has_is_left_alone():
    """Unnamed peers all look alike: a client whose handler has closed it is not looked for."""
    request, outer = socket.socketpair()
    innocent, other = socket.socketpair()
    with outer, innocent, other:
        client = make(request, "")
        number = request.fileno()
        request.close()
        os.dup2(innocent.fileno(), number)
        client.disconnect()
        os.close(number)
        other.sendall(b"still there")
        assert innocent.recv(100) == b"still there"
        client._end()


def test_release_does_not_wait_for_a_send_into_a_closed_socket(pair):
    """The handler has closed its own socket while another thread was sending: nothing would end that wait."""
    outer, client = pair
    with client._connection.sending:  # another thread's
        client._connection.request.close()
        client._end()
    assert client.state == "gone"
