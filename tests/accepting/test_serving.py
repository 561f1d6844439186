"""serve_forever and handle_request: what wakes them, and which listening socket they serve."""
from __future__ import annotations

import os
import socket
import types

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import loop

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, connect, receive_all


def test_loop_waits_without_a_time_out(serve, monkeypatch):
    """Nothing but a connection or a stop wakes it, unless service_actions is overridden."""
    waits = []
    wait = loop.Loop.wait

    def watched(self, timeout):
        waits.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(loop.Loop, "wait", watched)
    server = serve(Echo)
    ask(server)
    server.stop()
    assert set(waits) == {None} and len(waits) <= 3


def test_service_actions_are_called_at_each_poll():
    """The loop polls as often as the given poll_interval says, as in socketserver."""
    calls = []

    class Server(ThreadedTCPServer):
        """Stops at the third poll."""

        def service_actions(self):
            """Count."""
            calls.append(1)
            if len(calls) == 3:
                self.shutdown()

    with Server(LOOPBACK, Echo) as server:
        server.serve_forever(poll_interval=0.001)
    assert len(calls) == 3


def test_mode_of_the_listener_is_not_restored(serve):
    """Other processes may share it, and would block; Python's own idea of its time-out is left alone."""
    server = serve(Echo)
    assert server.socket.gettimeout() is None and not os.get_blocking(server.fileno())
    server.shutdown()
    assert server.socket.gettimeout() is None and not os.get_blocking(server.fileno())
    server.socket.settimeout(3)
    server.start()
    assert server.socket.gettimeout() == 3 and ask(server) == b"ping\n"


def test_socket_replaced_before_serving_is_the_one_that_serves():
    """Some programs close the server in their own __init__, and then assign another socket."""
    class Server(ThreadedTCPServer):
        """Brings its own socket."""

        def __init__(self):
            """Close what was opened, and take another."""
            super().__init__(LOOPBACK, Echo)
            self.server_close()
            self.socket = socket.create_server(LOOPBACK)
            self.server_address = self.socket.getsockname()

    with Server().start() as server:
        assert ask(server) == b"ping\n"


def test_socket_replaced_while_serving_is_followed(serve):
    """The loop asks for the listening socket each time."""
    other = socket.create_server(LOOPBACK)
    server = serve(Echo)
    old, server.socket = server.socket, other
    with old, connect(old.getsockname()):
        assert ask(other.getsockname()) == b"ping\n"


def test_listener_of_another_class_is_accepted_from(serve):
    """A program's own kind of socket listens as well."""
    class Listener(socket.socket):
        """Is no plain socket."""

    class Server(ThreadedTCPServer):
        """Exchanges its socket."""

        def server_activate(self):
            """Exchange, and listen."""
            self.socket = Listener(fileno=self.socket.detach())
            super().server_activate()

    assert ask(serve(Echo, Server)) == b"ping\n"


def test_listener_that_cannot_tell_whether_it_listens_is_served(serve, monkeypatch):
    """A platform without SO_ACCEPTCONN, or a listener that is no socket, is taken as it is."""
    class Listener:
        """Has no options."""

        type = socket.SOCK_STREAM

    with socket.socket() as silent:
        with pytest.raises(RuntimeError, match="does not listen"):
            loop.check_listening(types.SimpleNamespace(socket=silent))
        for server in (types.SimpleNamespace(socket=Listener()), types.SimpleNamespace()):
            loop.check_listening(server)
        monkeypatch.delattr(socket, "SO_ACCEPTCONN")
        loop.check_listening(types.SimpleNamespace(socket=silent))
    assert ask(serve(Echo)) == b"ping\n"


def test_handle_request_serves_one_client_in_a_thread():
    """Its clients are numbered as in the loop."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        for number in (1, 2):
            with connect(server) as client:
                server.handle_request()
                client.sendall(b"x")
                assert client.recv(1) == b"x" and list(server.clients) == [number]
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b""


@pytest.mark.parametrize("timeouts", [(None, 0.001), (0.001, None), (0.001, GUARD)])
def test_handle_request_without_a_client_calls_handle_timeout(timeouts):
    """It waits for the listening socket's time-out or the server's, whichever is less."""
    calls = []

    class Server(ThreadedTCPServer):
        """Counts."""

        def handle_timeout(self):
            """Count."""
            calls.append(1)

    with Server(LOOPBACK, Echo) as server:
        listener, server.timeout = timeouts
        server.socket.settimeout(listener)
        server.handle_request()
    assert calls == [1]


def test_handle_request_on_an_overridden_loop_lets_start_return():
    """A program's own serve_forever, built on handle_request, starts and stops as well."""
    class Server(ThreadedTCPServer):
        """Loops itself."""

        def serve_forever(self, poll_interval=0.5):
            """Handle requests until told to stop."""
            while not self.stopping.is_set():
                self.handle_request()

    with Server(LOOPBACK, Echo).start() as server:
        assert ask(server) == b"ping\n"
        assert ask(server) == b"ping\n"


def test_handle_request_that_is_stopped_before_it_waits_returns(serve, monkeypatch):
    """The serving thread itself may stop the server, for example in a signal handler while the workers start."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        monkeypatch.setattr(server._threaded_state.offloads, "open", lambda *arguments: server.shutdown())
        server.handle_request()
        assert server.stopping.is_set() and not server._threaded_state.loops.running


def test_platform_that_cannot_unblock_by_descriptor_serves(serve, monkeypatch):
    """The listener stays as it is."""
    monkeypatch.delattr(os, "set_blocking")
    server = serve(Echo)
    assert ask(server) == b"ping\n" and os.get_blocking(server.fileno())


def test_socket_replaced_by_one_with_the_same_descriptor_is_followed(serve):
    """Closed before the other one is opened, it leaves its number to that."""
    class Server(ThreadedTCPServer):
        """Opens its socket anew when the first client has come."""

        def verify_request(self, request, client_address):
            """Close, and listen again."""
            if not self.stats().finished and self.stats().accepted == 1:
                number = self.fileno()
                self.socket.close()
                self.socket = socket.create_server(self.server_address)
                assert self.fileno() == number
            return True

    server = serve(Echo, Server)
    for _ in range(3):
        assert ask(server) == b"ping\n"


def test_interrupt_between_accepting_and_serving_leaves_no_client(monkeypatch):
    """Ctrl-C that comes as the next thread is let accept closes the client that was accepted before."""
    def interrupted(self):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "reopen", interrupted)
    server = ThreadedTCPServer(LOOPBACK, Echo)
    with connect(server) as client:
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever()
        assert receive_all(client) == b""
        assert not server.clients and server.stop(0, 0).clean


def test_stop_in_a_signal_handler_just_before_the_door_opens_ends_the_loop(monkeypatch):
    """It closes the listener under the thread that is about to wait for it, which is no error."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    monkeypatch.setattr("threaded_echo.accepting.serving.check_listening", lambda server: server.stop())
    server.serve_forever()
    assert server.stop().clean and server.fileno() < 0


def test_stop_in_a_signal_handler_as_the_loop_is_listed_ends_it():
    """The loop does not begin to serve in a period of its own after the stop."""
    class Server(ThreadedTCPServer):
        """Stops as serve_forever looks whether it is closed."""

        def fileno(self):
            """Stop the first time."""
            number = super().fileno()
            if number >= 0 and self._threaded_state.loops.running:
                self.stop()
            return number

    server = Server(LOOPBACK, Echo)
    server.serve_forever()
    assert server.stopping.is_set() and server.stop().clean
