"""Sending without waiting: plain sockets of all kinds, and TLS, which may have to stop in the middle of a record."""
from __future__ import annotations

import socket
import ssl
import threading

import pytest

from threaded_echo.transport import at_once
from threaded_echo.transport.at_once import can_send_at_once, is_behind, send_at_once
from threaded_echo.transport.kernel_timeouts import has_stalled

from ..tools import GUARD, receive, running, wait_until
from .test_tls import server_context
from .test_tls_sharing import pair  # noqa: F401 - a fixture


@pytest.fixture
def ends():
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(GUARD)
    with ours, theirs:
        yield ours, theirs


def fill(ours):
    """Send until there is no room; return how many bytes that were."""
    total = 0
    while taken := send_at_once(ours, bytes(100_000)):
        total += taken
    return total


@pytest.mark.parametrize("timeout", [None, 0.0, GUARD])
def test_socket_takes_what_there_is_room_for(ends, timeout):
    """Nothing waits, whatever the time-out is, and that stays."""
    ours, theirs = ends
    ours.settimeout(timeout)
    total = fill(ours)
    assert total and ours.gettimeout() == timeout and not is_behind(ours)
    assert receive(theirs, total) == bytes(total)
    assert send_at_once(ours, b"x") == 1 and theirs.recv(1) == b"x"


def test_platform_without_the_flag_sends_little_at_once(ends, monkeypatch):
    """For a little there is room in any socket that can be sent to."""
    ours, theirs = ends
    monkeypatch.setattr(at_once, "_DONTWAIT", 0)
    assert send_at_once(ours, bytes(2000)) == at_once._SMALL
    monkeypatch.setattr(at_once, "wait_for", lambda connection, seconds, to_send: False)
    assert send_at_once(ours, b"x") == 0


def test_sockets_of_other_kinds_are_told_apart(ends):
    """Only those whose bytes go out as they are given."""
    class Own(socket.socket):
        """Has its own form."""

        def send(self, data, flags=0):
            """Send."""

    class Plain(socket.socket):
        """Has none."""

    assert can_send_at_once(ends[0])
    assert not can_send_at_once((b"data", ends[0])) and not can_send_at_once(None)
    for cls, kind, can in ((Own, socket.SOCK_STREAM, False), (Plain, socket.SOCK_STREAM, True),
                           (Plain, socket.SOCK_DGRAM, False)):
        with cls(type=kind) as connection:
            assert can_send_at_once(connection) is can
    wrapped = server_context().wrap_socket(ends[0], server_side=True, do_handshake_on_connect=False)
    with wrapped:
        assert not can_send_at_once(wrapped), "its handshake is to be done"


def test_kernel_that_cannot_tell_says_that_a_connection_has_stalled(ends):
    """The caller has seen no room for so long."""
    assert has_stalled(ends[0], 1.0) and has_stalled(None, 1.0)


def test_tls_takes_what_there_is_room_for(pair):  # noqa: F811
    """As a plain socket does; what it has begun counts, and goes on by a call without data."""
    ours, theirs = pair
    assert can_send_at_once(ours) and send_at_once(ours, b"x") == 1 and receive(theirs, 1) == b"x"
    total = fill(ours)
    while is_behind(ours):
        total -= len(receive(theirs, min(total, 100_000)))
        assert send_at_once(ours, b"") == 0
    assert receive(theirs, total) == bytes(total)
    assert send_at_once(ours, b"x") == 1 and receive(theirs, 1) == b"x"


class Narrow:
    """OpenSSL's part of a connection, for which there is no room in the middle of the next record."""

    def __init__(self, own):
        self._own = own
        self.wants = [ssl.SSLWantWriteError]

    def __getattr__(self, name):
        return getattr(self._own, name)

    def write(self, data):
        """Write, or say that there is no room."""
        if self.wants:
            raise self.wants.pop()
        return self._own.write(data)


@pytest.mark.parametrize("timeout", [None, 0.0])
def test_record_that_tls_has_begun_goes_ahead_of_the_next_send(pair, timeout):  # noqa: F811
    """Whoever sends, by the socket itself: OpenSSL wants to go on with the same bytes."""
    ours, theirs = pair
    own = ours._sslobj
    ours._sslobj = Narrow(own)
    ours.settimeout(timeout)
    assert send_at_once(ours, b"begun") == 5 and is_behind(ours)
    ours.sendall(b", next")
    assert not is_behind(ours) and receive(theirs, 11) == b"begun, next"
    ours._sslobj = own


def test_record_that_tls_has_begun_stays_begun_until_there_is_room(pair):  # noqa: F811
    """Another try may not do it either; what is offered with it is not taken then."""
    ours, theirs = pair
    own = ours._sslobj
    ours._sslobj = Narrow(own)
    ours._sslobj.wants *= 2
    assert send_at_once(ours, b"begun") == 5
    assert send_at_once(ours, b", next") == 0 and is_behind(ours)
    assert send_at_once(ours, b", next") == 6 and not is_behind(ours)
    assert receive(theirs, 11) == b"begun, next"
    ours._sslobj = own


def test_tls_to_which_another_thread_sends_takes_nothing(pair):  # noqa: F811
    """By the socket itself, as handlers do that know nothing of this package."""
    ours, _ = pair
    inside, release = threading.Event(), threading.Event()

    def hold():
        with ours._sending:
            inside.set()
            wait_until(release)

    with running(hold):
        wait_until(inside)
        assert send_at_once(ours, b"x") == 0
        release.set()


def test_tls_that_has_ended_takes_nothing_that_would_go_out_in_the_clear(pair):  # noqa: F811
    """Whoever sends to all does not know that the handler has ended it."""
    ours, theirs = pair
    with running(theirs.unwrap):
        ours.unwrap()
    assert not can_send_at_once(ours)
    with pytest.raises(ConnectionAbortedError):
        send_at_once(ours, b"x")


def test_record_that_tls_has_begun_goes_out_ahead_of_its_end(pair):  # noqa: F811
    """OpenSSL would refuse to end it in the middle."""
    ours, theirs = pair
    ours.setblocking(True)
    own = ours._sslobj
    ours._sslobj = Narrow(own)
    assert send_at_once(ours, b"begun") == 5 and is_behind(ours)
    received = []
    with running(lambda: received.extend([receive(theirs, 5), theirs.unwrap()])):
        ours.unwrap()
    assert received[0] == b"begun" and not is_behind(ours)
