"""The hooks of socketserver, overridden by programs, and the mix-in over other servers."""
from __future__ import annotations

import logging
import os
import socket
import socketserver
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from threaded_echo import EchoHandler, ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer, current_client
from threaded_echo.state import ServerState

from .conftest import LOOPBACK
from .tools import Echo, Gate, ask, connect, receive, receive_all, running, wait_until


def subclass(**body):
    """Make a server class with these members."""
    return type("Server", (ThreadedTCPServer,), body)


class Failing(socketserver.BaseRequestHandler):
    """Raises what its server was given."""

    def handle(self):
        """Receive, then raise."""
        self.request.recv(100)
        raise self.server.error


def test_server_is_one_of_socketservers():
    """Programs and type checks see what they know."""
    assert issubclass(ThreadedTCPServer, socketserver.ThreadingTCPServer)
    assert issubclass(ThreadedUnixStreamServer, socketserver.ThreadingUnixStreamServer)
    with ThreadedTCPServer(LOOPBACK) as server:
        assert server.RequestHandlerClass is EchoHandler


def test_failing_handler_is_logged_with_its_number_and_harms_nobody(serve, caplog):
    """At error level, with its traceback; the other clients go on."""
    server = serve(Failing, subclass(error=ZeroDivisionError("by itself")))
    with connect(server) as other:
        assert ask(server, b"x") == b""
        other.sendall(b"x")
        assert receive_all(other) == b""
    server.stop()
    assert server.stats().failed == 2
    assert "client 2: its handler has failed" in caplog.text and "ZeroDivisionError: by itself" in caplog.text


def test_client_that_went_away_is_no_error(serve, caplog):
    """A reset connection is told at debug level, and is no failure."""
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
    """A Unix socket tells a vanished reader by an error only."""
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


def test_hooks_tell_of_clients_that_come_and_go(serve):
    """Each once, in order, in the handler's thread; what they raise is logged and harms nothing."""
    told = []

    def tell(word):
        def hook(self, client):
            told.append((word, client.number, current_client() is client))
            raise ZeroDivisionError(word)
        return hook

    server = serve(Echo, subclass(client_connected=tell("came"), client_disconnected=tell("went")))
    assert ask(server) == b"ping\n"
    server.stop()
    assert told == [("came", 1, True), ("went", 1, True)]


def test_failing_hooks_are_logged(serve, caplog):
    """With the client's number."""
    def fail(self, client):
        raise ZeroDivisionError

    server = serve(Echo, subclass(client_connected=fail, client_disconnected=fail))
    assert ask(server) == b"ping\n"
    server.stop()
    assert "client 1: client_connected has failed" in caplog.text
    assert "client 1: client_disconnected has failed" in caplog.text


def test_refused_client_is_closed_and_counted(serve):
    """verify_request sees its client, and no hook is told of it."""
    told = []
    server = serve(Echo, subclass(verify_request=lambda self, request, address: told.append(current_client().number),
                                  client_connected=lambda self, client: told.append("came"),
                                  client_disconnected=lambda self, client: told.append("went")))
    with connect(server) as client:
        assert receive_all(client) == b""
    server.stop()
    assert told == [1] and (server.stats().refused, server.stats().finished) == (1, 0)


@pytest.mark.parametrize("hook", ["verify_request", "process_request"])
def test_hook_that_fails_in_the_loop_costs_its_client_only(serve, caplog, hook):
    """The loop goes on, even where handle_error fails as well."""
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
    """As in socketserver: SystemExit is for the program."""
    def leave(self, request, client_address):
        raise SystemExit

    with subclass(process_request=leave)(LOOPBACK, Echo) as server, connect(server) as client:
        with pytest.raises(SystemExit):
            server.handle_request()
        assert receive_all(client) == b"" and not server.clients


def test_process_request_with_an_executor_is_numbered_and_stopped(serve):
    """Threads of the program's own: the clients are known, and woken."""
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
    """A server without threads: its client is woken, and the loop ends."""
    server = serve(Echo, subclass(process_request=socketserver.BaseServer.process_request))
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        report = server.stop()
        assert (report.drained, report.forced) == (1, 0)


def test_process_request_that_wraps_the_connection_keeps_the_client(serve):
    """A request that a subclass has exchanged is followed: numbered once, woken, and closed."""
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


@pytest.mark.parametrize("hook", ["shutdown_request", "close_request"])
def test_closing_hook_without_super_is_forgotten(serve, hook):
    """An override that closes the request itself."""
    server = serve(Echo, subclass(**{hook: lambda self, request: request.close()}))
    assert ask(server) == b"ping\n"
    server.stop()
    assert server.stats().finished == 1 and not server.clients


def test_connection_accepted_by_the_program_is_numbered():
    """A program with an accept loop of its own hands its connections over."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        server.process_request(*server.socket.accept())
        client.sendall(b"x")
        assert client.recv(1) == b"x" and list(server.clients) == [1]


def test_handler_run_by_the_program_finds_its_client():
    """finish_request called directly, with no thread of the server's and no client."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        request, address = server.socket.accept()
        with running(server.finish_request, request, address):
            client.shutdown(socket.SHUT_WR)
        server.shutdown_request(request)


def test_error_outside_any_client_is_logged_with_the_address(caplog):
    """handle_error called by a program, for a connection that the server does not know."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            server.handle_error(None, "nowhere")
    assert "client at nowhere: its handler has failed" in caplog.text


def test_error_in_process_request_thread_outside_any_client_is_handled():
    """As before, with an error."""
    errors = []
    server_class = subclass(handle_error=lambda self, request, address: errors.append(address))
    with server_class(LOOPBACK, Failing) as server, connect(server):
        server.error = ZeroDivisionError()
        request, address = server.socket.accept()
        request.shutdown(socket.SHUT_RD)
        server.process_request_thread(request, address)
    assert errors == [address]


def test_handle_error_of_a_class_below_the_mixin_is_used():
    """class Server(ThreadedMixIn, Existing): Existing's own error handling stays."""
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


def test_datagrams_are_served(serve):
    """UDP: each datagram is numbered; there is no connection to wake."""
    class Handler(socketserver.DatagramRequestHandler):
        """Replies with its number."""

        def handle(self):
            """Reply."""
            self.wfile.write(b"%d" % current_client().number)

    server_class = type("Server", (ThreadedMixIn, socketserver.ThreadingUDPServer), {})
    with server_class(LOOPBACK, Handler).start() as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        for number in (b"1", b"2"):
            client.sendto(b"?", server.server_address)
            assert client.recv(100) == number


def test_unix_server_serves(tmp_path):
    """The same on a Unix socket, options included."""
    path = str(tmp_path / "socket")
    with ThreadedUnixStreamServer(path, EchoHandler, drain_timeout=1).start() as server:
        assert ask(server) == b"ping\n" and server.server_address == path


def test_bind_error_leaves_nothing():
    """A port that is taken, out of range or of nobody's address: the system's own error."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        with pytest.raises(OSError, match="in use"):
            ThreadedTCPServer(server.server_address, Echo)
    with pytest.raises(OverflowError, match="port"):
        ThreadedTCPServer(("127.0.0.1", 70000), Echo)
    with pytest.raises(OSError, match="assign"):
        ThreadedTCPServer(("192.0.2.1", 0), Echo)


def test_stopping_hook_wakes_a_waiting_handler(serve):
    """A handler that waits on server.stopping, in place of sleeping, ends with the stop."""
    gate = Gate(lambda handler: handler.server.stopping.wait(3600))
    server = serve(gate.handler)
    with connect(server) as client:
        gate.release.set()
        wait_until(gate.entered)
        assert server.stop().drained == 1
        assert receive(client, 1) == b""


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


def test_finish_request_of_a_subclass_is_called_once(serve):
    """Also where it runs in an executor of the program's own, and where it hands over a connection as it is."""
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


def test_server_in_a_handler_of_another_keeps_the_clients_apart(serve):
    """A handler that serves one request of a server of its own still has its client, and can stop its server."""
    reports = []

    class Outer(socketserver.BaseRequestHandler):
        """Opens a server for one more connection."""

        def handle(self):
            """Serve it, and stop both servers."""
            mine = current_client()
            with ThreadedTCPServer(LOOPBACK, Echo) as inner:
                with connect(inner) as client:
                    inner.handle_request()
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
                    assert inner.stop().drained == 1
                try:
                    raise ZeroDivisionError
                except ZeroDivisionError:
                    inner.handle_error(None, "nowhere")
            assert current_client() is mine and mine.state == "serving"
            reports.append(self.server.stop(drain=30))

    server = serve(Outer)
    with connect(server) as client:
        assert receive_all(client) == b""
    assert server.stop().clean and server.stats().failed == 0
    assert reports[0].clean and reports[0].forced == 0


def test_request_that_another_thread_shuts_down_ends_its_handler(serve):
    """A program's watchdog may do so: a handler blocked in recv ends, and its thread closes the connection."""
    requests, entered = [], threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        """Gives its request away."""

        def handle(self):
            """Wait for the end of the stream."""
            requests.append(self.request)
            entered.set()
            assert self.request.recv(1) == b""

    server = serve(Handler)
    with connect(server) as client:
        wait_until(entered)
        server.shutdown_request(requests[0])
        assert receive_all(client) == b""
    assert server.stop().clean and server.stats().failed == 0


def test_server_with_a_descriptor_and_no_socket_attribute_serves():
    """A program's own kind of BaseServer has nothing else that could be waited for."""
    class Server(ThreadedMixIn, socketserver.BaseServer):
        """Keeps its listener under another name."""

        def __init__(self, listener):
            """Take it."""
            super().__init__(listener.getsockname(), Echo)
            self.fileno, self.get_request = listener.fileno, listener.accept

        def close_request(self, request):
            """Close, which BaseServer does not."""
            super().close_request(request)
            request.close()

    with socket.create_server(LOOPBACK) as listener:
        server = Server(listener).start()
        assert ask(server) == b"ping\n"
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x" and list(server.clients) == [2]
            assert server.stop().clean


def test_client_that_is_handed_on_is_the_other_servers_only(serve):
    """A process_request that calls another server's hands its client over: the stop of the first leaves it alone."""
    backend = serve(Echo)

    class Front(ThreadedTCPServer):
        """Only accepts."""

        def process_request(self, request, client_address):
            """Hand on."""
            backend.process_request(request, client_address)

    front = serve(Echo, Front)
    with connect(front) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1" and len(backend.clients) == 1 and not front.clients
        report = front.stop()
        assert report.clean and (report.drained, report.forced) == (0, 0)
        client.sendall(b"2")
        assert client.recv(1) == b"2"
        assert backend.stop().drained == 1


def test_accepted_connection_blocks_where_it_would_inherit_that_it_does_not(serve, monkeypatch):
    """As on platforms without accept4: the listener does not block while serving, its clients do."""
    monkeypatch.setattr("threaded_echo.hooks._INHERITS_BLOCKING", True)

    class Server(ThreadedTCPServer):
        """Accepts as those platforms do."""

        def get_request(self):
            """Accept."""
            request, address = super().get_request()
            assert request.getblocking()
            return request, address

    assert ask(serve(Echo, Server)) == b"ping\n"


def test_get_request_below_the_mixin_is_used_for_tls_listeners_too(serve):
    """class Server(ThreadedMixIn, Existing), where Existing accepts in its own way."""
    from .transport.test_tls import TLSServer, connect_tls
    accepted = []

    class Existing(socketserver.ThreadingTCPServer):
        """Counts."""

        def get_request(self):
            """Accept, handshake and all."""
            found = super().get_request()
            accepted.append(found)
            return found

    server_class = type("Server", (ThreadedMixIn, Existing), {"server_activate": TLSServer.server_activate})
    server = server_class(LOOPBACK, Echo)
    with server.start(), connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and len(accepted) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_knows_no_clients_and_its_close_leaves_the_parents_alone(serve):
    """The usual idiom of a program that forks: the child closes its copy of the server."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        child = os.fork()
        if child == 0:
            known = 1
            with suppress(BaseException):  # the test must not go on in the child, whatever it meets
                known = len(server.clients) + server.stats().live + server.stopping.is_set()
                server.server_close()
            os._exit(known)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.sendall(b"2")
        assert client.recv(1) == b"2" and len(server.clients) == 1
        assert ask(server) == b"ping\n"


def test_state_is_made_once():
    """On first use, and then found again, by whoever asks."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert ServerState.of(server) is ServerState.of(server) is server._threaded_state
