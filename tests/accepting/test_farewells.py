"""Refused clients: each reads its reply, and nobody waits for it but a thread of its own."""
from __future__ import annotations

import errno
import logging
import selectors
import socket
import struct
import threading
from contextlib import ExitStack, contextmanager

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import farewells
from threaded_echo.accepting.farewells import Farewell, Farewells
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry
from threaded_echo.clients.threads import HandlerThreads
from threaded_echo.transport.waker import Waker

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, connect, receive, receive_all, subclass, together, until, wait_until


@contextmanager
def full(serve, server_class=ThreadedTCPServer, **options):
    """Serve one client at a time, with its place taken; yield the server."""
    server = serve(Echo, server_class, max_clients=1, at_limit="refuse", **{"limit_reply": b"full", **options})
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        yield server


def its_thread(server):
    """Return the thread that waits for refused clients."""
    return server._threaded_state.farewells.thread


def test_refused_client_reads_the_reply_although_nobody_has_read_what_it_sent(serve):
    """A close at once would reset the connection, and destroy the reply; the client is in no hurry to read."""
    with full(serve) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n" * 1000)
        until(lambda: server.stats().refused == 1)
        client.sendall(b"more")
        assert receive_all(client) == b"full"
        client.close()
        until(lambda: its_thread(server) is None)
    stats = server.stats()
    assert (stats.accepted, stats.refused, stats.peak, stats.refused_by) == (2, 1, 1, {"limit": 1})


def test_refused_client_is_logged_and_no_hook_hears_of_it(serve, caplog):
    """At INFO, with its number, its address and the reason."""
    caplog.set_level(logging.INFO, "threaded_echo")
    told = []
    server_class = subclass(client_connected=lambda self, client: told.append(client.number),
                            client_disconnected=lambda self, client: told.append(client.number))
    with full(serve, server_class) as server:
        with connect(server) as client:
            address = client.getsockname()
            assert receive_all(client) == b"full"
    server.stop()
    assert f"client 2 refused from 127.0.0.1:{address[1]}: limit" in caplog.messages
    assert told == [1, 1]


def test_log_of_refused_clients_is_bounded(serve, caplog):
    """A flood fills no disk."""
    caplog.set_level(logging.INFO, "threaded_echo")
    with full(serve, logs_per_client=2) as server:
        for _ in range(5):
            with connect(server) as client:
                assert receive_all(client) == b"full"
    server.stop()
    assert len([message for message in caplog.messages if "refused from" in message]) == 2
    assert "3 more refused clients were not logged" in caplog.messages


def test_refused_client_without_a_reply_costs_no_thread(serve, monkeypatch):
    """There is nothing to lose: it is closed at once."""
    monkeypatch.setattr(farewells.Farewells, "add", pytest.fail)
    with full(serve, limit_reply=b"") as server, connect(server) as client:
        assert receive_all(client) == b""


@pytest.mark.parametrize("reply", [b"full", bytearray(b"full"), memoryview(b"full")])
def test_reply_may_be_any_bytes(serve, reply):
    """As for a socket."""
    with full(serve, limit_reply=reply) as server, connect(server) as client:
        assert receive_all(client) == b"full"


def test_reply_that_is_larger_than_the_kernel_takes_at_once_arrives_in_whole(serve):
    """The client has ended its own stream before."""
    reply = b"0123456789" * 2_000_000
    with full(serve, limit_reply=reply) as server, connect(server) as client:
        client.shutdown(socket.SHUT_WR)
        until(lambda: server.stats().refused == 1)
        assert receive_all(client) == reply
        until(lambda: its_thread(server) is None)


def test_refused_client_that_resets_its_connection_is_over_at_once(serve):
    """The thread ends without it."""
    with full(serve) as server, connect(server) as client:
        until(lambda: its_thread(server))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        until(lambda: its_thread(server) is None)


def test_refused_client_that_never_leaves_is_closed_when_its_time_is_up(serve, monkeypatch):
    """It gets a reset for what it sends afterwards."""
    monkeypatch.setattr(farewells, "LINGER", 0.01)
    with full(serve) as server, connect(server) as client:
        assert receive_all(client) == b"full"
        until(lambda: its_thread(server) is None)
        with pytest.raises(OSError):
            while True:
                client.sendall(b"x")


def test_oldest_of_too_many_refused_clients_is_closed(serve, monkeypatch):
    """Those that came later are still waited for."""
    monkeypatch.setattr(farewells, "MOST", 2)
    with full(serve) as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        for client in clients:
            assert receive_all(client) == b"full"
        until(lambda: its_thread(server) and len(its_thread(server)._pending) == 2)
        its_thread(server)._waker.set()
        with pytest.raises(OSError):
            while True:
                clients[0].sendall(b"x")
        for client in clients[2:]:
            client.sendall(b"x")


def test_flood_of_refused_clients_disturbs_nobody(serve):
    """While hundreds come and are refused, the one that is served gets its answers, and one thread waits for them."""
    server = serve(Echo, max_clients=1, at_limit="refuse", limit_reply=b"full")
    ends = threading.Event()

    def flood():
        while not ends.is_set():
            with connect(server) as client:
                client.sendall(b"x")
                assert receive_all(client) == b"full"

    def talk():
        for _ in range(300):
            served.sendall(b"ping")
            assert receive(served, 4) == b"ping"
        ends.set()

    jobs = [flood, flood, flood, talk]
    with connect(server) as served:
        served.sendall(b"x")
        assert receive(served, 1) == b"x"
        together(4, lambda: jobs.pop()())
    stats = server.stats()
    assert (stats.live + stats.finished, stats.peak) == (1, 1) and stats.accepted == 1 + stats.refused


def test_stop_closes_the_refused_clients_and_joins_the_thread(serve):
    """It does not wait for their time to be up; in the next period there is a new thread."""
    with full(serve) as server, connect(server) as client, connect(server) as held:
        assert receive_all(client) == b"full"
        held.setblocking(True)
        until(lambda: its_thread(server))
        thread = its_thread(server)
        assert server.shutdown() is None and not thread.is_alive() and its_thread(server) is None
        with pytest.raises(OSError):
            while True:
                client.sendall(b"x")
        server.start()
        with connect(server) as first, connect(server) as second:
            first.sendall(b"x")
            assert receive(first, 1) == b"x"
            assert receive_all(second) == b"full"
            assert server.stop().clean


def test_client_that_is_refused_in_the_middle_of_a_stop_is_closed_at_once():
    """The stop has ended the thread, and would not find another one."""
    closed = threading.Event()
    theirs, ours = socket.socketpair()
    period = Period()
    period.stop()
    with theirs, ours:
        made = Farewells(HandlerThreads(HandlerRegistry()))
        made.add(Farewell(ours, b"", closed.set), period)
        assert closed.is_set() and made.thread is None


@pytest.mark.parametrize("lacks", ["thread", "selector", "waker"])
def test_refused_client_for_whom_no_thread_is_to_be_had_is_closed_at_once(monkeypatch, lacks):
    """Out of descriptors or threads, it may lose its reply."""
    def fail(*arguments):
        raise OSError(errno.EMFILE, "Too many open files") if lacks != "thread" else RuntimeError("no threads")

    owner, name = {"thread": (threading.Thread, "start"), "selector": (selectors, "DefaultSelector"),
                   "waker": (socket, "socketpair")}[lacks]
    closed = threading.Event()
    theirs, ours = socket.socketpair()
    with theirs, ours:
        made = Farewells(HandlerThreads(HandlerRegistry()))
        monkeypatch.setattr(owner, name, fail)
        made.add(Farewell(ours, b"", closed.set), Period())
        monkeypatch.undo()
    assert closed.is_set() and made.thread is None


def test_oldest_of_those_that_the_thread_has_not_taken_yet_is_closed_if_they_are_too_many(monkeypatch):
    """The thread is busy with a program's hook, so that they could pile up."""
    monkeypatch.setattr(farewells, "MOST", 1)
    made = Farewells(HandlerThreads(HandlerRegistry()))
    entered, release, closed = threading.Event(), threading.Event(), []

    def close_late():
        entered.set()
        wait_until(release)

    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for pair in pairs:
            for one in pair:
                stack.enter_context(one)
        made.add(Farewell(pairs[0][0], b"", close_late), Period())
        pairs[0][1].close()
        wait_until(entered)
        thread = made.thread
        for number in (1, 2, 3):
            made.add(Farewell(pairs[number][0], b"", lambda number=number: closed.append(number)), Period())
        assert closed == [1, 2]
        with made.lock:
            made.end_locked()
        release.set()
        thread.join(GUARD)
        made.end_locked()
    assert closed == [1, 2, 3] and made.thread is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_a_hook_ends_closes_the_others_and_is_replaced():
    """SystemExit in a program's own shutdown_request ends it as it ends any thread."""
    made = Farewells(HandlerThreads(HandlerRegistry()))
    closed = threading.Event()

    def leave():
        raise SystemExit

    with ExitStack() as stack:
        pairs = [[stack.enter_context(one) for one in socket.socketpair()] for _ in range(2)]
        made.add(Farewell(pairs[1][0], b"", closed.set), Period())
        thread = made.thread
        made.add(Farewell(pairs[0][0], b"", leave), Period())
        pairs[0][1].close()
        thread.join(GUARD)
        assert closed.is_set() and made.thread is None


@pytest.mark.parametrize("reply", [b"full", b""])
def test_hook_of_the_program_that_fails_costs_that_client_only(serve, caplog, reply):
    """Its own shutdown_request is what closes, in whichever thread."""
    def shutdown_request(self, request):
        if self.stats().refused and request.fileno() >= 0 and not self._threaded_state.registry.find(request):
            request.close()
            raise ZeroDivisionError
        ThreadedTCPServer.shutdown_request(self, request)

    with full(serve, subclass(shutdown_request=shutdown_request), limit_reply=reply) as server:
        for _ in range(2):
            with connect(server) as client:
                assert receive_all(client) == reply
        until(lambda: len([message for message in caplog.messages if "shutdown_request has failed" in message]) == 2)
    assert server.stop().clean and server.stats().refused_by["limit"] == 2


def test_server_that_will_wrap_its_connections_in_tls_sends_no_reply(serve):
    """It would go out in the clear."""
    with full(serve, subclass(ssl_context=object())) as server, connect(server) as client:
        assert receive_all(client) == b""


def test_handle_request_refuses_and_returns():
    """As if verify_request had said so."""
    with ThreadedTCPServer(LOOPBACK, Echo, max_clients=1, at_limit="refuse", limit_reply=b"full") as server:
        with connect(server) as first, connect(server) as second:
            server.handle_request()
            server.handle_request()
            assert receive_all(second) == b"full" and len(server.clients) == 1
            first.shutdown(socket.SHUT_WR)
            assert receive_all(first) == b""
        assert server.stop().clean
    assert server.stats().refused_by == {"limit": 1}


def test_waker_of_the_thread_is_no_client():
    """It only ends the waiting."""
    made = Farewells(HandlerThreads(HandlerRegistry()))
    closed = threading.Event()
    theirs, ours = socket.socketpair()
    with theirs, ours:
        made.add(Farewell(ours, b"", closed.set), Period())
        thread = made.thread
        assert isinstance(thread._waker, Waker)
        thread._waker.set()
        theirs.close()
        thread.join(GUARD)
    assert closed.is_set()
