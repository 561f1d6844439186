"""The background thread of start(), and two threads that want to serve at once."""
from __future__ import annotations

import socket
import threading

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer
from threaded_echo.accepting.limits import Limits
from threaded_echo.accepting.loop import Loop
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry

from ..conftest import LOOPBACK
from ..tools import Echo, ask, connect, running, wait_until


def test_start_returns_once_it_accepts():
    """It returns the server itself, which serves the first client at once."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert server.start() is server
        assert ask(server) == b"ping\n"


def test_start_twice_is_an_error(serve):
    """While the server serves, neither start() nor serve_forever() can begin again, and the first loop goes on."""
    server = serve(Echo)
    for serving_again in (server.start, server.serve_forever):
        with pytest.raises(RuntimeError, match="already serving"):
            serving_again()
    assert ask(server) == b"ping\n"


def test_start_while_starting_is_an_error():
    """The second start() comes between the first one and its first accept."""
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


def make_loop(registry):
    """Make a loop of a server whose options are the defaults."""
    return Loop(True, registry, Limits(registry), ThreadedMixIn())


@pytest.fixture
def a_loop():
    """Make a loop whose door is open for a listener; yield both, and the address."""
    registry = HandlerRegistry()
    with socket.create_server(LOOPBACK) as listener:
        made = make_loop(registry)
        made.period = Period()
        made.open(listener.fileno)
        yield made, listener
        with registry.lock:
            made.stop_locked()
        made.detach()


def test_idle_thread_whose_accept_brought_nobody_waits_for_the_next_client(a_loop):
    """If the connection was gone, the thread does not end."""
    made, listener = a_loop
    answers = [None, None, "a client"]

    def accept(period):
        assert period is made.period
        listener.accept()[0].close()
        return answers.pop(0)

    with connect(listener.getsockname()), connect(listener.getsockname()), connect(listener.getsockname()):
        assert made.next_client(accept, lambda: False) == "a client"


def test_idle_thread_ends_if_there_are_enough_or_the_loop_has_ended(a_loop):
    """It accepts nobody then, whoever is waiting to be accepted."""
    made, listener = a_loop
    with connect(listener.getsockname()):
        assert made.next_client(None, lambda: True) is None
        with made._registry.lock:
            made.stop_locked()
        assert made.next_client(None, lambda: False) is None


@pytest.mark.parametrize("error", [OSError("a broken listener"), SystemExit(), KeyboardInterrupt()])
def test_error_that_an_idle_thread_meets_at_the_door_is_raised_in_the_loop(a_loop, error):
    """It ends the loop, and so the waits of all other idle threads."""
    made, listener = a_loop

    def accept(period):
        raise error

    with connect(listener.getsockname()):
        assert made.next_client(accept, lambda: False) is None
    with pytest.raises(type(error)) as raised:
        made.raise_error()
    assert raised.value is error and made.stopped and made.wait(None) is False


def test_door_is_closed_by_the_last_of_those_that_wait_at_it():
    """The loop may end first, while idle threads still have to notice."""
    registry = HandlerRegistry()
    with socket.create_server(LOOPBACK) as listener:
        made = make_loop(registry)
        made.open(listener.fileno)
        made.attach()  # an idle thread
        with registry.lock:
            made.stop_locked()
        made.detach()  # the loop
        assert made.wait(None) is False
        made.detach()  # the idle thread
        with pytest.raises(ValueError, match="closed"):
            made.wait(None)


def test_loop_that_is_stopped_before_its_door_is_open_finds_it_shut():
    """The stop had no door to shut, and is not missed."""
    registry = HandlerRegistry()
    with socket.create_server(LOOPBACK) as listener, connect(listener.getsockname()):
        made = make_loop(registry)
        with registry.lock:
            made.stop_locked()
        made.open(listener.fileno)
        assert made.wait(None) is False
        made.detach()


def test_process_that_returns_in_a_handler_accepts_nobody():
    """A handler thread of a forked process leaves its parent's clients to that."""
    loop = make_loop(HandlerRegistry())
    loop._process = -1  # another one's
    assert loop.next_client(pytest.fail, pytest.fail) is None
