"""A host's share of the clients."""
from __future__ import annotations

import socket
from contextlib import ExitStack

from threaded_echo import ThreadedTCPServer, ThreadedUnixStreamServer
from threaded_echo.accepting.hosts import HostCounts
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry
from threaded_echo.transport.hosts import host_of

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, connect, receive, receive_all, running, subclass, until


def from_host(server, host):
    """Connect from another address of the loopback."""
    client = socket.create_connection(server.server_address, GUARD, source_address=(host, 0))
    return client


def say_hello(client):
    """Be served."""
    client.sendall(b"hello")
    assert receive(client, 5) == b"hello"


def leave(client):
    """End the stream, and see the server close."""
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""


def test_client_above_the_share_of_its_host_is_refused(serve):
    """Other hosts get in, and so does this one when one of its clients has left."""
    server = serve(Echo, max_clients_per_host=2, limit_reply=b"enough")
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(2)]
        with connect(server) as third:
            assert receive_all(third) == b"enough"
        for client in (*clients, stack.enter_context(from_host(server, "127.0.0.2"))):
            say_hello(client)
        leave(clients[0])
        say_hello(stack.enter_context(connect(server)))
        stats = server.stats()
        assert (stats.accepted, stats.refused, stats.live, stats.refused_by["host limit"]) == (5, 1, 3, 1)


def test_flood_from_one_host_keeps_no_other_out(serve):
    """All of its clients but one are refused, whatever the number, while another host's client talks."""
    server = serve(Echo, max_clients=3, max_clients_per_host=1)
    with from_host(server, "127.0.0.2") as other, ExitStack() as stack:
        say_hello(other)
        flood = [stack.enter_context(connect(server)) for _ in range(100)]
        for client in flood[1:]:
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass
        say_hello(flood[0])
        say_hello(other)
        assert server.stats().refused_by == {"host limit": 99} and server.stats().peak == 2


def test_share_that_is_assigned_counts_those_who_are_there(serve):
    """When it is taken back, nothing is counted any more."""
    server = serve(Echo)
    limits = server._threaded_state.limits
    with connect(server) as first, connect(server) as second:
        say_hello(first)
        say_hello(second)
        server.max_clients_per_host = 2
        with connect(server) as third:
            assert receive_all(third) == b""
        leave(first)
        with connect(server) as fourth, connect(server) as fifth:
            say_hello(fourth)
            assert receive_all(fifth) == b""
        server.max_clients_per_host = None
        assert not limits._hosts._counts and server._threaded_state.registry.when_left is None
        with connect(server) as sixth, connect(server) as seventh:
            say_hello(sixth)
            say_hello(seventh)
            server.max_clients_per_host = 3
            with connect(server) as eighth:
                assert receive_all(eighth) == b""
    assert server.stats().refused_by == {"host limit": 3}


def test_share_of_a_class_that_is_taken_back_is_not_counted_any_more(serve):
    """It is noticed with the next client, and costs nothing afterwards."""
    server_class = subclass(max_clients_per_host=5)
    server = serve(Echo, server_class)
    with connect(server) as first:
        say_hello(first)
        del server_class.max_clients_per_host
        server._threaded_state.limits._spare.left = 0  # as after so many clients
        with connect(server) as second:
            say_hello(second)
            assert not server._threaded_state.limits._hosts._counts
            assert server._threaded_state.registry.when_left is None


def test_client_of_a_server_on_a_unix_socket_has_no_share(tmp_path):
    """Everybody there is on this host."""
    with ThreadedUnixStreamServer(str(tmp_path / "socket"), Echo, max_clients_per_host=1).start() as server:
        with connect(server) as first, connect(server) as second:
            say_hello(first)
            say_hello(second)


def test_client_whose_address_becomes_known_later_is_counted_there(serve):
    """Behind a proxy, it is the address from its header: the same function counts it anew, in the handler's thread."""
    admitted = []

    class Handler(Echo):
        """Learns its client's address."""

        def handle(self):
            """Say which, and be admitted again."""
            [client] = [client for client in self.server.clients.values() if client.address == self.client_address]
            client.address = (self.request.recv(100).decode(), 1)
            admitted.append(self.server._threaded_admit_again(client))
            if admitted[-1]:
                self.request.sendall(b"welcome")
                super().handle()

    server = serve(Handler, max_clients_per_host=2, limit_reply=b"enough")
    counts = server._threaded_state.limits._hosts._counts
    with connect(server) as first, connect(server) as second:
        for client in (first, second):
            client.sendall(b"10.0.0.1")
            assert receive(client, 7) == b"welcome"
        with connect(server) as third:
            third.sendall(b"10.0.0.1")
            assert receive_all(third) == b"enough"
        leave(first)
        with connect(server) as fourth:
            fourth.sendall(b"10.0.0.1")
            assert receive(fourth, 7) == b"welcome"
            assert list(counts.values()) == [2]
    until(lambda: not counts)
    assert sorted(admitted) == [False, True, True, True]
    server.stop()
    assert server.stats().refused_by == {"host limit": 1} and server.stats().finished == 3


def test_client_that_leaves_as_it_is_counted_anew_is_not_counted():
    """Another thread may close its connection meanwhile."""
    with ThreadedTCPServer(LOOPBACK, Echo, max_clients_per_host=1) as server:
        state = server._threaded_state
        limits, registry = state.limits, state.registry
        limits.look_again(server)
        client = limits.admit(object(), ("10.0.0.1", 1), Period())
        count = limits._hosts.count_locked

        def count_late(*arguments):
            client._end()
            count(*arguments)

        limits._hosts.count_locked = count_late
        assert limits.admit_again(server, client) and not limits._hosts._counts
        registry.elsewhere.append(client)
        registry.live.clear()
        assert limits.admit_again(server, client) and not limits._hosts._counts
        server.max_clients_per_host = None
        assert limits.admit_again(server, client)


def test_client_that_leaves_while_all_are_counted_is_taken_off_again():
    """It is listed still, and waits for the lock to say that it has left."""
    registry = HandlerRegistry()
    counts = HostCounts(registry)
    client = registry.add(object(), ("10.0.0.1", 1), Period())
    registry.when_left = lambda left: (registry.lock.acquire(), counts.uncount_locked(left), registry.lock.release())
    with registry.lock:
        counts.is_counting = True
        with running(registry.remove, client, registry.elsewhere):
            until(lambda: not registry.live)
            counts.count_locked(client, host_of(client.address))
            registry.lock.release()
        registry.lock.acquire()
    assert not counts._counts and not counts._hosts


def test_server_with_threads_of_its_own_takes_its_clients_off(serve):
    """Whatever way a client leaves by."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        def process(self, request, client_address):
            pool.submit(self.process_request_thread, request, client_address)

        server = serve(Echo, subclass(process_request=process), max_clients_per_host=1)
        for _ in range(3):
            with connect(server) as client:
                say_hello(client)
                leave(client)
        server.stop()
    assert server.stats().refused == 0 and not server._threaded_state.limits._hosts._counts
