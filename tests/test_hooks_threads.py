"""The hooks where threads meet: who closes whose connection, and what becomes of a client in between."""
from __future__ import annotations

import errno
import os
import socket
import socketserver
import threading

import pytest

from threaded_echo import ClientHandler, ThreadedMixIn, ThreadedTCPServer, current_client
from threaded_echo.clients.threads import HandlerThread

from .conftest import LOOPBACK
from .tools import GUARD, Echo, Gate, ask, connect, receive, receive_all, running, subclass, until, wait_until


def test_handler_thread_that_comes_second_to_close_leaves_it_alone(serve, monkeypatch):
    """Somebody else had found the client before its thread began, and was faster at its end."""
    went = []
    server = serve(Echo, subclass(client_disconnected=lambda self, client: went.append(client.number)))
    registry = server._threaded_state.registry
    remove, removed = registry.remove, []

    def remove_second(client, queue):
        with running(lambda: removed.append(remove(client, registry.elsewhere))):
            pass
        removed.append(remove(client, queue))
        client._connection.accepted = None
        requests.pop().close()  # the other one's to close
        return removed[-1]

    requests = []
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        requests.append(server.clients[1]._connection.request)
        monkeypatch.setattr(registry, "remove", remove_second)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    server.stop()
    assert removed == [True, False] and went == [] and server.stats().finished == 1


@pytest.mark.parametrize("hook", ["shutdown_request", "close_request"])
def test_watchdog_that_closes_a_request_from_its_own_thread_ends_the_handler(serve, hook):
    """The handler, which is blocked in recv, meets the end of its stream, and closes the connection itself."""
    requests, ended = [], threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        """Blocks."""

        def handle(self):
            """Receive until end of stream."""
            requests.append(self.request)
            self.request.sendall(b"here")
            assert self.request.recv(1) == b""
            ended.set()

    server = serve(Handler)
    with connect(server) as client:
        assert receive(client, 4) == b"here"
        [its_client] = server.clients.values()
        with running(getattr(server, hook), requests[0]):
            wait_until(ended)
            assert receive_all(client) == b""
    assert its_client.reason == "disconnect"
    server.stop()
    assert (server.stats().finished, server.stats().failed) == (1, 0)


def test_request_that_two_hooks_close_is_closed_once(serve):
    """Its handler closes it, then its thread does: the client has gone once, and the second one harms nothing."""
    went = []

    class Handler(socketserver.BaseRequestHandler):
        """Closes its own request by the server's hook."""

        def handle(self):
            """Close it, twice."""
            self.server.shutdown_request(self.request)
            self.server.close_request(self.request)

    server = serve(Handler, subclass(client_disconnected=lambda self, client: went.append(client.number)))
    assert ask(server, b"") == b""
    server.stop()
    assert went == [1] and server.stats().finished == 1 and server.stats().failed == 0


def test_two_threads_that_close_a_request_nobody_serves_close_it_once(serve, monkeypatch):
    """The one that comes second leaves it alone: both found the client in the registry."""
    went, found = [], threading.Barrier(2)
    server_class = subclass(client_disconnected=lambda self, client: went.append(client.number))
    with server_class(LOOPBACK, Echo) as server, connect(server) as client:
        registry = server._threaded_state.registry
        request, address = server.get_request()
        its_client = registry.add(request, address, server._threaded_state.stopping.period)
        its_client._announced = True
        remove = registry.remove

        def remove_together(*arguments):
            found.wait(GUARD)
            return remove(*arguments)

        monkeypatch.setattr(registry, "remove", remove_together)
        with running(server.shutdown_request, request), running(server.shutdown_request, request):
            assert receive_all(client) == b""
        assert went == [1] and not registry.closing and server.stats().finished == 1


def test_client_whose_connection_was_closed_before_its_thread_ran_is_not_served(serve):
    """A program's watchdog was faster than the new handler thread."""
    served = []

    class Server(ThreadedTCPServer):
        """Closes each client between its start and its thread."""

        def _threaded_serve_client(self, client):
            """Be late."""
            with running(self.shutdown_request, client._connection.request):
                pass
            served.append(client.state)
            super()._threaded_serve_client(client)

    server = serve(Echo, Server)
    with connect(server) as client:
        assert receive_all(client) == b""
    assert server.stop().clean
    assert served == ["gone"] and server.stats().failed == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_after_a_handler_thread_has_started_leaves_its_client_to_it(monkeypatch, error):
    """The loop ends by the interrupt; the client, which runs already, is served on."""
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        if isinstance(thread, HandlerThread):
            raise error

    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(error):
                server.handle_request()
        client.sendall(b"x")
        assert client.recv(1) == b"x" and list(server.clients) == [1]


def test_client_that_is_served_after_all_is_not_forgotten():
    """A hook fails after it has given the client to a thread: the connection ends, and its thread closes it."""
    gate, went = Gate(), threading.Event()

    class Server(ThreadedTCPServer):
        """Fails late."""

        def process_request(self, request, client_address):
            """Have it served, then fail."""
            super().process_request(request, client_address)
            wait_until(gate.entered)
            raise ZeroDivisionError

        def client_disconnected(self, client):
            """Note it."""
            assert current_client() is client
            went.set()

    with Server(LOOPBACK, gate.handler) as server, connect(server) as client:
        server.handle_request()
        assert receive_all(client) == b""
        assert list(server.clients) == [1], "its handler is at the gate"
        gate.release.set()
        wait_until(went)


def test_hook_that_refuses_by_failing_in_a_wrapped_request_closes_both():
    """What process_request has wrapped is what is closed, although nobody serves it."""
    class Server(ThreadedTCPServer):
        """Wraps, and cannot start its thread."""

        def process_request(self, request, client_address):
            """Wrap."""
            wrapped = socket.socket(fileno=request.detach())
            super().process_request(wrapped, client_address)

        def _threaded_start_thread(self, *arguments):
            """Fail."""
            raise RuntimeError("can't start new thread")

    with Server(LOOPBACK, Echo) as server, connect(server) as client:
        server.handle_request()
        assert receive_all(client) == b"" and not server.clients


def test_process_request_of_another_server_makes_a_client_of_that_one(serve):
    """A server that hands a request on to another one's process_request keeps its own client apart."""
    other = ThreadedTCPServer(LOOPBACK, Echo)

    def hand_on(self, request, client_address):
        other.process_request(request, client_address)

    server = serve(Echo, subclass(process_request=hand_on))
    with other, connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert list(other.clients) == [1] and other.clients[1]._registry is other._threaded_state.registry
        assert other.stop().drained == 1
        assert receive_all(client) == b""


@pytest.mark.parametrize("name", ["listener", "socket"])
def test_server_that_has_only_a_fileno_and_get_request_serves(name):
    """socketserver asks a BaseServer for nothing else, whatever the name of its listener is."""
    class Server(ThreadedMixIn, socketserver.BaseServer):
        """Keeps its listener under a name of its own, or the usual one."""

        def __init__(self):
            """Listen."""
            self.listener = socket.create_server(LOOPBACK)
            setattr(self, name, self.listener)
            super().__init__(self.listener.getsockname(), Echo)

        def fileno(self):
            """Return the listener's descriptor."""
            return self.listener.fileno()

        def get_request(self):
            """Accept."""
            return self.listener.accept()

        def shutdown_request(self, request):
            """Close, as TCPServer does."""
            request.close()

        def server_close(self):
            """Close."""
            super().server_close()
            self.listener.close()

    with Server().start() as server:
        assert ask(server) == b"ping\n"
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            until(lambda: list(server.clients) == [2])  # a hook without super() leaves it open when the first is gone
            assert server.stop().drained == 1
            assert receive_all(client) == b""


@pytest.mark.parametrize("name", ["ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH"])
def test_peer_that_has_vanished_from_the_network_is_no_failure(serve, name, caplog):
    """The kernel's word for it is an OSError, and the connection has ended by then."""
    class Handler(socketserver.BaseRequestHandler):
        """Meets what the kernel reports when a peer does not answer any more."""

        def handle(self):
            """Lose the connection."""
            self.request.recv(1)
            self.request.shutdown(socket.SHUT_RDWR)
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    server = serve(Handler)
    with connect(server) as client:
        client.shutdown(socket.SHUT_WR)
        receive_all(client)
    server.stop()
    assert server.stats().failed == 0 and not caplog.records


def test_error_of_the_network_on_another_connection_is_a_failure(serve, caplog):
    """The client is still there: its handler has lost something else."""
    class Handler(ClientHandler):
        """Cannot reach its database."""

        def process(self, data):
            """Fail."""
            raise OSError(errno.EHOSTUNREACH, "the database")

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"x")
        assert receive_all(client) == b""
    server.stop()
    assert server.stats().failed == 1 and "the database" in caplog.text
