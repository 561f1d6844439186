"""What a failed accept means: go on, wait, or end the loop."""
from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import types

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import failures

from ..conftest import LOOPBACK
from ..tools import Echo, ask, connect, receive, receive_all, until, wait_until


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


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_exhaustion_is_logged_and_waited_out(serve, caplog, name, monkeypatch):
    """If descriptors or memory run out, one line is logged, each failure counted, and the client served later."""
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
    """The loop goes on, and the failure is counted."""
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
    until(lambda: server.stats().seconds_up)


def test_broken_listener_in_the_background_reaches_the_excepthook(serve, monkeypatch):
    """A loop that start() has begun fails as loudly, even if it is an idle handler thread that finds out."""
    seen = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.set())
    server = serve(Echo)
    assert ask(server) == b"ping\n"
    break_listener(server)
    wait_until(seen)


def test_close_by_the_program_ends_the_loop_without_a_word(caplog):
    """A listening socket that is closed in get_request is no failed accept, and no error of the loop."""
    class Server(ThreadedTCPServer):
        """Closes its socket itself."""

        def get_request(self):
            """Close, and fail with that."""
            self.socket.close()
            return super().get_request()

    with Server(LOOPBACK, Echo) as server, connect(server):
        server.serve_forever()
        assert not server._threaded_state.loops.running
        assert (server.stats().accept_errors, server.stats().accepted) == (0, 0)
    assert not caplog.records


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


def test_listener_that_is_no_socket_is_not_taken_for_a_broken_one():
    """Nobody but the program knows what it is."""
    assert failures.is_broken(types.SimpleNamespace()) is False
    assert failures.is_broken(types.SimpleNamespace(socket="a listener of its own")) is False


def test_listener_is_broken_if_it_is_closed_or_does_not_listen(monkeypatch):
    """A datagram socket never listens, and some platforms cannot tell."""
    with socket.socket() as silent, socket.create_server(LOOPBACK) as listening, \
            socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert failures.is_broken(types.SimpleNamespace(socket=silent)) is True
        assert failures.is_broken(types.SimpleNamespace(socket=listening)) is False
        assert failures.is_broken(types.SimpleNamespace(socket=datagrams)) is False
        monkeypatch.delattr(socket, "SO_ACCEPTCONN")
        assert failures.is_broken(types.SimpleNamespace(socket=silent)) is False
        monkeypatch.undo()
    assert failures.is_broken(types.SimpleNamespace(socket=listening)) is True


def test_broken_listener_that_an_idle_thread_finds_while_the_loop_is_elsewhere_ends_it_loudly(serve, monkeypatch):
    """The loop is in a hook then, and comes back to an end that it must not take for a stop."""
    seen, hold, held, release = (threading.Event() for _ in range(4))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.set())

    class Server(ThreadedTCPServer):
        """Holds its loop."""

        def serve_forever(self, poll_interval=0.5):
            """Poll often."""
            super().serve_forever(0.01)

        def service_actions(self):
            """Wait, if told to."""
            if hold.is_set():
                held.set()
                wait_until(release)

    server = serve(Echo, Server)
    assert ask(server) == b"ping\n"
    until(lambda: server._threaded_state.threads.count() == (0, 1))
    hold.set()
    wait_until(held)
    [loop] = server._threaded_state.loops.running
    break_listener(server)
    until(lambda: loop.stopped)
    release.set()
    server._threaded_state.loops.background.join()
    assert seen.is_set()


def test_listener_that_is_closed_under_the_server_harms_no_live_client(serve):
    """Nobody else gets in, and the stop is clean."""
    server = serve(Echo)
    with connect(server) as client:
        for message in (b"before", b"after"):
            client.sendall(message)
            assert receive(client, len(message)) == message
            server.socket.close()
        assert server.stop().clean
        assert receive_all(client) == b""
