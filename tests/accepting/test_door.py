"""The door: one thread gets through per connection, and nobody else wakes. Each kind of door passes the same tests."""
from __future__ import annotations

import os
import queue
import select
import socket
import threading
from contextlib import ExitStack

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting.door import EpollDoor, EpollDoorOfSeveral, PollDoor, make_door

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, connect, receive, receive_all, running

KINDS = ["epoll", "poll", "select"] if hasattr(select, "epoll") else ["poll", "select"]


@pytest.fixture(params=KINDS)
def make(request, monkeypatch):
    """Make a door of each kind for a listening socket's descriptor; "select" is the one of a platform without poll."""
    if request.param == "select":
        monkeypatch.delattr(select, "poll")
    return EpollDoor if request.param == "epoll" else PollDoor


@pytest.fixture
def listener():
    """Listen."""
    with socket.create_server(LOOPBACK) as made:
        yield made


@pytest.fixture
def door(make, listener):
    """Make a door for the listener; close it in the end."""
    made = make(listener.fileno())
    yield made
    made.shut()
    made.close()


def test_door_for_a_closed_listener_leaves_nothing_open(make):
    """A signal handler may close the listener just before; the fixture of all tests looks at what is left."""
    try:
        made = make(-1)
    except (OSError, ValueError):
        return
    made.close()  # select finds that out later


class Waiting:
    """Threads that wait at a door; ``results`` gets what each wait has returned."""

    def __init__(self, door, count):
        self.results = queue.SimpleQueue()
        self._door = door
        self._count = count
        self._stack = ExitStack()

    def __enter__(self):
        self.entering = threading.Barrier(self._count + 1)
        for _ in range(self._count):
            self._stack.enter_context(running(self._wait))
        self.entering.wait(GUARD)
        return self

    def _wait(self):
        self.entering.wait(GUARD)
        self.results.put(self._door.wait())

    def next(self):
        """Return the next result."""
        return self.results.get(timeout=GUARD)

    def __exit__(self, *_):
        self._door.shut()  # or a failed test would wait for the threads
        self._stack.close()


def test_connection_lets_one_thread_through_until_the_door_is_reopened(door, listener):
    """The connection is not even accepted yet when the others would see it; only `reopen` lets the next one in."""
    with Waiting(door, 3) as waiting, connect(listener.getsockname()):
        assert waiting.next() is True
        assert door.wait(0) is False
        assert waiting.results.empty()
        door.reopen(listener.fileno())
        assert waiting.next() is True, "the connection is still pending"
        assert door.wait(0) is False
        door.reopen(listener.fileno())
        assert waiting.next() is True


def test_reopened_door_lets_nobody_through_without_a_connection(door, listener):
    """The thread that got through has taken the only connection; the next one comes later."""
    with connect(listener.getsockname()):
        assert door.wait() is True
        listener.accept()[0].close()
        door.reopen(listener.fileno())
        assert door.wait(0) is False
    with connect(listener.getsockname()):
        assert door.wait() is True
        door.reopen(listener.fileno())


def test_two_connections_let_two_threads_through_one_after_the_other(door, listener):
    """The second thread gets through when the first has accepted and reopened the door."""
    with connect(listener.getsockname()), connect(listener.getsockname()):
        for _ in range(2):
            assert door.wait() is True
            assert door.wait(0) is False
            listener.accept()[0].close()
            door.reopen(listener.fileno())
        assert door.wait(0) is False


def test_shut_ends_every_wait_for_good(door, listener):
    """It ends the waits that have begun and those that begin later, even if a connection is pending."""
    with Waiting(door, 3) as waiting:
        door.shut()
        door.shut()
        assert [waiting.next() for _ in range(3)] == [False, False, False]
    with connect(listener.getsockname()):
        assert door.wait() is False
        assert door.wait(GUARD) is False


def test_door_that_is_shut_while_a_thread_is_at_it_lets_no_other_through(door, listener):
    """The thread that got through reopens it, and whoever waits goes away, whatever is pending."""
    with connect(listener.getsockname()), connect(listener.getsockname()):
        assert door.wait() is True
        with Waiting(door, 2) as waiting:
            door.shut()
            listener.accept()[0].close()
            door.reopen(listener.fileno())
            assert [waiting.next(), waiting.next()] == [False, False]


def test_wait_with_a_time_out_returns_when_it_is_up(door):
    """The wait returns False, since nobody came."""
    assert door.wait(0) is False
    assert door.wait(0.001) is False


@pytest.mark.parametrize("closed", [False, True])
def test_listener_that_was_exchanged_is_the_one_that_is_waited_for(door, listener, closed):
    """The door follows the program at the next `reopen`, whether the old listener has been closed or not."""
    with socket.create_server(LOOPBACK) as other:
        with connect(listener.getsockname()), connect(listener.getsockname()):
            assert door.wait() is True
            listener.accept()[0].close()
            if closed:
                listener.close()
            door.reopen(other.fileno())
            assert door.wait(0) is False, "there is a connection to the old one only"
            with connect(other.getsockname()):
                assert door.wait() is True
                door.reopen(other.fileno())


def test_listener_that_was_closed_is_no_error_for_the_thread_at_the_door(door, listener):
    """Nobody gets in any more once the loop has shut the door, which it does then."""
    descriptor = listener.fileno()
    with connect(listener.getsockname()):
        assert door.wait() is True
        listener.close()
        door.shut()
        door.reopen(descriptor)
        assert door.wait() is False


def test_listener_that_is_known_to_be_closed_is_no_error_for_the_thread_at_the_door(door, listener):
    """The descriptor of a closed listener is -1."""
    with connect(listener.getsockname()):
        assert door.wait() is True
        listener.close()
        door.shut()
        door.reopen(-1)
        assert door.wait() is False


def test_door_is_the_best_that_the_platform_has(listener, monkeypatch):
    """That is epoll on Linux, and a poll under a lock elsewhere."""
    if hasattr(select, "epoll"):
        made = make_door(listener.fileno())
        assert type(made) is EpollDoor
        made.close()
        made = make_door(listener.fileno(), [listener.fileno()][:0])
        assert type(made) is EpollDoor
        made.close()
        monkeypatch.delattr(select, "epoll")
    made = make_door(listener.fileno())
    assert isinstance(made, PollDoor)
    made.close()


def test_server_at_any_door_serves_in_threads_that_accept_for_themselves_and_stops(make, serve, monkeypatch):
    """Idle threads come back to the door, take the next clients, and end with the stop."""
    monkeypatch.setattr("threaded_echo.accepting.loop.make_door", lambda listener, others: make(listener))
    server = serve(Echo)
    for _ in range(2):
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(server)) for _ in range(5)]
            for client in clients:
                client.sendall(b"hello")
            for client in clients:
                assert receive(client, 5) == b"hello"
            assert len(server.clients) == 5
            for client in clients:
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b""
    with connect(server) as idle:
        idle.sendall(b"x")
        assert idle.recv(1) == b"x"
        assert server.stop().drained == 1
    assert server.stats().finished == 11 and server.stats().threads_idle == 0


def test_thread_that_never_reopens_leaves_nobody_behind_once_it_is_shut(make, listener):
    """Ctrl-C may take the one that got through away before it reopens: a stop ends the others' waiting all the same."""
    let_through = []
    with connect(listener.getsockname()):
        door = make(listener.fileno())
        assert door.wait()
        with running(lambda: let_through.append(door.wait())):
            door.shut()
        door.close()
    assert let_through == [False]


def test_listener_that_was_exchanged_for_one_with_the_same_descriptor_is_waited_for(door, listener):
    """The system gives the number of a closed listener to the next socket: the door must not take it for the old one.
    """
    descriptor = listener.fileno()
    with socket.create_server(LOOPBACK) as other:
        with connect(listener.getsockname()):
            assert door.wait() is True
            listener.close()
            with socket.socket(fileno=os.dup2(other.fileno(), descriptor)):
                door.reopen(descriptor)
                with connect(other.getsockname()):
                    assert door.wait(5) is True
                    door.reopen(descriptor)


@pytest.mark.parametrize("make", ["poll", "select"], indirect=True)
def test_closed_listener_ends_a_wait_at_a_door_without_epoll(make, listener):
    """Accepting then finds that it is closed. (epoll forgets it, and waits for the stop.)"""
    door = make(listener.fileno())
    listener.close()
    assert door.wait() is True
    door.reopen(-1)
    door.shut()
    assert door.wait() is False
    door.close()


@pytest.fixture
def make_for_several(make):
    """Make a door of each kind for several listeners."""
    return EpollDoorOfSeveral if make is EpollDoor else PollDoor


@pytest.fixture
def other():
    """Listen a second time."""
    with socket.create_server(LOOPBACK) as made:
        yield made


@pytest.fixture
def shared_door(make_for_several, listener, other):
    """Make a door for two listeners; close it in the end."""
    made = make_for_several(listener.fileno(), [other.fileno()])
    yield made
    made.shut()
    made.close()


def test_connections_to_several_listeners_let_one_thread_through_at_a_time(shared_door, listener, other):
    """There is one door, whichever of them a connection comes to; each that is pending lets the next one through."""
    with Waiting(shared_door, 2) as waiting, connect(listener.getsockname()), connect(other.getsockname()):
        assert waiting.next() is True
        assert shared_door.wait(0) is False and waiting.results.empty()
        listener.accept()[0].close()
        shared_door.reopen(listener.fileno())
        assert waiting.next() is True
        other.accept()[0].close()
        shared_door.reopen(listener.fileno())
        assert shared_door.wait(0) is False


def test_shut_ends_every_wait_for_several_listeners(shared_door, other):
    """Also with a connection pending."""
    with Waiting(shared_door, 2) as waiting:
        shared_door.shut()
        assert [waiting.next(), waiting.next()] == [False, False]
    with connect(other.getsockname()):
        assert shared_door.wait() is False


@pytest.mark.parametrize("closed", [False, True])
def test_first_of_several_listeners_may_be_exchanged(shared_door, listener, other, closed):
    """The door follows the program, and the other one stays."""
    with socket.create_server(LOOPBACK) as new:
        with connect(listener.getsockname()):
            assert shared_door.wait() is True
            if closed:
                listener.close()
            shared_door.reopen(new.fileno())
            assert shared_door.wait(0) is False
            for address in (new, other):
                with connect(address.getsockname()):
                    assert shared_door.wait() is True
                    address.accept()[0].close()
                    shared_door.reopen(new.fileno())


def test_first_of_several_listeners_that_is_known_to_be_closed_is_no_error(shared_door, listener):
    """The loop shuts the door then."""
    with connect(listener.getsockname()):
        assert shared_door.wait() is True
        listener.close()
        shared_door.shut()
        shared_door.reopen(-1)
        assert shared_door.wait() is False


@pytest.mark.parametrize("make", KINDS[:-1], indirect=True)
def test_further_listener_that_was_closed_does_not_keep_the_door_open(shared_door, listener, other):
    """The program has closed it: at most one thread is let through for that, and then the others wait for the first."""
    other.close()
    if shared_door.wait(0):
        shared_door.reopen(listener.fileno())
    assert shared_door.wait(0) is False
    with connect(listener.getsockname()):
        assert shared_door.wait() is True
        shared_door.reopen(listener.fileno())


def test_server_of_several_addresses_at_any_door_serves_in_threads_of_its_own(make_for_several, monkeypatch):
    """Idle threads take the next clients of either listener, one at a time, and end with the stop."""
    monkeypatch.setattr("threaded_echo.accepting.loop.make_door", make_for_several)
    with ThreadedTCPServer([LOOPBACK, LOOPBACK], Echo).start() as server:
        for _ in range(3):
            for address in server.server_addresses:
                assert ask(address) == b"ping\n"
        with connect(server.server_addresses[1]) as idle:
            idle.sendall(b"x")
            assert idle.recv(1) == b"x"
            assert server.stop().drained == 1
    assert server.stats().finished == 7 and server.stats().threads_idle == 0
