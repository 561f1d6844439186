"""Refused clients: each reads its reply, and nobody waits for it but a thread of its own."""
from __future__ import annotations

import errno
import logging
import selectors
import socket
import ssl
import struct
import threading
from contextlib import ExitStack, contextmanager

import pytest

from threaded_echo import ThreadedTCPServer, stopping
from threaded_echo.accepting import farewells
from threaded_echo.accepting.farewells import Farewell, Farewells, can_reply
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry
from threaded_echo.clients.threads import HandlerThreads
from threaded_echo.transport.waker import Waker

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, connect, receive, receive_all, subclass, together, until, wait_until


def test_reply_is_for_streams_that_are_not_tls():
    """A datagram's request is a tuple, and a program's get_request may return anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    theirs, ours = socket.socketpair()
    with theirs, ours, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert can_reply(ours)
        assert not (can_reply(datagrams) or can_reply((b"data", datagrams)) or can_reply(object()))
        with context.wrap_socket(ours, do_handshake_on_connect=False) as wrapped:
            assert not can_reply(wrapped)


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


def test_stop_closes_the_refused_clients_and_joins_the_thread(serve, monkeypatch):
    """It does not wait for their time to be up; in the next period there is a new thread."""
    monkeypatch.setattr(farewells, "LINGER", 3600)
    with full(serve) as server, connect(server) as client, connect(server) as other:
        assert receive_all(client) == receive_all(other) == b"full"
        until(lambda: its_thread(server))
        thread = its_thread(server)
        server.shutdown()
        assert not thread.is_alive() and its_thread(server) is None
        with pytest.raises(OSError):
            while True:
                client.sendall(b"x")
        server.start()
        with connect(server) as first, connect(server) as second:
            first.sendall(b"x")
            assert receive(first, 1) == b"x"
            assert receive_all(second) == b"full"
            assert server.stop().clean


def test_thread_that_a_hook_holds_up_is_reported_by_the_stop(serve, monkeypatch):
    """It is a survivor as any other thread that the stop cannot end."""
    monkeypatch.setattr(stopping, "_TAIL", 0.01)
    entered, release, held_up = threading.Event(), threading.Event(), []

    def shutdown_request(self, request):
        thread = threading.current_thread()
        if isinstance(thread, farewells.FarewellThread):
            held_up.append(thread)
            entered.set()
            wait_until(release)
        ThreadedTCPServer.shutdown_request(self, request)

    server_class = subclass(shutdown_request=shutdown_request, drain_timeout=0, force_timeout=0)
    with full(serve, server_class) as server, connect(server) as client:
        assert receive_all(client) == b"full"
        until(lambda: its_thread(server))  # or the client could be over before it is waited for
        client.close()
        wait_until(entered)
        report = server.stop()
        assert held_up[0] in [survivor.thread for survivor in report.survivors]
        release.set()
        held_up[0].join(GUARD)
    assert server.stop(GUARD, GUARD).clean


def test_what_a_refused_client_has_sent_does_not_reset_it_in_a_stop(serve):
    """What it has sent is read before its connection is closed."""
    made = Farewells(HandlerThreads(HandlerRegistry()))
    with socket.create_server(LOOPBACK) as listener, connect(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        theirs.sendall(b"unread")
        farewell = Farewell(ours, b"full", ours.close)
        farewell.send()
        thread = made.thread = farewells.FarewellThread(made)
        with made.lock:
            thread.add_locked(farewell)
            thread.end_locked()
        thread.run()
        assert receive_all(theirs) == b"full"


def test_client_that_is_refused_in_its_own_thread_reads_the_reply(serve):
    """Behind a proxy its address comes late; the thread then leaves its connection to the one that waits for it."""
    closed = []

    class Server(ThreadedTCPServer):
        """Learns the addresses in the handlers' threads."""

        def _threaded_enter(self, client, request):
            """Learn it, and admit the client, or not."""
            client.address = ("10.0.0.1", client.number)
            return self._threaded_admit_again(client) and super()._threaded_enter(client, request)

        def shutdown_request(self, request):
            """Count."""
            closed.append(request)
            super().shutdown_request(request)

    server = serve(Echo, Server, max_clients_per_host=1, limit_reply=b"full")
    with connect(server) as first:
        first.sendall(b"x")
        assert receive(first, 1) == b"x"
        with connect(server) as client:
            client.sendall(b"unread")
            assert receive_all(client) == b"full"
            client.sendall(b"more")
            client.shutdown(socket.SHUT_WR)
            until(lambda: closed)
        assert len(server.clients) == 1
        assert server.stop().clean and len(closed) == 2
    assert server.stats().refused_by == {"host limit": 1}


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
