"""``linger_timeout``: after the first signal no client is accepted, and those that are there may go on for a while."""
from __future__ import annotations

import logging
import signal
import socket
import socketserver
import threading

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, stopping
from threaded_echo.accepting import running
from threaded_echo.accepting.loop import Loops
from threaded_echo.hooks_accepting import AcceptingHooks

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, Gate, ask, connect, receive, receive_all, subclass, until, wait_until
from .operating import run, send, server_of

pytestmark = pytest.mark.usefixtures("handlers_are_restored")


@pytest.fixture
def events(caplog):
    """Return what the server logs of its end."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    return lambda: [message for message in caplog.messages if message.startswith(("lingering", "stopping"))]


def is_refused(server):
    """Return whether nobody listens any more."""
    try:
        connect(server).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # it was in the queue when that was closed
        pass
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_client_goes_on_after_a_signal_and_no_other_is_accepted(events, number):
    """Its handler sees no stop; when it has gone, the server stops, long before the time is up."""
    server = server_of(Echo, linger_timeout=300)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(number)
            until(lambda: server.fileno() < 0)
            until(lambda: is_refused(server))  # the socket is closed a moment after it says so
            client.sendall(b"still here")
            assert receive(client, 10) == b"still here"
            assert not server.stopping.is_set()

    report = run(server, script)
    assert (report.drained, report.forced, report.clean) == (0, 0, True)
    assert server.stats().finished == 1
    assert events() == ["lingering: 1 client live", "stopping: 0 clients live"]


def test_handler_of_a_datagram_still_replies_after_a_signal(events):
    """There it is the listening socket through which it does that."""
    gate = Gate(lambda handler: handler.request[1].sendto(b"reply", handler.client_address))
    server_class = type("Server", (ThreadedMixIn, socketserver.ThreadingUDPServer), {"linger_timeout": 300})
    server = server_class(LOOPBACK, gate.handler)

    def script():
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(GUARD)
            client.sendto(b"x", server.server_address)
            wait_until(gate.entered)
            send(signal.SIGTERM)
            until(lambda: "lingering: 1 client live" in events())
            gate.release.set()
            assert client.recv(10) == b"reply"

    run(server, script)


def test_loop_that_has_not_begun_when_the_server_lingers_does_not_begin(monkeypatch):
    """The signal came before the background thread was that far: it would go on accepting."""
    ended, end_accepting = threading.Event(), Loops.end_accepting

    def serve_forever(server):
        wait_until(ended)
        ThreadedTCPServer.serve_forever(server)

    monkeypatch.setattr(running, "_RETURN", GUARD)
    monkeypatch.setattr(Loops, "end_accepting", lambda loops: (end_accepting(loops), ended.set()))
    server = server_of(Echo, subclass(serve_forever=serve_forever), linger_timeout=300)
    with connect(server):
        assert server.run(0).clean
    assert server.stats().accepted == 0


def test_server_without_clients_does_not_linger(events):
    """There is nobody to wait for."""
    server = server_of(Echo, linger_timeout=300)
    run(server, lambda: (ask(server), until(lambda: not server.clients), send(signal.SIGTERM)))
    assert events() == ["stopping: 0 clients live"]


def test_client_that_stays_is_stopped_when_the_time_is_up(events):
    """It is woken then, as by any stop."""
    server = server_of(Echo, linger_timeout=0.01)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(signal.SIGTERM)
            assert receive_all(client) == b""

    assert run(server, script).drained == 1
    assert events() == ["lingering: 1 client live", "stopping: 1 client live"]


def test_end_of_the_duration_lets_clients_go_on_as_well(events):
    """Its end is no different from a signal."""
    with connect(server := server_of(Echo, linger_timeout=0.01)) as client:
        wait = running._Run._wait

        def end(run, duration):
            """Reach the end of the duration when the client is there."""
            until(lambda: server.clients)
            return wait(run, 0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running._Run, "_wait", end)
            assert server.run(60).drained == 1
        assert receive_all(client) == b""
    assert events() == ["lingering: 1 client live", "stopping: 1 client live"]


def test_second_signal_cuts_the_connections_at_once():
    """Whoever sends it does not want to wait."""
    server = server_of(Echo, linger_timeout=300, drain_timeout=300)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(signal.SIGTERM)
            until(lambda: server.fileno() < 0)
            send(signal.SIGTERM)
            assert receive_all(client) == b""

    assert run(server, script).forced + server.stats().finished >= 1


def test_stop_by_another_thread_ends_the_lingering():
    """The time is up when somebody says so."""
    server = server_of(Echo, linger_timeout=300)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(signal.SIGTERM)
            until(lambda: server.fileno() < 0)
            assert server.stop().clean
            assert receive_all(client) == b""

    assert run(server, script).clean


def test_stop_that_has_begun_already_is_not_held_up(events):
    """A signal that comes in the middle of it has nothing to let go on."""
    server = server_of(Echo, linger_timeout=300)
    server._threaded_state.stopping.period.stop()
    running._Run(server, server._threaded_state)._linger(None)
    assert server.fileno() >= 0
    server.stop()


def test_server_close_of_the_program_is_called_at_the_stop():
    """The listening socket is closed before that."""
    closed = []

    class Server(ThreadedTCPServer):
        """Has something else to close."""

        def server_close(self):
            """Note how many clients there are."""
            closed.append(len(self.clients))
            super().server_close()

    server = server_of(Echo, Server, linger_timeout=300)

    def script():
        with connect(server) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(signal.SIGTERM)
            until(lambda: server.fileno() < 0)
            assert not closed

    run(server, script)
    assert closed == [0]


def test_all_listeners_are_closed_as_the_lingering_begins():
    """Other processes that have them go on."""
    server = ThreadedTCPServer([LOOPBACK, LOOPBACK], Echo, linger_timeout=300)
    ours, *_ = server.listeners
    shared = ours.dup()

    def script():
        with connect(server.server_addresses[1]) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(signal.SIGTERM)
            until(lambda: server.listeners[1].fileno() < 0)
            with pytest.raises(ConnectionRefusedError):
                connect(server.server_addresses[1])
            with connect(server.server_addresses[0]) as later:
                shared.accept()[0].close()
                assert receive_all(later) == b""

    with shared:
        run(server, script)


@pytest.mark.parametrize("asked", [0, 1])
def test_client_that_is_being_accepted_as_the_signal_comes_is_served(monkeypatch, asked):
    """The thread that has got through the door lists its client before it is looked who there is.

    The first client is accepted by the serving thread, the second by the idle thread that has served the first.
    """
    gate = Gate()
    accept = AcceptingHooks._threaded_accept
    accepts = []

    def wait(self, period):
        accepts.append(period)
        if len(accepts) > asked:
            gate.entered.set()
            wait_until(gate.release)
        return accept(self, period)

    monkeypatch.setattr(AcceptingHooks, "_threaded_accept", wait)
    monkeypatch.setattr(running, "_RETURN", GUARD)
    server = server_of(Echo, linger_timeout=300)

    def script():
        for _ in range(asked):
            ask(server)
        until(lambda: server.stats().threads_idle == asked)
        with connect(server) as client:
            wait_until(gate.entered)
            loop = server._threaded_state.loops.running[0]
            send(signal.SIGTERM)
            until(lambda: loop.stopped)
            gate.release.set()
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            assert not server.stopping.is_set()

    run(server, script)
    assert server.stats().accepted == server.stats().finished == asked + 1


def test_hook_that_hangs_at_the_door_does_not_hold_up_the_end(monkeypatch):
    """The wait for it is bounded; it is the stop's survivor."""
    gate = Gate()
    monkeypatch.setattr(running, "_RETURN", 0.01)
    monkeypatch.setattr(stopping, "_TAIL", 0.01)

    def hang(server, request, client_address):
        gate.entered.set()
        wait_until(gate.release)
        return True

    server = server_of(Echo, subclass(verify_request=hang), linger_timeout=0.01, drain_timeout=0.01, force_timeout=0.01)

    def script():
        with connect(server):
            wait_until(gate.entered)
            send(signal.SIGTERM)
            until(lambda: server._threaded_state.stopping._given_up)
            gate.release.set()

    assert not run(server, script).clean
    server.stop(GUARD)
