"""Who is let in: clients that wait for room, the suspended server, and options that are assigned while it serves."""
from __future__ import annotations

import random
import socket
import threading
from contextlib import ExitStack

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import loop
from threaded_echo.accepting.door import EpollDoor, PollDoor

from ..conftest import LOOPBACK
from ..overrides import ABOVE_ONLY, OwnAccept, OwnThreadBodyThatClosesByItself, OwnVerify
from ..tools import Echo, ask, connect, receive, receive_all, running, subclass, together, until, wait_until
from .test_door import KINDS


class CountingDoor:
    """A door that counts what happens at it."""

    def __init__(self, door):
        self.door = door
        self.passes = 0
        self.waits = 0
        self.reopened = 0

    def wait(self, timeout=None):
        """Count the threads that come, and those that get through."""
        self.waits += 1
        through = self.door.wait(timeout)
        self.passes += through
        return through

    def reopen(self, listener):
        """Count."""
        self.reopened += 1
        self.door.reopen(listener)

    def __getattr__(self, name):
        return getattr(self.door, name)


@pytest.fixture(params=KINDS[:2])
def doors(request, monkeypatch):
    """Have the loops make counting doors of each kind; list them."""
    made = []
    kind = EpollDoor if request.param == "epoll" else PollDoor

    def make(listener, others=()):
        made.append(CountingDoor(kind(listener)))
        return made[-1]

    monkeypatch.setattr(loop, "make_door", make)
    return made


def is_held(server):
    """Return whether the server's door is held."""
    return bool(server._threaded_state.limits._held)


def say_hello(client):
    """Be served: a client of an echo server gets its message back."""
    client.sendall(b"hello")
    assert receive(client, 5) == b"hello"


def leave(client):
    """End the stream, and see the server close."""
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""


def adds_up(server):
    """Return whether a snapshot of the counts adds up."""
    stats = server.stats()
    return (stats.accepted == stats.live + stats.finished + stats.refused
            and stats.refused == sum(stats.refused_by.values()))


def test_client_above_the_limit_waits_until_another_leaves(serve, doors):
    """While it waits, no thread gets through the door, however many more come."""
    server = serve(Echo, max_clients=2)
    [door] = doors
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(2)]
        for client in clients:
            say_hello(client)
        until(lambda: is_held(server))
        passes, reopened = door.passes, door.reopened
        waiting = [stack.enter_context(connect(server)) for _ in range(5)]
        assert (door.passes, door.reopened, server.stats().accepted) == (passes, reopened, 2)
        leave(clients[0])
        say_hello(waiting[0])
        assert server.stats().live == 2 and (door.passes, door.reopened) == (passes + 1, reopened + 1)
    assert server.stop().clean
    assert server.stats().peak == 2


def test_everybody_is_served_if_one_at_a_time_is(serve, doors):
    """Fifty clients wait in the queue of a server for one; each comes in as one before it leaves."""
    server = serve(Echo, max_clients=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(50)]
        for client in clients:
            say_hello(client)
            leave(client)
    assert (server.stats().accepted, server.stats().peak) == (50, 1)


def test_clients_that_come_from_many_threads_never_exceed_the_limit(serve, doors):
    """What each handler sees is at most the limit, and everybody is served."""
    most = 0

    class Handler(Echo):
        """Looks how many there are."""

        def handle(self):
            """Look, and echo."""
            nonlocal most
            most = max(most, self.server.stats().live)
            super().handle()

    server = serve(Handler, max_clients=3)
    assert together(8, lambda: [ask(server) for _ in range(25)]) == [[b"ping\n"] * 25] * 8
    assert most <= 3 and server.stats().peak <= 3 and adds_up(server)


def test_last_client_that_leaves_as_the_door_is_held_lets_the_next_in(serve, doors):
    """It has looked whether anybody waits before the thread at the door could say so."""
    server = serve(Echo, max_clients=1)
    limits = server._threaded_state.limits
    hold = limits._hold_locked

    def hold_late(entrance):
        limits._hold_locked = hold
        [client] = server.clients.values()
        with running(server.shutdown_request, client._connection.request):  # takes no lock, and sees nobody wait
            pass
        assert not server.clients and not is_held(server)
        hold(entrance)

    limits._hold_locked = hold_late
    with connect(server) as first, connect(server) as second:
        assert receive_all(first) == b""
        say_hello(second)


def test_last_client_that_leaves_as_another_is_turned_back_lets_that_in(serve, doors):
    """The thread at the door finds that a limit has been lowered, and holds the door after the client has left."""
    server = serve(Echo)
    with connect(server) as first:
        say_hello(first)
        server.max_clients = 1
        limits = server._threaded_state.limits
        hold = limits._hold_locked

        def hold_late(entrance):
            limits._hold_locked = hold
            first.shutdown(socket.SHUT_WR)
            until(lambda: not server.clients)  # it takes no lock, and sees nobody wait
            hold(entrance)

        limits._hold_locked = hold_late
        with connect(server) as second:
            say_hello(second)


def test_limit_that_is_assigned_in_the_middle_of_a_look_holds_for_that_client(serve):
    """What the thread at the door has read before is older."""
    class Server(ThreadedTCPServer):
        """Assigns one option while another one is read."""

        assigns = False

        @property
        def at_limit(self):
            """Assign, once."""
            if self.assigns:
                self.assigns = False
                self.max_clients = 1
            return "wait"

    server = serve(Echo, Server)
    with connect(server) as first:
        say_hello(first)
        server.assigns = True
        with connect(server) as second:
            until(lambda: is_held(server))
            assert len(server.clients) == 1
            leave(first)
            say_hello(second)
    assert server.stats().peak == 1


@pytest.mark.parametrize("hook", [*ABOVE_ONLY, OwnAccept, OwnVerify, OwnThreadBodyThatClosesByItself])
def test_limit_holds_if_a_program_overrides_hooks(hook):
    """With threads of its own, or only the serving thread at the door, or a close that no hook sees."""
    server = type("Server", (hook, ThreadedTCPServer), {"max_clients": 1})(LOOPBACK, Echo)
    with server.start(), ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        for client in clients:
            say_hello(client)
            assert server.stats().live == 1
            leave(client)
    assert (server.stats().peak, server.stats().accepted) == (1, 4)


@pytest.mark.parametrize("options, reason", [({"max_clients_per_host": 1}, "host limit"),
                                             ({"max_clients": 1, "at_limit": "refuse"}, "limit")])
def test_loop_of_ones_own_refuses_whom_the_limits_refuse(options, reason):
    """It calls what socketserver's loop calls, and nobody has looked whether there is room."""
    with ThreadedTCPServer(LOOPBACK, Echo, **options) as server, connect(server) as first, connect(server) as second:
        server._handle_request_noblock()
        say_hello(first)
        server._handle_request_noblock()
        assert receive_all(second) == b"" and server.stats().refused_by == {reason: 1}


def test_handle_request_waits_for_room():
    """A loop of the program's own returns when a client has been let in, which is when another has left."""
    with ThreadedTCPServer(LOOPBACK, Echo, max_clients=1) as server, connect(server) as first, connect(server) as next:
        server.handle_request()
        say_hello(first)
        with running(server.handle_request):
            until(lambda: is_held(server))
            assert server.stats().accepted == 1
            leave(first)
        say_hello(next)


def test_handle_request_without_room_obeys_its_time_out():
    """The connection stays in the queue."""
    calls = []
    server_class = subclass(handle_timeout=lambda self: calls.append(1))
    with server_class(LOOPBACK, Echo, max_clients=1) as server, connect(server) as first, connect(server) as second:
        server.handle_request()
        server.timeout = 0.01
        server.handle_request()
        assert calls == [1] and not is_held(server)
        leave(first)
        server.handle_request()
        say_hello(second)


def test_several_loops_together_never_exceed_the_limit():
    """Eight threads call handle_request at once, for one place; each of the clients gets it in turn."""
    with ThreadedTCPServer(LOOPBACK, Echo, max_clients=1) as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(8)]
        for _ in range(8):
            stack.enter_context(running(server.handle_request))
        for client in clients:
            say_hello(client)
            assert server.stats().live == 1
            leave(client)
    assert (server.stats().accepted, server.stats().peak) == (8, 1)


def test_loop_that_has_seen_room_keeps_it_from_another(monkeypatch):
    """Between its look and its accept, a second loop finds none; it does once the first brings nobody."""
    looked, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Accepts late, and then nobody."""

        def get_request(self):
            """Wait, and fail the first time."""
            if not looked.is_set():
                looked.set()
                wait_until(release)
                raise ConnectionAbortedError
            return super().get_request()

    with Server(LOOPBACK, Echo, max_clients=1) as server, connect(server) as client:
        with running(server.handle_request):
            wait_until(looked)
            with running(server.handle_request):
                until(lambda: is_held(server))
                release.set()
        say_hello(client)


def test_loop_that_ends_gives_its_room_back():
    """An exception of a hook ends a handle_request that has seen room, and has not reopened its door."""
    looked, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Fails in another way than an accept can."""

        def get_request(self):
            """Wait, and fail the first time."""
            if not looked.is_set():
                looked.set()
                wait_until(release)
                raise ZeroDivisionError
            return super().get_request()

    def fail():
        with pytest.raises(ZeroDivisionError):
            server.handle_request()

    with Server(LOOPBACK, Echo, max_clients=1) as server, connect(server) as client:
        with running(fail):
            wait_until(looked)
            with running(server.handle_request):
                until(lambda: is_held(server))
                release.set()
        say_hello(client)


def test_stop_ends_a_loop_whose_door_is_held(serve, doors):
    """Those who wait are not accepted any more, and the server can serve again after a shutdown."""
    server = serve(Echo, max_clients=1)
    with connect(server) as first, connect(server):
        say_hello(first)
        until(lambda: is_held(server))
        server.shutdown()
        assert not is_held(server) and server.stats().accepted == 1 and not server.clients
        server.start()
        until(lambda: server.stats().accepted == 2)
        assert server.stop().clean


def test_raised_limit_lets_those_in_who_wait(serve, doors):
    """Nobody has to leave for it; None lets everybody in."""
    server = serve(Echo, max_clients=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(5)]
        say_hello(clients[0])
        until(lambda: is_held(server))
        server.max_clients = 2
        say_hello(clients[1])
        until(lambda: is_held(server))
        assert server.stats().live == 2
        server.max_clients = None
        for client in clients:
            say_hello(client)
        server.max_clients = 1  # and nobody is disconnected
        until(lambda: len(server.clients) == 5)
        with connect(server) as late:
            for client in clients:
                assert server.stats().accepted == 5
                leave(client)
            say_hello(late)


def test_deleted_limit_is_that_of_the_class(serve):
    """As with any attribute; a second time it is an AttributeError."""
    server = serve(Echo, subclass(max_clients=2))
    server.max_clients = 1
    with connect(server) as first, connect(server) as second:
        say_hello(first)
        until(lambda: is_held(server))
        del server.max_clients
        say_hello(second)
        assert server.max_clients == 2
        with pytest.raises(AttributeError, match="max_clients"):
            del server.max_clients


def test_waiting_clients_are_refused_if_that_is_assigned(serve):
    """Those who have waited so far get the reply."""
    server = serve(Echo, max_clients=1, limit_reply=b"full")
    with connect(server) as first, connect(server) as second:
        say_hello(first)
        until(lambda: is_held(server))
        server.at_limit = "refuse"
        assert receive_all(second) == b"full"
        server.at_limit = "wait"
        with connect(server) as third:
            until(lambda: is_held(server))
            leave(first)
            say_hello(third)


def test_limit_that_a_class_computes_is_asked_for_each_client(serve):
    """A property of the program's is not assigned; the next client, or the next that leaves, finds what it is."""
    limit = [1]
    server = serve(Echo, subclass(max_clients=property(lambda self: limit[0])))
    with connect(server) as first, connect(server) as second, connect(server) as third:
        say_hello(first)
        until(lambda: is_held(server))
        limit[0] = 2
        with connect(server) as fourth:
            leave(first)
            say_hello(second)
            say_hello(third)
            assert server.stats().accepted == 3
            limit[0] = None
            leave(second)
            say_hello(fourth)


def test_limit_assigned_to_a_class_is_noticed(serve):
    """Not at once, if there was none before: after as many clients as may be accepted without a look."""
    server_class = subclass()
    server = serve(Echo, server_class)
    server_class.max_clients = 1
    server._threaded_state.limits.allowance.left = 1
    with connect(server) as first, connect(server) as second:
        say_hello(first)
        until(lambda: is_held(server))
        leave(first)
        say_hello(second)


def test_limit_assigned_to_a_class_between_two_periods_holds_for_the_second(serve):
    """However many clients were allowed in without a look before."""
    server_class = subclass()
    server = serve(Echo, server_class)
    assert ask(server) == b"ping\n"
    server.shutdown()
    server_class.max_clients = 1
    server.start()
    with connect(server) as first, connect(server):
        say_hello(first)
        until(lambda: is_held(server))


def test_property_that_limits_nothing_is_asked_for_each_client(serve):
    """What it will return next, nothing tells."""
    limit = [None]
    server = serve(Echo, subclass(max_clients=property(lambda self: limit[0])))
    with connect(server) as first, connect(server) as second, connect(server) as third:
        say_hello(first)
        say_hello(second)
        until(lambda: server.stats().accepted == 3)
        limit[0] = 3
        with connect(server) as fourth:
            until(lambda: is_held(server))
            leave(third)
            say_hello(fourth)


def test_wrong_value_is_refused_where_it_is_assigned(serve):
    """The option stays as it was."""
    server = serve(Echo, max_clients=2)
    for name, value in (("max_clients", 0), ("at_limit", "panic"), ("limit_reply", "text")):
        with pytest.raises((ValueError, TypeError), match=name):
            setattr(server, name, value)
    assert (server.max_clients, server.at_limit, server.limit_reply) == (2, "wait", b"")
    assert (ThreadedTCPServer.max_clients, ThreadedTCPServer.reserve_descriptors) == (None, 32)


def test_assignment_in_the_middle_of_a_look_is_not_lost(serve, monkeypatch):
    """The thread at the door has read the option as it was before."""
    server = serve(Echo, max_clients=5)
    limits = server._threaded_state.limits
    with connect(server) as first:
        say_hello(first)
        spare = limits._reserve.spare

        def assign(*arguments):
            monkeypatch.undo()
            server.max_clients = 2
            return spare(*arguments)

        server.max_clients = None
        monkeypatch.setattr(limits._reserve, "spare", assign)
        with connect(server) as second, connect(server) as third:
            say_hello(second)
            until(lambda: is_held(server))
            leave(first)
            say_hello(third)


def test_suspended_server_serves_its_clients_and_lets_nobody_in(serve, doors):
    """One thread gets through for the first who comes, and none for all the others until it is resumed."""
    server = serve(Echo)
    [door] = doors
    with connect(server) as client, ExitStack() as stack:
        say_hello(client)
        server.suspend()
        passes = door.passes
        waiting = [stack.enter_context(connect(server)) for _ in range(5)]
        until(lambda: is_held(server))
        say_hello(client)
        assert door.passes == passes + 1 and server.stats().accepted == 1
        server.suspend()
        server.resume()
        for other in waiting:
            say_hello(other)
        server.resume()


def test_suspended_server_starts_stops_and_stays_suspended(serve):
    """What an operator has said holds until an operator takes it back."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.suspend()
    with server.start(), connect(server) as client:
        until(lambda: is_held(server))
        server.shutdown()
        server.start()
        until(lambda: is_held(server))
        assert server.stats().accepted == 0
        server.resume()
        say_hello(client)
        server.suspend()
        with connect(server):
            until(lambda: is_held(server))
            assert server.stop().clean
    assert server.stats().accepted == 1


def test_suspended_server_is_resumed_by_a_handler(serve):
    """A handler may suspend as well, which does not touch its own client."""
    class Handler(Echo):
        """Obeys."""

        def handle(self):
            """Suspend, then resume when told to."""
            self.server.suspend()
            self.request.sendall(b"suspended")
            self.request.recv(1)
            self.server.resume()

    server = serve(Handler)
    with connect(server) as first:
        assert receive(first, 9) == b"suspended"
        with connect(server) as second:
            until(lambda: is_held(server))
            first.sendall(b"x")
            assert receive(second, 9) == b"suspended"


def test_suspended_server_whose_listener_the_program_closes_ends_its_loop(serve):
    """As when it is closed at any other time: at the next look of the thread at the door, or of who resumes it."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.suspend()
    with server, running(server.serve_forever), connect(server):
        until(lambda: is_held(server))
        server.socket.close()
        server.resume()


def test_broken_listener_that_is_found_by_who_resumes_ends_the_loop_loudly(serve, monkeypatch):
    """It is not the caller's error."""
    seen = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.set())
    server = serve(Echo)
    server.suspend()
    with connect(server):
        until(lambda: is_held(server))
        [its_loop] = server._threaded_state.loops.running
        monkeypatch.setattr(its_loop, "_fileno", lambda: 1 // 0)
        server.resume()
        wait_until(seen)
        monkeypatch.undo()


def test_suspend_during_a_flood_loses_nobody(serve, doors):
    """Who comes meanwhile waits, and is served later."""
    server = serve(Echo)
    ends = threading.Event()

    def toggle():
        while not ends.is_set():
            server.suspend()
            server.resume()

    with running(toggle):
        answers = together(6, lambda: [ask(server) for _ in range(30)])
        ends.set()
    assert answers == [[b"ping\n"] * 30] * 6
    assert server.stop().clean and adds_up(server)


def test_many_threads_that_change_the_limits_at_random_lose_nobody(serve, doors):
    """In the end the door is open, everybody has been served, and the counts add up at every moment."""
    server = serve(Echo, max_clients=1)
    chance = random.Random(1)
    ends = threading.Event()

    def change():
        while not ends.is_set():
            chance.choice((server.suspend, server.resume, lambda: setattr(server, "max_clients", None),
                           lambda: setattr(server, "max_clients", chance.randint(1, 4))))()
            server.resume()
            assert adds_up(server)

    with running(change), running(change), running(change):
        answers = together(4, lambda: [ask(server) for _ in range(30)])
        ends.set()
    assert answers == [[b"ping\n"] * 30] * 4
    server.suspend()
    server.resume()
    assert ask(server) == b"ping\n"
    limits = server._threaded_state.limits
    assert not (limits._held or limits._entering) or server.max_clients is not None
    assert server.stop().clean and not (limits._held or limits._entering)


def test_server_that_nothing_limits_takes_no_lock_for_it(serve, monkeypatch):
    """It looks at its limits once in so many clients, and a client that leaves tells nobody."""
    server = serve(Echo)
    assert ask(server) == b"ping\n"
    limits = server._threaded_state.limits
    left = limits.allowance.left
    assert left > 10
    for name in ("look", "lets_next", "admit", "release", "_left"):
        monkeypatch.setattr(limits, name, pytest.fail)
    for _ in range(5):
        assert ask(server) == b"ping\n"
    assert limits.allowance.left <= left - 5 and server._threaded_state.registry.when_left is None
    monkeypatch.undo()


def test_door_of_a_loop_that_has_ended_is_not_held(serve):
    """A thread may still be at it as the stop comes."""
    server = serve(Echo, max_clients=1)
    with connect(server) as client:
        say_hello(client)
        limits = server._threaded_state.limits
        [its_loop] = server._threaded_state.loops.running
        until(lambda: is_held(server))
        with server._threaded_state.registry.lock:
            its_loop.stop_locked()
        assert not is_held(server)
        assert its_loop.limits.lets_next(its_loop) is limits.look(its_loop, server) is False
        assert not is_held(server)


def test_loop_that_has_ended_keeps_no_room(serve):
    """A thread that is still at its door finds room for one more; the loop that serves next has that room."""
    server = serve(Echo, max_clients=1)
    [its_loop] = server._threaded_state.loops.running
    its_loop.attach()
    server.shutdown()
    its_loop.reopen()
    assert its_loop.limits.look(its_loop, server), "whoever comes in is woken"
    its_loop.detach()
    server.start()
    assert ask(server) == b"ping\n"
