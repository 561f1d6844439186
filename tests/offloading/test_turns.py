"""Offloaded calls that wait for their turn: order, limits, clients that go, interrupts."""
from __future__ import annotations

import queue
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from threaded_echo import ClientHandler, OffloadRefused, ThreadedTCPServer
from threaded_echo.offloading.calls import _Bell

from .. import calls
from ..conftest import LOOPBACK
from .tools import executor_of, meet_at, meeting_server, occupied, reset, stay, wait_for
from ..tools import GUARD, Gate, ask, connect, receive, receive_all, running, wait_until


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_queued_call_of_a_client_that_has_gone_is_cancelled(kind, meeting):
    """The calls of the others are not."""
    with meeting_server(kind, meeting) as server:
        clients = [connect(server) for _ in range(4)]
        for client in clients[:2]:
            client.sendall(b"\n")
            meeting.welcome()
        for waiting, client in enumerate(clients[2:], 1):
            client.sendall(b"\n")
            wait_for(server, lambda stats: stats.offloads_waiting + stats.offloads_running == 2 + waiting)
        reset(clients[2])
        wait_for(server, lambda stats: stats.offloads_failed == 1)
        for _ in range(2):
            meeting.dismiss()
        meeting.welcome()
        meeting.dismiss()
        for client in (*clients[:2], clients[3]):
            assert receive(client, 3) == b"go\n"
            client.close()
        assert not meeting.is_awaited()


def test_queued_call_of_a_disconnected_client_is_cancelled(meet, meeting):
    """By the program, in place of by the client."""
    server = meet(executor=1)
    with connect(server) as one, connect(server) as other:
        one.sendall(b"\n")
        meeting.welcome()
        other.sendall(b"\n")
        wait_for(server, lambda stats: stats.offloads_waiting == 1)
        server.clients[2].disconnect()
        wait_for(server, lambda stats: stats.offloads_failed == 1)
        meeting.dismiss()
        assert receive(one, 3) == b"go\n"


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_running_call_of_a_client_that_has_gone_goes_on(kind, meeting):
    """There is nobody who could end it, and its place is free once it is done."""
    with meeting_server(kind, meeting) as server:
        client = connect(server)
        client.sendall(b"\n")
        meeting.welcome()
        reset(client)
        wait_for(server, lambda stats: all(client.is_lost() for client in server.clients.values()))
        meeting.dismiss()
        wait_for(server, lambda stats: stats.offloads_done == 1)


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_handler_that_has_closed_its_connection_can_offload(kind):
    """Its descriptor's number is another's by then."""
    results: queue.SimpleQueue[int] = queue.SimpleQueue()

    class Handler(ClientHandler):
        """Says good-bye first."""

        def handle(self):
            """Close, and compute."""
            self.request.close()
            results.put(self.offload(calls.square, 5))

    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, Handler, executor=executor).start() as server:
        for _ in range(3):
            assert ask(server, b"") == b""
            assert results.get(timeout=GUARD) == 25


def test_half_closed_client_gets_its_answer(meet, meeting):
    """It has sent all that it wants to, and waits."""
    server = meet(executor=1)
    with connect(server) as one, connect(server) as other:
        for client in (one, other):
            client.sendall(b"\n")
            client.shutdown(socket.SHUT_WR)
        for client in (one, other):
            meeting.welcome()
            meeting.dismiss()
        assert receive_all(one) == receive_all(other) == b"go\n"


def test_calls_begin_in_the_order_in_which_they_came(meet, meeting):
    """The first come is the first served."""
    server = meet(executor=1)
    clients = [connect(server) for _ in range(4)]
    for number, client in enumerate(clients):
        client.sendall(b"\n")
        wait_for(server, lambda stats: stats.offloads_running + stats.offloads_waiting == number + 1)
    for number in range(4):
        meeting.welcome()
        meeting.dismiss(b"%d" % number)
    for number, client in enumerate(clients):
        assert receive(client, 2) == b"%d\n" % number
        client.close()


@pytest.mark.parametrize("kind", ["inline", "workers", "threads"])
def test_limit_makes_calls_wait(kind, meeting):
    """No more than so many run, wherever they do."""
    with meeting_server(kind, meeting, max_offloads=1) as server:
        with connect(server) as one, connect(server) as other:
            one.sendall(b"\n")
            meeting.welcome()
            other.sendall(b"\n")
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            assert not meeting.is_awaited()
            meeting.dismiss()
            meeting.welcome()
            meeting.dismiss()
            assert receive(one, 3) == receive(other, 3) == b"go\n"


@pytest.mark.parametrize("kind", ["inline", "workers", "threads"])
def test_limit_can_refuse_calls(kind, meeting):
    """Those that wait for a worker count as well; the client stays, and may try again."""
    handler = meet_at(meeting)
    with executor_of(kind) as executor:
        server = ThreadedTCPServer(LOOPBACK, handler, executor=executor, max_offloads=3, at_offload_limit="refuse")
        with server.start():
            clients = [connect(server) for _ in range(4)]
            for number, client in enumerate(clients[:3], 1):
                client.sendall(b"\n")
                wait_for(server, lambda stats: stats.offloads_running + stats.offloads_waiting == number)
            clients[3].sendall(b"\n")
            assert receive(clients[3], 15) == b"OffloadRefused\n"
            assert server.stats().offloads_failed == 1
            for client in clients[:3]:
                meeting.welcome()
                meeting.dismiss()
            for client in clients[:3]:
                assert receive(client, 3) == b"go\n"
            clients[3].sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(clients[3], 3) == b"go\n"
            for client in clients:
                client.close()


def test_two_places_that_come_free_at_once_are_both_taken(serve, monkeypatch):
    """Though the same call was rung for both of them."""
    gates = [Gate() for _ in range(4)]
    server = serve(ClientHandler, max_offloads=2)
    woken = threading.Event()

    def wait_late(bell, client):
        """Stand for a thread that is slow to wake up."""
        here = wait(bell, client)
        wait_until(woken)
        return here

    wait = _Bell.wait
    monkeypatch.setattr(_Bell, "wait", wait_late)
    with ExitStack() as stack:
        threads = [stack.enter_context(running(server.offload, stay, gate)) for gate in gates[:2]]
        for gate in gates[:2]:
            wait_until(gate.entered)
        for number, gate in enumerate(gates[2:], 1):
            stack.enter_context(running(server.offload, stay, gate))
            wait_for(server, lambda stats: stats.offloads_waiting == number)
        for gate, thread in zip(gates[:2], threads, strict=True):
            gate.release.set()
            thread.join(GUARD)
        woken.set()
        for gate in gates[2:]:
            wait_until(gate.entered)
        for gate in gates[2:]:
            gate.release.set()


def test_call_that_is_rung_for_nothing_waits_on(serve):
    """What has rung it may have been interrupted in the middle."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)

    with occupied(server, gate):
        with running(server.offload, calls.square, 2):
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            server._threaded_state.offloads._queue[0].bell.ring()
            gate.release.set()
    assert server.stats().offloads_done == 2


def test_refusal_names_the_limit(meet, meeting):
    """In its message."""
    server = meet(max_offloads=1, at_offload_limit="refuse")
    with connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        with pytest.raises(OffloadRefused, match="no more than 1 offloaded"):
            server.offload(calls.square, 1)
        meeting.dismiss()


def test_place_that_comes_free_while_the_bell_is_made_is_taken(serve, monkeypatch):
    """Nobody would ring that bell."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)

    def make_late() -> _Bell:
        """Let the place come free first."""
        gate.release.set()
        thread.join(GUARD)
        return _Bell()

    with occupied(server, gate) as thread:
        monkeypatch.setattr("threaded_echo.offloading.calls._Bell", make_late)
        assert server.offload(calls.square, 3) == 9


def test_calls_within_calls_do_not_wait_for_their_own_place(serve, meeting):
    """The thread has one; who waits for it gets it when the outer call is over."""
    server = serve(ClientHandler, max_offloads=1, at_offload_limit="refuse")
    assert server.offload(server.offload, server.offload, calls.square, 3) == 9
    server.at_offload_limit = "wait"
    with running(server.offload, lambda: server.offload(calls.meet, meeting.address)):
        meeting.welcome()
        with running(server.offload, calls.meet, meeting.address):
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            meeting.dismiss()
            meeting.welcome()
            assert server.stats().offloads_running == 1
            meeting.dismiss()


@pytest.mark.parametrize("moment", ["queued", "given its turn"])
def test_interrupted_wait_gives_its_place_back(serve, monkeypatch, moment):
    """What a signal handler raises in a thread that waits must not cost the others their turn."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    offloads = server._threaded_state.offloads

    def interrupt(bell, client):
        """Stand for the signal."""
        if moment != "queued":
            gate.release.set()
            assert select.select([bell._waker], [], [], GUARD)[0]
        raise KeyboardInterrupt

    monkeypatch.setattr("threaded_echo.offloading.calls._Bell.wait", interrupt)
    with occupied(server, gate):
        with pytest.raises(KeyboardInterrupt):
            server.offload(calls.square, 1)
    monkeypatch.undo()
    assert server.offload(calls.square, 2) == 4
    assert offloads.count() == (0, 0, 2, 1)


def test_bell_without_poll_waits_too(serve, monkeypatch, meeting):
    """As on Windows, where nothing tells that a client has gone."""
    monkeypatch.delattr(select, "poll")
    handler = meet_at(meeting)
    with ThreadPoolExecutor(1) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"
