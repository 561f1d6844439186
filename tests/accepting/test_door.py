"""The door: who waits at it, and that nobody is left there."""
from __future__ import annotations

import socket

import pytest

from threaded_echo.accepting.door import PollDoor, make_door

from ..conftest import LOOPBACK
from ..tools import connect, running


@pytest.mark.parametrize("kind", [make_door, PollDoor])
def test_thread_that_never_reopens_leaves_nobody_behind_once_it_is_shut(kind):
    """Ctrl-C may take the one that got through away before it reopens: a stop ends the others' waiting all the same."""
    let_through = []
    with socket.create_server(LOOPBACK) as listener, connect(listener.getsockname()):
        door = kind(listener.fileno())
        assert door.wait()
        with running(lambda: let_through.append(door.wait())):
            door.shut()
        door.close()
    assert let_through == [False]
