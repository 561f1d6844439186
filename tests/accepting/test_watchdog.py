"""What systemd is told of a server: a fake one listens."""
from __future__ import annotations

import signal
import socket
import threading

import pytest

from threaded_echo.accepting import descriptors, failures
from threaded_echo.accepting.watchdog import Watchdog

from ..tools import GUARD, Echo, Gate, ask, connect, receive, subclass, until, wait_until
from .operating import run, send, server_of

pytestmark = pytest.mark.usefixtures("handlers_are_restored")


class Systemd(socket.socket):
    """Hears what services say."""

    def hear(self):
        """Wait for the next message."""
        return self.recv(100).decode()


@pytest.fixture
def systemd(monkeypatch, tmp_path):
    """Be systemd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", "./notify")
    with Systemd(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind("notify")
        made.settimeout(GUARD)
        yield made


def has_watchdog():
    """Say whether there is a thread for it."""
    return any("watchdog" in thread.name for thread in threading.enumerate())


def test_systemd_is_told_when_the_server_accepts_and_when_it_stops(systemd):
    """It wants no watchdog, and there is no thread for one."""
    server = server_of(Echo)

    def script():
        assert systemd.hear() == "READY=1"
        assert ask(server) == b"ping\n"
        assert not has_watchdog()
        send(signal.SIGTERM)
        assert systemd.hear() == "STOPPING=1"

    run(server, script)
    systemd.settimeout(0)
    with pytest.raises(BlockingIOError):
        systemd.hear()


def test_server_that_lingers_is_stopping_already(systemd):
    """A new process may take over."""
    server = server_of(Echo, linger_timeout=300)

    def script():
        assert systemd.hear() == "READY=1"
        with connect(server) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            send(signal.SIGTERM)
            assert systemd.hear() == "STOPPING=1"
            assert not server.stopping.is_set()

    run(server, script)


def test_server_that_is_stopped_by_itself_is_stopping(systemd):
    """It says so, whatever has ended its loop."""
    server = server_of(Echo)
    run(server, lambda: (systemd.hear(), server.stop()))
    assert systemd.hear() == "STOPPING=1"


def test_server_that_does_not_start_is_not_ready(systemd):
    """It stops at once."""
    server = server_of(Echo, drain_timeout=5)
    server.drain_timeout = "wrong"
    with pytest.raises(TypeError):
        server.run()
    server.drain_timeout = 1
    server.stop()


def test_server_that_lives_says_so_again_and_again(systemd, monkeypatch):
    """From its start to the end of its stop; afterwards there is no thread."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    server = server_of(Echo)

    def script():
        heard = [systemd.hear() for _ in range(5)]
        assert heard.count("READY=1") == 1 and heard.count("WATCHDOG=1") == 4
        assert has_watchdog()
        send(signal.SIGTERM)
        while systemd.hear() != "STOPPING=1":
            pass

    run(server, script)
    assert not has_watchdog()


def test_nothing_is_told_without_the_variables(monkeypatch):
    """There is no thread for it, either."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    server = server_of(Echo)

    def script():
        assert ask(server) == b"ping\n"
        assert not has_watchdog()
        send(signal.SIGTERM)

    run(server, script)


def test_server_that_does_not_live_says_nothing(systemd, monkeypatch):
    """So systemd restarts it when its limit is over."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    answers = [True, False, False]
    looked = threading.Event()

    def is_alive(watchdog):
        if answers:
            return answers.pop(0)
        looked.set()
        return False

    monkeypatch.setattr(Watchdog, "is_alive", is_alive)
    with server_of(Echo) as server, watched(server):
        wait_until(looked)
    systemd.setblocking(False)
    assert systemd.hear() == "WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        systemd.hear()


def watched(server):
    """Watch a server."""
    return Watchdog(server, server._threaded_state)


def test_server_without_a_loop_is_not_alive():
    """Nobody accepts, and that is not because it is stopping."""
    with server_of(Echo) as server:
        assert not watched(server).is_alive()
        server.start()
        assert watched(server).is_alive()
        server.shutdown()
        watchdog = watched(server)
        assert not watchdog.is_alive()
        watchdog.stopping()
        assert watchdog.is_alive(), "its end is bounded"


def test_server_whose_door_hangs_is_not_alive():
    """A connection waits, and none has been accepted since the last look. It lives again when that goes on."""
    gate = Gate()

    def hang(server, request, client_address):
        gate.entered.set()
        wait_until(gate.release)
        return True

    with server_of(Echo, subclass(verify_request=hang)).start() as server:
        watchdog = watched(server)
        with connect(server):
            wait_until(gate.entered)
            assert [watchdog.is_alive(), watchdog.is_alive()] == [True, True], "no connection waits"
            with connect(server) as other:
                assert [watchdog.is_alive(), watchdog.is_alive(), watchdog.is_alive()] == [True, False, False]
                gate.release.set()
                other.sendall(b"x")
                assert receive(other, 1) == b"x"
        assert watchdog.is_alive()


def test_server_that_cannot_accept_for_now_is_alive():
    """It tries again, as when it has run out of descriptors."""
    with server_of(Echo).start() as server:
        watchdog = watched(server)
        with server_of(Echo) as other, connect(other):  # connections to this one wait
            watchdog._server = other
            assert watchdog.is_alive()
            assert not watchdog.is_alive()
            server._threaded_state.failures.count += 1
            assert watchdog.is_alive()


def test_server_that_keeps_its_last_descriptors_free_is_alive(monkeypatch):
    """Clients wait for as long as its handlers need them, and systemd must not end these."""
    monkeypatch.setattr(descriptors, "count_open", lambda listener: 1_000_000_000)
    monkeypatch.setattr(failures, "BACK_OFF", 0.001)
    with server_of(Echo).start() as server, connect(server):
        watchdog, limits = watched(server), server._threaded_state.limits
        for _ in range(3):
            seen = limits.pauses
            until(lambda: limits.pauses > seen)
            assert watchdog.is_alive()
        assert server.stats().accepted == 0


def test_server_that_is_full_is_alive():
    """A client waits, and is let in when another one goes."""
    with server_of(Echo, max_clients=1).start() as server:
        watchdog = watched(server)
        with connect(server) as client, connect(server):
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
            until(lambda: server._threaded_state.limits.holds(server._threaded_state.loops.running[0]))
            assert [watchdog.is_alive(), watchdog.is_alive(), watchdog.is_alive()] == [True, True, True]
