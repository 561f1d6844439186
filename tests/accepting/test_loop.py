"""The serving loop: what wakes it, accept errors, handle_request."""
from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import types

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import failures, loop

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, connect, receive_all, running, wait_until


class FailingOnce(ThreadedTCPServer):
    """Raises the errors that it is given, one at each accept, ahead of accepting."""

    errors: list[BaseException] = []

    def get_request(self):
        """Fail, or accept."""
        if self.errors:
            raise self.errors.pop(0)
        return super().get_request()


def out_of(name):
    """Make an OSError by its name."""
    return OSError(getattr(errno, name), name)


def test_start_returns_once_it_accepts():
    """And says so with the server itself."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert server.start() is server
        assert ask(server) == b"ping\n"


def test_start_twice_is_an_error(serve):
    """While it serves; the first goes on. serve_forever too."""
    server = serve(Echo)
    for serving_again in (server.start, server.serve_forever):
        with pytest.raises(RuntimeError, match="already serving"):
            serving_again()
    assert ask(server) == b"ping\n"


def test_start_while_starting_is_an_error():
    """Between start() and the first accept."""
    entered, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Takes its time to start."""

        def serve_forever(self, poll_interval=0.5):
            """Wait, then serve."""
            entered.set()
            wait_until(release)
            super().serve_forever(poll_interval)

    with Server(LOOPBACK, Echo) as server, running(server.start):
        wait_until(entered)
        with pytest.raises(RuntimeError, match="already serving"):
            server.start()
        release.set()


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
    """With the poll_interval that was given, as in socketserver."""
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


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_exhaustion_is_logged_and_waited_out(serve, caplog, name, monkeypatch):
    """Out of descriptors or memory: one line, a pause, a count, and then the client is served."""
    monkeypatch.setattr(FailingOnce, "errors", [out_of(name) for _ in range(3)])
    monkeypatch.setattr(failures, "BACK_OFF", 0.001)
    server = serve(Echo, FailingOnce)
    assert ask(server) == b"ping\n"
    assert server.stats().accept_errors == 3
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_back_off_ends_with_a_stop(serve, monkeypatch):
    """A pause of an hour does not hold up the stop."""
    entered = threading.Event()

    class Server(ThreadedTCPServer):
        """Out of descriptors."""

        def get_request(self):
            """Fail."""
            entered.set()
            raise out_of("EMFILE")

    monkeypatch.setattr(failures, "BACK_OFF", 3600)
    server = serve(Echo, Server)
    with connect(server):
        wait_until(entered)
        assert server.stop().clean


@pytest.mark.parametrize("error", [ConnectionAbortedError(errno.ECONNABORTED, ""), out_of("EPROTO"), out_of("EPERM"),
                                   ssl.SSLError(1, "no shared cipher"), ConnectionResetError(),
                                   OSError("turned away"), socket.gaierror(-2, "Name or service not known")])
def test_connection_gone_before_its_accept_changes_nothing(serve, caplog, monkeypatch, error):
    """The loop goes on, and counts it."""
    monkeypatch.setattr(FailingOnce, "errors", [error])
    server = serve(Echo, FailingOnce)
    assert ask(server) == b"ping\n"
    assert server.stats().accept_errors == 1 and not caplog.records


@pytest.mark.parametrize("error", [BlockingIOError(errno.EAGAIN, ""), TimeoutError(), InterruptedError()])
def test_nothing_to_accept_is_no_error(serve, monkeypatch, error):
    """Somebody else was faster, or the program's own time-out is up."""
    monkeypatch.setattr(FailingOnce, "errors", [error])
    server = serve(Echo, FailingOnce)
    assert ask(server) == b"ping\n"
    assert server.stats().accept_errors == 0


@pytest.mark.parametrize("error", [out_of("EIO"), FileNotFoundError(errno.ENOENT, "its certificate"),
                                   OSError(errno.ENOTCONN, "reset")])
def test_error_of_a_programs_own_get_request_costs_that_connection_only(serve, monkeypatch, error):
    """The loop goes on, as socketserver's does, and counts it."""
    monkeypatch.setattr(FailingOnce, "errors", [error])
    server = serve(Echo, FailingOnce)
    assert ask(server) == b"ping\n"
    assert server.stats().accept_errors == 1


def test_unknown_error_of_accept_itself_is_logged_and_waited_out(serve, monkeypatch, caplog):
    """The connection may still be in the queue, so that the loop must not spin."""
    accept, errors = socket.socket.accept, [out_of("EIO")]

    def fail_once(listener):
        if errors:
            raise errors.pop()
        return accept(listener)

    monkeypatch.setattr(failures, "BACK_OFF", 0.001)
    monkeypatch.setattr(socket.socket, "accept", fail_once)
    server = serve(Echo)
    assert ask(server) == b"ping\n"
    assert server.stats().accept_errors == 1 and "a client could not be accepted" in caplog.text


def break_listener(server):
    """Make the listening socket one that no longer listens."""
    server.socket.shutdown(socket.SHUT_RDWR)


def test_broken_listener_ends_the_loop_loudly(caplog):
    """Its error is logged and raised, and the server can still be stopped."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        breaking = threading.Thread(target=lambda: (wait_until_it_accepts(server), break_listener(server)))
        breaking.start()
        with pytest.raises(OSError):
            server.serve_forever()
        breaking.join()
    assert "the serving loop ends" in caplog.text


def wait_until_it_accepts(server):
    """Wait until a thread in serve_forever accepts; there is no event for that."""
    while not server.stats().seconds_up:
        pass


def test_broken_listener_in_the_background_reaches_the_excepthook(serve, monkeypatch):
    """A loop that start() has begun fails as loudly, also if an idle handler thread finds out."""
    seen = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.set())
    server = serve(Echo)
    assert ask(server) == b"ping\n"
    break_listener(server)
    wait_until(seen)


def test_close_by_the_program_ends_the_loop():
    """A listening socket that is closed in get_request ends serving without a word."""
    class Server(ThreadedTCPServer):
        """Closes its socket itself."""

        def get_request(self):
            """Close, and fail with that."""
            self.socket.close()
            return super().get_request()

    with Server(LOOPBACK, Echo) as server, connect(server):
        server.serve_forever()


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
    """Also after a server_close in __init__, as some programs have it."""
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


def test_listener_that_cannot_tell_is_served(serve):
    """A platform without SO_ACCEPTCONN, or a listener that is no socket, is taken as it is."""
    class Listener:
        """Has no options."""

        type = socket.SOCK_STREAM

    loop.check_listening(types.SimpleNamespace(socket=Listener()))
    loop.check_listening(types.SimpleNamespace())


def test_handle_request_serves_one_client_in_a_thread():
    """Numbers and limits as in the loop."""
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
    """After the socket's or the server's time-out, whichever is less."""
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


def test_handle_request_out_of_descriptors_backs_off(monkeypatch, caplog):
    """A loop of the program's own does not spin, and is served afterwards."""
    def fail(*arguments):
        raise out_of("EMFILE")

    monkeypatch.setattr(failures, "BACK_OFF", 0.001)
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", fail)
            server.handle_request()
        assert server.stats().accept_errors == 1 and "cannot accept" in caplog.text
        with connect(server) as client:
            server.handle_request()
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""


def test_handle_request_on_an_overridden_loop_lets_start_return():
    """A serve_forever of the program's own, on handle_request, starts and stops as well."""
    class Server(ThreadedTCPServer):
        """Loops itself."""

        def serve_forever(self, poll_interval=0.5):
            """Handle requests until told to stop."""
            while not self.stopping.is_set():
                self.handle_request()

    with Server(LOOPBACK, Echo).start() as server:
        assert ask(server) == b"ping\n"
        assert ask(server) == b"ping\n"
