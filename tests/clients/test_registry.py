"""The registry: numbers, who is live, and what that costs."""
from __future__ import annotations

import socket
import sys
import threading

import pytest

from threaded_echo import ClientHandler, current_client
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry
from threaded_echo.clients.threads import calling, client_in_hand

from ..tools import Echo, ask, connect, receive_all, running, together


def test_numbers_are_given_once_in_order(serve):
    """They go on after clients have gone: 1, 2, 3."""
    server = serve(Echo)
    for number in (1, 2, 3):
        with connect(server) as client:
            client.sendall(b"x")
            client.recv(1)
            assert list(server.clients) == [number]
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
            assert not server.clients, "who sees the end finds the client gone"


def test_waiting_for_a_client_may_end_in_the_middle_of_an_add():
    """A stop in a signal handler ends whoever waits, while the frame that it has interrupted has the lock."""
    class Interrupted(HandlerRegistry):
        """Has one who waits at the first look, and none at the second."""

        def _arrival(self):
            """Take it away."""
            found, self.waiting = self.waiting, None
            return found

        waiting = None
        arrival = property(_arrival, lambda self, value: None)

    registry = Interrupted()
    registry.waiting = threading.Condition(registry.lock)
    assert registry.add(object(), "nowhere", Period()).number == 1
    assert registry.waiting is None


def test_numbers_are_never_given_twice_by_several_threads():
    """Programs with accept loops of their own may add clients from many threads at once."""
    registry = HandlerRegistry()
    clients = []

    def add():
        for _ in range(200):
            clients.append(registry.add(object(), "nowhere", Period()))

    together(4, add)
    assert sorted(client.number for client in clients) == list(range(1, 801))
    together(4, lambda: [registry.remove(client, registry.elsewhere) for client in clients])
    assert (registry.gone(), registry.live, registry.peak) == (800, {}, 800)


def test_snapshot_is_read_only_and_does_not_change(serve):
    """What was read stays as it was."""
    server = serve(Echo)
    assert not server.clients
    with connect(server) as connection:
        connection.sendall(b"x")
        connection.recv(1)
        snapshot = server.clients
        with pytest.raises(TypeError):
            snapshot[2] = None
    server.stop()
    assert list(snapshot) == [1] and not server.clients


def test_current_client_is_that_of_the_calling_thread(serve):
    """A handler gets its own client; a thread that serves nobody gets None."""
    class Handler(ClientHandler):
        """Tells its number."""

        def process(self, data):
            """Tell, unless it is wrong."""
            client = current_client()
            return b"%d" % client.number if client is self.client else b"no"

    server = serve(Handler)
    assert [ask(server, b"?") for _ in range(3)] == [b"1", b"2", b"3"]
    assert current_client() is None


def test_ten_thousand_clients_are_added_and_removed_like_one():
    """No step looks at the others: the same lines of Python run, on dicts."""
    registry, period = HandlerRegistry(), Period()
    clients = [registry.add(object(), number, period) for number in range(10_000)]

    def steps(work):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()  # a coverage tool's
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(before)
        return count

    assert isinstance(registry.live, dict) and isinstance(registry.closing, dict), "so that no search is in C either"
    removed_with_many = steps(lambda: registry.remove(clients[5_000], registry.elsewhere))
    with_many = steps(lambda: clients.append(registry.add(object(), "nowhere", period)))
    for client in clients:
        registry.remove(client, registry.elsewhere)
    assert not registry.live
    registry.totals()
    assert steps(lambda: clients.append(registry.add(object(), "nowhere", period))) == with_many
    assert steps(lambda: registry.remove(clients[-1], registry.elsewhere)) == removed_with_many


def test_client_is_found_by_what_was_wrapped_around_its_request():
    """As by the request that was accepted; afterwards by neither."""
    registry = HandlerRegistry()
    request, wrapper = object(), object()
    client = registry.add(request, "nowhere", Period())
    registry.follow(client, wrapper)
    assert registry.find(request) is registry.find(wrapper) is client
    registry.remove(client, registry.elsewhere)
    assert registry.find(request) is registry.find(wrapper) is None


def test_ten_thousand_refused_clients_are_counted_and_not_kept():
    """Each has a number, and is never listed."""
    registry, period = HandlerRegistry(), Period()
    for number in range(1, 10_001):
        client = registry.refuse(object(), "nowhere", period, "limit")
        assert client.number == number and not registry.live
        client._end()
    assert len(registry.elsewhere) < 1000
    accepted, peak, live, totals = registry.totals()
    assert (accepted, peak, live, totals.refused) == (10_000, 0, [], 10_000)
    assert totals.refused_by == {"limit": 10_000} and not totals.disconnected


def test_thread_that_ends_does_not_wait_for_one_that_adds_up():
    """That one may have been interrupted by a signal handler, which waits for this one; the next to add up does it."""
    registry = HandlerRegistry()
    queue = registry.make_queue()
    client = registry.add(object(), "nowhere", Period())
    with registry._counting:
        with running(lambda: [registry.remove(client, queue), registry.end_queue(queue)]):
            pass
    assert len(registry._queues) == 2
    assert (registry.gone(), len(registry._queues)) == (1, 1)


def test_client_in_the_hands_of_the_serving_thread_is_the_one_without_a_thread():
    """A stop in a signal handler, which has interrupted that thread, must not wait for it."""
    registry = HandlerRegistry()
    assert client_in_hand(registry) is None
    calling.accepts = True
    try:
        assert client_in_hand(registry) is None
        client = registry.add(object(), "nowhere", Period())
        assert client_in_hand(registry) is client
        client._begin(threading.current_thread(), "serving")
        assert client_in_hand(registry) is None
    finally:
        calling.accepts = False
