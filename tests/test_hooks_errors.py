"""Errors of handlers and of hooks: who is told, what is counted, and whom they cost their connection."""
from __future__ import annotations

import logging
import socket
import socketserver
import struct
import threading

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer

from .conftest import LOOPBACK
from .tools import Echo, ask, connect, receive_all, subclass, until, wait_until


class Failing(socketserver.BaseRequestHandler):
    """Raises what its server was given."""

    def handle(self):
        """Receive, then raise."""
        self.request.recv(100)
        raise self.server.error


def test_failing_handler_is_logged_with_its_number_and_harms_nobody(serve, caplog):
    """It is logged at error level with its traceback, and the other clients go on."""
    server = serve(Failing, subclass(error=ZeroDivisionError("by itself")))
    with connect(server) as other:
        assert ask(server, b"x") == b""
        other.sendall(b"x")
        assert receive_all(other) == b""
    server.stop()
    assert server.stats().failed == 2
    assert "client 2: its handler has failed" in caplog.text and "ZeroDivisionError: by itself" in caplog.text


def test_client_that_went_away_is_no_error(serve, caplog):
    """A reset connection is logged at debug level, and is no failure."""
    caplog.set_level(logging.DEBUG, logger="threaded_echo")
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.stop()
    assert server.stats().failed == 0
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "client 1 went away" in caplog.text


def test_unix_client_that_went_away_is_no_error(tmp_path, caplog):
    """A Unix socket reports a vanished reader by an error only."""
    class Handler(socketserver.BaseRequestHandler):
        """Sends until it fails."""

        def handle(self):
            """Send."""
            while True:
                self.request.sendall(b"x" * 1000)

    with ThreadedUnixStreamServer(str(tmp_path / "socket"), Handler).start() as server:
        with connect(server) as client:
            client.recv(1)
        server.stop()
        assert server.stats().failed == 0 and not caplog.records


def test_connection_error_of_another_connection_is_a_failure(serve, caplog):
    """A handler's own trouble with a database, say, is an error: its client is still there."""
    server = serve(Failing, subclass(error=ConnectionResetError("the database")))
    assert ask(server, b"x") == b""
    server.stop()
    assert server.stats().failed == 1 and "the database" in caplog.text


def test_failing_hooks_are_logged(serve, caplog):
    """The lines have the client's number."""
    def fail(self, client):
        raise ZeroDivisionError

    server = serve(Echo, subclass(client_connected=fail, client_disconnected=fail))
    assert ask(server) == b"ping\n"
    server.stop()
    assert "client 1: client_connected has failed" in caplog.text
    assert "client 1: client_disconnected has failed" in caplog.text


@pytest.mark.parametrize("hook", ["verify_request", "process_request"])
def test_hook_that_fails_in_the_loop_costs_its_client_only(serve, caplog, hook):
    """The loop goes on, even if handle_error fails as well."""
    errors = [ZeroDivisionError("first"), ZeroDivisionError("second")]

    def fail(self, request, client_address):
        if errors:
            raise errors.pop(0)
        return getattr(ThreadedTCPServer, hook)(self, request, client_address)

    def handle_error(self, request, client_address):
        if errors:
            raise ValueError("handle_error too")
        ThreadedTCPServer.handle_error(self, request, client_address)

    server = serve(Echo, subclass(**{hook: fail, "handle_error": handle_error}))
    for _ in range(2):
        with connect(server) as client:
            assert receive_all(client) == b""
    assert ask(server) == b"ping\n"
    server.stop()
    assert server.stats().failed == 2
    assert "client 1: handle_error has failed" in caplog.text and "client 2: its handler has failed" in caplog.text


def test_exit_in_a_hook_ends_the_loop_and_the_client():
    """SystemExit is the program's to handle, as in socketserver."""
    def leave(self, request, client_address):
        raise SystemExit

    with subclass(process_request=leave)(LOOPBACK, Echo) as server, connect(server) as client:
        with pytest.raises(SystemExit):
            server.handle_request()
        assert receive_all(client) == b"" and not server.clients


def test_exit_in_a_hook_of_the_handlers_thread_closes_the_client(serve, monkeypatch):
    """SystemExit in client_connected goes to the excepthook, and the client is closed and forgotten."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    def leave(self, client):
        raise SystemExit

    server = serve(Echo, subclass(client_connected=leave))
    with connect(server) as client:
        assert receive_all(client) == b""
    assert server.stop().clean and seen == [SystemExit]


def test_error_outside_any_client_is_logged_with_the_address(caplog):
    """A program may call handle_error for a connection that the server does not know."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            server.handle_error(None, "nowhere")
    assert "client at nowhere: its handler has failed" in caplog.text


def test_error_in_process_request_thread_outside_any_client_is_handled():
    """A program may call process_request_thread for a connection that it has accepted itself."""
    errors = []
    server_class = subclass(handle_error=lambda self, request, address: errors.append(address))
    with server_class(LOOPBACK, Failing) as server, connect(server):
        server.error = ZeroDivisionError()
        request, address = server.socket.accept()
        request.shutdown(socket.SHUT_RD)
        server.process_request_thread(request, address)
    assert errors == [address]


def test_handle_error_of_a_class_below_the_mixin_is_used():
    """An existing class that is upgraded keeps its own error handling."""
    errors = threading.Event()

    class Existing(socketserver.ThreadingTCPServer):
        """Handles errors itself."""

        error = ZeroDivisionError()

        def handle_error(self, request, client_address):
            """Note it."""
            errors.set()

    with type("Server", (ThreadedMixIn, Existing), {})(LOOPBACK, Failing).start() as server:
        assert ask(server, b"x") == b""
        wait_until(errors)


def test_failed_closing_still_forgets_the_client(serve, monkeypatch):
    """A closing hook below that raises costs its thread, and nothing is left."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    class Closing(socketserver.ThreadingTCPServer):
        """Fails to close."""

        def close_request(self, request):
            """Close, and fail."""
            super().close_request(request)
            raise ZeroDivisionError

    server_class = type("Server", (ThreadedMixIn, Closing), {})
    with server_class(LOOPBACK, Echo).start() as server:
        assert ask(server) == b"ping\n"
        server.stop()
        assert server.stats().finished == 1 and seen == [ZeroDivisionError]


@pytest.mark.parametrize("limit, logged, left_out", [(3, 3, "7 more failures of handlers were not logged"),
                                                     (None, 10, "")])
def test_failures_of_many_clients_are_logged_up_to_the_limit_and_counted(serve, caplog, limit, logged, left_out):
    """A client that makes its handler fail again and again, on new connections, does not drive the log."""
    server = serve(Failing, subclass(error=ZeroDivisionError()), logs_per_client=limit)
    for _ in range(10):
        assert ask(server, b"x") == b""
    server.stop()
    assert server.stats().failed == 10
    assert caplog.text.count("its handler has failed") == logged
    assert left_out in caplog.text and ("more" in caplog.text) == bool(left_out)


def test_shutdown_request_that_fails_for_a_refused_client_leaves_nothing(serve, monkeypatch):
    """A client that has gone before the end of its handshake; a stop does not wait for it."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    class Server(ThreadedTCPServer):
        """Fails after it has closed the connection."""

        def shutdown_request(self, request):
            """Fail."""
            request.close()
            raise ZeroDivisionError

    server = serve(Echo, Server, proxy_protocol="127.0.0.1")
    connect(server).close()
    until(lambda: seen and not server.clients)
    assert server.stop().clean and server.stats().refused == 1
