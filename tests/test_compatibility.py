"""Programs that reach past the mix-in: they override its loop below it, or call socketserver's own methods by name."""
from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer

from .conftest import LOOPBACK
from .tools import Echo, ask, connect, receive, receive_all, running, until, wait_until
from .overrides import Told

pytestmark = pytest.mark.timeout(20)  # what such programs meet, if they meet anything, is a wait without end


class KeepsThreads(Echo):
    """Echoes, and keeps the threads that it has run in."""

    threads: list[threading.Thread]

    def handle(self) -> None:
        """Echo until end of stream."""
        self.threads.append(threading.current_thread())
        super().handle()


@contextmanager
def idle_client(server: Any) -> Iterator[None]:
    """Connect a client that is served and then says nothing; in the end the server has ended it."""
    with connect(server) as idle:
        idle.sendall(b"hello")
        assert receive(idle, 5) == b"hello"
        yield
        assert receive_all(idle) == b""


def check_stopped(server: Any) -> None:
    """Check that a server has neither clients nor threads, and that its address is free."""
    stats = server.stats()
    assert stats.accepted == stats.finished + stats.refused
    assert not (server.clients or stats.live or stats.threads_busy or stats.threads_idle)
    socket.create_server(server.server_address).close()


# Below the mix-in.

class ClosesInShutdown(Told, socketserver.TCPServer):
    """Closes its listener when it is shut down, as pynetdicom's server does."""

    allow_reuse_address = True

    def shutdown(self) -> None:
        """End the loop, and close."""
        super().shutdown()
        self.server_close()
        self.tell("shutdown")

    def server_close(self) -> None:
        """Close the listener by its own means."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.mark.parametrize("end", ["shutdown", "stop", "with"])
def test_shutdown_below_the_mixin_that_closes_frees_the_port(end: str) -> None:
    """By whichever way the server is stopped, its clients are ended and its port is free."""
    class Server(ThreadedMixIn, ClosesInShutdown):
        """Under test."""

    server = Server(LOOPBACK, Echo)
    with server.start(), idle_client(server):
        if end != "with":
            getattr(server, end)()
        else:
            server.__exit__(None, None, None)
        assert not server.clients
    check_stopped(server)
    assert end != "shutdown" or server.told["shutdown"] == 1


def test_shutdown_below_the_mixin_ends_a_loop_in_a_thread_of_the_programs_own() -> None:
    """pynetdicom calls `serve_forever` in a thread of its own, and `shutdown` for the end."""
    class Server(ThreadedMixIn, ClosesInShutdown):
        """Under test."""

    server = Server(LOOPBACK, Echo)
    with running(server.serve_forever), idle_client(server):
        server.shutdown()
    assert server.told["shutdown"] == 1
    check_stopped(server)


class PreparesToServe(Told, socketserver.TCPServer):
    """Does something before it serves, and after."""

    allow_reuse_address = True

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in between."""
        self.tell("before")
        super().serve_forever(poll_interval)
        self.tell("after")


@pytest.mark.parametrize("end", ["shutdown", "stop", "server_close"])
def test_serve_forever_below_the_mixin_runs_around_the_loop(end: str) -> None:
    """The override runs, its clients are numbered, and each way to stop ends the loop that it calls."""
    class Server(ThreadedMixIn, PreparesToServe):
        """Under test."""

    server = Server(LOOPBACK, Echo)
    with server.start():
        with idle_client(server):
            assert ask(server, b"hello") == b"hello"
            assert server.stats().accepted == 2
            getattr(server, end)()
            assert not server.clients
    assert server.told == {"before": 1, "after": 1}
    check_stopped(server)


# By name.

class ClosesByName(ThreadedTCPServer):
    """Stops and closes by socketserver's own methods, as jsonrpclib's server does."""

    def server_close(self) -> None:
        """End the loop, and close."""
        socketserver.BaseServer.shutdown(self)
        socketserver.TCPServer.server_close(self)


def test_server_close_by_socketservers_names_stops() -> None:
    """Clients are ended, threads are joined, and the port is free, though no method of the mix-in was called."""
    server = ClosesByName(LOOPBACK, Echo)
    with server.start(), idle_client(server):
        server.server_close()
        assert not server.clients
    check_stopped(server)


def test_server_close_by_socketservers_names_after_shutdown_returns() -> None:
    """The loop that has ended already is not waited for."""
    server = ClosesByName(LOOPBACK, Echo)
    with server.start():
        with idle_client(server):
            server.shutdown()
        server.server_close()
    check_stopped(server)


def test_server_close_by_socketservers_names_of_a_server_that_never_served_returns() -> None:
    """There is no loop to wait for."""
    server = ClosesByName(LOOPBACK, Echo)
    server.server_close()
    check_stopped(server)


def stop(server: Any) -> None:
    """Stop by this package's method."""
    server.stop()


@pytest.mark.parametrize("end", [stop, ThreadedTCPServer.shutdown, ThreadedTCPServer.server_close,
                                 socketserver.BaseServer.shutdown])
def test_serve_forever_of_socketserver_by_name_is_ended(end: Callable[[Any], object]) -> None:
    """Its clients are numbered, and end with it."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    with server, running(socketserver.BaseServer.serve_forever, server), idle_client(server):
        assert list(server.clients) == [1]
        end(server)
        assert not server.clients
    check_stopped(server)


@pytest.mark.parametrize("daemon_threads", [False, True])
def test_threads_of_socketservers_process_request_by_name_are_joined(daemon_threads: bool) -> None:
    """They are not this package's own, but they serve its clients: a stop ends and joins them."""
    class Server(ThreadedTCPServer):
        """Under test."""

        def process_request(self, request: Any, client_address: Any) -> None:
            """Have socketserver start a thread."""
            socketserver.ThreadingMixIn.process_request(self, request, client_address)

    handler = type("Handler", (KeepsThreads,), {"threads": []})
    server = Server(LOOPBACK, handler, daemon_threads=daemon_threads)
    with server.start(), idle_client(server):
        assert list(server.clients) == [1]
        report = server.stop()
        assert (report.drained, report.forced, report.clean) == (1, 0, True)
        [thread] = handler.threads
        # socketserver's list keeps no daemons: nobody joins those, which have nothing left to do but to return.
        if daemon_threads:
            until(lambda: not thread.is_alive())
        assert not thread.is_alive()
    check_stopped(server)


def test_server_close_of_socketservers_mixin_by_name_ends_and_joins_its_clients() -> None:
    """What it joins are the threads in ``_threads``, which an idle client does not keep from ending."""
    class Server(ThreadedTCPServer):
        """Under test."""

        def server_close(self) -> None:
            """Have socketserver close and join."""
            socketserver.ThreadingMixIn.server_close(self)

    handler = type("Handler", (KeepsThreads,), {"threads": []})
    server = Server(LOOPBACK, handler)
    with server.start(), idle_client(server):
        server.server_close()
        assert not server.clients
        [thread] = handler.threads
        assert not thread.is_alive()
    check_stopped(server)


def test_handle_request_below_the_mixin_runs_around_the_accept() -> None:
    """The override runs, and its client is numbered."""
    class Prepares(Told, socketserver.TCPServer):
        """Does something before it accepts, and after."""

        def handle_request(self) -> None:
            """Accept in between."""
            self.tell("before")
            self.socket.settimeout(20)
            self._handle_request_noblock()
            self.tell("after")

    class Server(ThreadedMixIn, Prepares):
        """Under test."""

    server = Server(LOOPBACK, Echo)
    with server, connect(server) as client:
        server.handle_request()
        client.sendall(b"x")
        assert client.recv(1) == b"x" and list(server.clients) == [1]
        assert server.stop().drained == 1
    assert server.told == {"before": 1, "after": 1}
    check_stopped(server)


def test_flags_of_socketserver_tell_whether_it_serves() -> None:
    """Programs look at them by name; looking serves nobody."""
    server: Any = ThreadedTCPServer(LOOPBACK, Echo)
    with server:
        assert server._BaseServer__shutdown_request is False
        assert server._BaseServer__is_shut_down.is_set()
        server.start()
        assert server._BaseServer__shutdown_request is False
        assert not server._BaseServer__is_shut_down.is_set()
        server.shutdown()
        assert server._BaseServer__is_shut_down.is_set()


def test_daemon_thread_of_socketservers_process_request_that_runs_on_is_a_survivor() -> None:
    """socketserver's list keeps no daemons, but the thread has served a client: a stop knows it, and waits for it."""
    entered, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Under test."""

        def process_request(self, request: Any, client_address: Any) -> None:
            """Have socketserver start a daemon."""
            socketserver.ThreadingMixIn.process_request(self, request, client_address)

        def shutdown_request(self, request: Any) -> None:
            """Hold the thread when its client has gone."""
            super().shutdown_request(request)
            entered.set()
            wait_until(release)

    server = Server(LOOPBACK, Echo)
    with server.start(), connect(server) as client:
        client.shutdown(socket.SHUT_WR)
        wait_until(entered)
        report = server.stop(drain=0.01, force=0.01)
        release.set()
        assert not report.clean


def test_threads_attribute_of_a_programs_own_is_left_alone() -> None:
    """A program may keep something else under socketserver's private name."""
    server: Any = ThreadedTCPServer(LOOPBACK, Echo)
    with server:
        server._threads = own = ThreadPoolExecutor()  # whatever it is
        own.join = own.shutdown  # socketserver calls it
        assert server._threads is own
