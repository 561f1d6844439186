"""A client's connection, which other threads wake, cut and send on while its handler may close it."""
from __future__ import annotations

import os
import socket
import ssl

from threaded_echo.clients.backlog import Offer
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry

from ..conftest import LOOPBACK
from ..tools import Gate, connect, receive_all, running, until, wait_until
from .conftest import make


class Wrapper:
    """A connection that is no socket, as some TLS libraries have it."""

    def __init__(self, connection):
        self._connection = connection

    def fileno(self):
        """Return the descriptor."""
        return self._connection.fileno()


def test_send_of_another_thread_is_ended_by_the_handlers_end(serve):
    """The closing of a connection and a blocked send by somebody else exclude each other."""
    gate, errors = Gate(), []
    server = serve(gate.handler)

    def send():
        try:
            client.send(b"x" * 100_000_000)  # its client reads nothing
        except OSError as error:
            errors.append(error)

    with connect(server):
        wait_until(gate.entered)
        client = server.clients[1]
        with running(send):
            until(client._connection.sending.locked)
            gate.release.set()
        assert isinstance(errors[0], ConnectionError)
        until(lambda: client.state == "gone")


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


def test_handler_that_closes_while_its_descriptor_is_duplicated_is_left_alone(pair, monkeypatch):
    """The request is closed, and its descriptor is used again, while it is being duplicated."""
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


class Watched:
    """A lock that calls a function when it has been released, and one when it has been taken."""

    def __init__(self, lock, taken=lambda: None, released=lambda: None):
        self._lock, self._taken, self._released = lock, taken, released

    def __enter__(self):
        self._lock.acquire()
        self._taken()

    def __exit__(self, *error):
        self._lock.release()
        self._released()


def test_broadcast_just_as_a_client_begins_to_be_served_reaches_it(pair):
    """Whoever sees its phase finds nothing in the way any more, such as the PROXY header that has come."""
    outer, client = pair
    outcomes = []
    client._connection.await_header()
    assert client._offer(b"too soon", queues=True) is Offer.MISSED
    client._lock = Watched(client._lock, released=lambda: outcomes.append(client._offer(b"now", queues=True)))
    client._move("serving")
    assert outcomes == [Offer.SENT]
    assert outer.recv(100) == b"now"


def test_obstacle_is_taken_away_with_the_lock_held(pair):
    """A broadcast that has the lock, and has read the obstacle, would else put it back for good."""
    _, client = pair
    connection, found = client._connection, []
    connection.await_header()
    connection._lock = Watched(connection._lock, *[lambda: found.append(connection.obstacle)] * 2)
    connection.allow_sending()
    assert len(found) == 2 and found[0] is not None and found[1] is None
