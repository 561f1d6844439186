"""A deadline for several reads, and the wait for a connection."""
from __future__ import annotations

import socket

import pytest

from threaded_echo.transport.deadline import Deadline, wait_for

from ..tools import GUARD


def test_deadline_counts_down_to_nothing():
    """It is of one moment, however often it is asked."""
    times = iter((100.0, 100.0, 104.0, 110.0, 111.0))
    deadline = Deadline(10, lambda: next(times))
    assert [deadline.remaining() for _ in range(4)] == [10.0, 6.0, 0.0, 0.0] and deadline.seconds == 10


def test_no_deadline_is_never_over():
    """Nobody asks for the time."""
    assert Deadline(None).remaining() is None


@pytest.mark.parametrize("has_poll", [True, False])
def test_connection_is_waited_for(monkeypatch, has_poll):
    """By select if there is no poll; both directions, an end of stream, and the end of the time."""
    if not has_poll:
        monkeypatch.delattr("select.poll")
    one, other = socket.socketpair()
    with one, other:
        assert not wait_for(one, 0) and not wait_for(one, 0.0001)
        assert wait_for(one, 0, to_send=True) and wait_for(one, None, to_send=True)
        other.sendall(b"x")
        assert wait_for(one, None) and wait_for(one, GUARD)
        one.recv(1)
        other.shutdown(socket.SHUT_WR)
        assert wait_for(one, 1e9)
