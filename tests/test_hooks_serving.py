"""Programs that serve a client in their own way: in their own threads, by their own accept, on their own connection."""
from __future__ import annotations

import socket
import socketserver
from concurrent.futures import ThreadPoolExecutor

from threaded_echo import ThreadedTCPServer, current_client

from .conftest import LOOPBACK
from .tools import Echo, ask, connect, receive, receive_all, running, subclass


def test_process_request_with_an_executor_is_numbered_and_stopped(serve):
    """The clients in a program's own threads are known, and are woken by the stop."""
    threads = []

    class Handler(socketserver.BaseRequestHandler):
        """Tells its number."""

        def handle(self):
            """Tell, then wait for the end."""
            client = current_client()
            threads.append(client.thread)
            self.request.sendall(b"%d" % client.number)
            self.request.recv(1)

    with ThreadPoolExecutor(2, thread_name_prefix="own") as executor:
        server = serve(Handler, subclass(process_request=lambda self, request, address: executor.submit(
            self.process_request_thread, request, address)))
        with connect(server) as one, connect(server) as two:
            assert {one.recv(1), two.recv(1)} == {b"1", b"2"}
            assert server.stop().drained == 2
            assert receive_all(one) == receive_all(two) == b""
        assert all(thread.name.startswith("own") for thread in threads)
        assert executor.submit(current_client).result() is None


def test_process_request_in_the_loop_itself_is_stopped(serve):
    """The client of a server without threads is woken, and the loop ends."""
    server = serve(Echo, subclass(process_request=socketserver.BaseServer.process_request))
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        report = server.stop()
        assert (report.drained, report.forced) == (1, 0)


def test_process_request_that_wraps_the_connection_keeps_the_client(serve):
    """A request that a subclass has exchanged is numbered once, woken, and closed."""
    def wrap(self, request, client_address):
        wrapped = socket.socket(fileno=request.detach())
        ThreadedTCPServer.process_request(self, wrapped, client_address)

    server = serve(Echo, subclass(process_request=wrap))
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and list(server.clients) == [1]
        server.clients[1].send(b"y")
        assert client.recv(1) == b"y"
        assert server.stop().drained == 1
        assert receive_all(client) == b""


def test_finish_request_that_wraps_the_connection_is_woken(serve):
    """What a handler's thread has wrapped is followed as it comes to finish_request."""
    class Wrapped(socket.socket):
        """Not a plain socket."""

    def wrap(self, request, client_address):
        with Wrapped(fileno=request.detach()) as wrapped:
            ThreadedTCPServer.finish_request(self, wrapped, client_address)

    server = serve(Echo, subclass(finish_request=wrap))
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        server.clients[1].send(b"y")
        assert client.recv(1) == b"y"
        assert server.stop().drained == 1
        assert receive_all(client) == b""


def test_process_request_thread_without_super_is_forgotten(serve):
    """An override that closes by itself, past every hook, leaves no client behind."""
    def serve_it(self, request, client_address):
        with request:
            request.sendall(b"%d" % current_client().number)

    server = serve(Echo, subclass(process_request_thread=serve_it))
    assert [ask(server, b""), ask(server, b"")] == [b"1", b"2"]
    server.stop()
    assert server.stats().finished == 2


def test_connection_accepted_by_the_program_is_numbered():
    """A program with an accept loop of its own hands its connections over."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        server.process_request(*server.socket.accept())
        client.sendall(b"x")
        assert client.recv(1) == b"x" and list(server.clients) == [1]


def test_finish_request_that_a_program_calls_for_its_own_connection_serves_it_without_a_client():
    """It has accepted the connection past the server, which knows of no client and counts none."""
    seen = []

    class Handler(Echo):
        """Notes whether it has a client."""

        def setup(self):
            """Note it."""
            seen.append(current_client())

    with ThreadedTCPServer(LOOPBACK, Handler) as server, connect(server) as client:
        request, address = server.socket.accept()
        with running(server.finish_request, request, address):
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive(client, 5) == b"hello"
        server.shutdown_request(request)
        assert receive_all(client) == b""
        assert seen == [None] and server.stats().accepted == 0


def test_finish_request_of_a_subclass_is_called_once(serve):
    """It may run in an executor of the program's own, and hand the connection over as it is."""
    calls = []

    def finish(self, request, client_address):
        calls.append(current_client() and current_client().number)
        ThreadedTCPServer.finish_request(self, request, client_address)

    with ThreadPoolExecutor(1) as executor:
        server = serve(Echo, subclass(finish_request=finish, process_request=lambda self, request, address: (
            executor.submit(self.process_request_thread, request, address))))
        assert ask(server) == b"ping\n"
        server.stop()
    assert len(calls) == 1
