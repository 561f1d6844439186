"""Offloaded calls that wait for a slot: order, limits, clients that leave, interrupts."""
from __future__ import annotations

import queue
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from threaded_echo import ClientHandler, OffloadRefused, ThreadedTCPServer
from threaded_echo.offloading import slots as offloading
from threaded_echo.offloading import waiting as waits

from .. import calls
from ..conftest import LOOPBACK
from .tools import executor_of, meet_at, meeting_server, occupied, reset, stay, wait_for
from ..tools import GUARD, Gate, ask, connect, receive, receive_all, running, until, wait_until


@pytest.mark.parametrize("kind", ["workers", "worker threads", "threads"])
def test_queued_call_of_a_client_that_has_gone_is_cancelled(kind, meeting):
    """The calls of the other clients run."""
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
    """It is the program that ends the connection, not the client."""
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


@pytest.mark.parametrize("kind", ["workers", "worker threads", "threads"])
def test_running_call_of_a_client_that_has_gone_goes_on(kind, meeting):
    """It may be writing something. Its handler is told at once, and its slot is free when it is done."""
    with meeting_server(kind, meeting, max_offloads=1) as server, connect(server) as other:
        client = connect(server)
        client.sendall(b"\n")
        meeting.welcome()
        reset(client)
        until(lambda: 2 not in server.clients)
        other.sendall(b"\n")
        wait_for(server, lambda stats: stats.offloads_waiting == 1)
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_failed) == (1, 0)
        assert not meeting.is_awaited()
        meeting.dismiss()
        meeting.welcome()
        meeting.dismiss()
        assert receive(other, 3) == b"go\n"
        stats = server.stats()
        assert (stats.offloads_done, stats.offloads_failed) == (1, 1)


@pytest.mark.parametrize("kind", ["workers", "worker threads", "threads"])
def test_handler_that_has_closed_its_connection_can_offload(kind):
    """The descriptor's number may be another connection's by then."""
    results: queue.SimpleQueue[int] = queue.SimpleQueue()

    class Handler(ClientHandler):
        """Closes its connection first."""

        def handle(self):
            """Close, and compute."""
            self.request.close()
            results.put(self.offload(calls.square, 5))

    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, Handler, executor=executor).start() as server:
        for _ in range(3):
            assert ask(server, b"") == b""
            assert results.get(timeout=GUARD) == 25


def test_half_closed_client_gets_its_answer(meet, meeting):
    """It has sent all that it wants to, and waits for the answer."""
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
    """The queue is first in, first out."""
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


@pytest.mark.parametrize("kind", ["inline", "workers", "worker threads", "threads"])
def test_limit_makes_calls_wait(kind, meeting):
    """No more than ``max_offloads`` run at once, in any kind of executor."""
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


@pytest.mark.parametrize("kind", ["inline", "workers", "worker threads", "threads"])
def test_limit_can_refuse_calls(kind, meeting):
    """Calls that wait for a worker count as well. The client stays connected, and may try again."""
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


def test_two_slots_that_become_free_at_once_are_both_taken(serve, monkeypatch):
    """The call at the head of the queue is woken for both of them, and wakes the next one."""
    gates = [Gate() for _ in range(4)]
    server = serve(ClientHandler, max_offloads=2)
    woken = threading.Event()

    def wait_late(waker, call):
        """Be a thread that takes long to run again."""
        is_connected = wait(waker, call)
        wait_until(woken)
        return is_connected

    wait = offloading.wait_until_set
    monkeypatch.setattr(offloading, "wait_until_set", wait_late)
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


def test_call_that_is_woken_for_nothing_waits_on(serve):
    """A stop of an earlier period wakes every call, for example."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)

    with occupied(server, gate):
        with running(server.offload, calls.square, 2):
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            server._threaded_state.offloads.give_up()
            gate.release.set()
    assert server.stats().offloads_done == 2


def test_refusal_names_the_limit(meet, meeting):
    """The message has the number."""
    server = meet(max_offloads=1, at_offload_limit="refuse")
    with connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        with pytest.raises(OffloadRefused, match="no more than 1 offloaded"):
            server.offload(calls.square, 1)
        meeting.dismiss()


def test_calls_within_calls_do_not_wait_for_their_own_slot(serve, meeting):
    """They use the outer call's slot, and the next call gets it when the outer one is over."""
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


@pytest.mark.parametrize("moment", ["queued", "woken"])
def test_interrupted_wait_costs_the_others_no_slot(serve, monkeypatch, moment):
    """A signal handler may raise in a thread that waits, also after that has been woken to take a slot."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    offloads = server._threaded_state.offloads

    def interrupt(waker, call):
        """Raise as a signal handler does."""
        if moment == "woken":
            gate.release.set()
            assert select.select([waker], [], [], GUARD)[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(offloading, "wait_until_set", interrupt)
    with occupied(server, gate):
        with pytest.raises(KeyboardInterrupt):
            server.offload(calls.square, 1)
    monkeypatch.undo()
    assert server.offload(calls.square, 2) == 4
    assert offloads.count() == (0, 0, 2, 1)


def test_call_that_cannot_have_a_waker_is_not_queued(serve, monkeypatch):
    """Out of descriptors, it raises OSError, and the queue goes on without it."""
    def fail() -> None:
        """Be out of descriptors."""
        raise OSError(24, "Too many open files")

    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    monkeypatch.setattr(waits, "Waker", fail)
    with occupied(server, gate):
        with pytest.raises(OSError, match="Too many"):
            server.offload(calls.square, 1)
        assert server._threaded_state.offloads.count() == (1, 0, 0, 1)


def test_calls_wait_on_a_platform_without_poll(monkeypatch, meeting):
    """On Windows, nothing reports that a client has gone."""
    monkeypatch.delattr(select, "poll")
    handler = meet_at(meeting)
    with ThreadPoolExecutor(1) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"


def test_call_that_gives_up_may_be_given_its_slot_until_it_has_ended(serve, monkeypatch):
    """Another call ends just then; it must still find the waker of the one that is next."""
    end, gate, has_waker = offloading.Slots._end, Gate(), []

    def note(self, turn, succeeded):
        """Look before the call has ended."""
        has_waker.append(turn.waker is not None)
        end(self, turn, succeeded)

    server = serve(ClientHandler, max_offloads=1)
    with occupied(server, gate):
        with monkeypatch.context() as patch, pytest.raises(TimeoutError):
            patch.setattr(offloading.Slots, "_end", note)
            server.offload_within(0, calls.square, 1)
    assert has_waker == [True]
