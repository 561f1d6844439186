"""Offloading and the life of the server: the start of its workers, every kind of stop, serving again."""
from __future__ import annotations

import gc
import logging
import multiprocessing
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from threaded_echo import ClientHandler, ServerStopping, ThreadedTCPServer, WorkerDied
from threaded_echo.offloading import slots as offloading
from threaded_echo.offloading.turns import Turns

from .. import calls
from ..conftest import LOOPBACK
from .tools import calling, executor_of, meet_at, meeting_server, occupied, wait_for
from ..tools import GUARD, Gate, connect, receive, receive_all, running, together, until, wait_until


def test_workers_are_there_before_the_first_client(serve):
    """No client waits for a process to start."""
    server = serve(ClientHandler, executor=2)
    assert len(multiprocessing.active_children()) == 2
    server.stop()
    assert not multiprocessing.active_children()


def test_workers_are_started_for_handle_request(meeting):
    """A program's own loop finds them as well."""
    handler = meet_at(meeting)
    with ThreadedTCPServer(LOOPBACK, handler, executor=1) as server, running(server.handle_request):
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"


def test_workers_that_cannot_start_fail_the_start(monkeypatch):
    """The error says what to do. The server can be closed."""
    monkeypatch.setattr("threaded_echo.offloading.worker.work", calls.end_as_it_starts)
    with ThreadedTCPServer(LOOPBACK, executor=2) as server, pytest.raises(WorkerDied, match="__main__"):
        server.start()


def test_stop_while_workers_start_ends_them(monkeypatch):
    """However long they take, the stop does not wait for them."""
    monkeypatch.setattr("threaded_echo.offloading.worker.work", calls.say_nothing)
    with ThreadedTCPServer(LOOPBACK, executor=1) as server:
        offloads = server._threaded_state.offloads
        with calling(server.start) as outcome:
            until(lambda: offloads._workers is not None and offloads._workers._held)
            server.stop(0)
        assert isinstance(outcome[0], RuntimeError)
        assert not multiprocessing.active_children()


def test_server_that_serves_again_has_workers_again(serve):
    """After shutdown() there are none, and calls raise ServerStopping until it serves again."""
    server = serve(ClientHandler, executor=1)
    server.shutdown()
    assert not multiprocessing.active_children()
    with pytest.raises(ServerStopping):
        server.offload(calls.square, 2)
    server.start()
    assert server.offload(calls.square, 2) == 4


@pytest.mark.parametrize("kind", ["inline", "workers", "worker threads", "threads"])
def test_no_call_begins_after_the_stop(kind):
    """A handler that goes on computing gets ServerStopping from its next call."""
    with executor_of(kind) as executor:
        server = ThreadedTCPServer(LOOPBACK, executor=executor)
        server.stop()
        with pytest.raises(ServerStopping):
            server.offload(calls.square, 2)


def test_server_that_never_served_can_offload():
    """Its workers start with the first call, and end when the server is closed."""
    with ThreadedTCPServer(LOOPBACK, executor=1) as server:
        assert server.offload(calls.square, 3) == 9
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["workers", "worker threads", "threads"])
def test_call_that_ends_during_the_drain_gets_its_reply_out(kind, meeting):
    """A stop waits for it, as for any handler that is in the middle of its work."""
    with meeting_server(kind, meeting) as server:
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            with running(server.stop):
                wait_until(server.stopping)
                meeting.dismiss(b"done")
                assert receive_all(client) == b"done\n"


@pytest.mark.parametrize("kind", ["workers", "threads", "submit"])
def test_stop_gives_up_calls_after_the_drain(kind, meeting, caplog):
    """They raise ServerStopping, which is no failure and is logged at INFO. Those that wait never begin."""
    caplog.set_level(logging.INFO, "threaded_echo")
    handler = meet_at(meeting)
    with executor_of(kind) as executor:
        server = ThreadedTCPServer(LOOPBACK, handler, executor=executor, max_offloads=2).start()
        clients = [connect(server) for _ in range(3)]
        for client in clients:
            client.sendall(b"\n")
        meeting.welcome()
        meeting.welcome()
        wait_for(server, lambda stats: stats.offloads_waiting == 1)
        report = server.stop(drain=0)
        assert (report.forced, report.survivors) == (3, ())
        stats = server.stats()
        assert (stats.offloads_failed, stats.offloads_done, stats.failed) == (3, 0, 0)
        assert (stats.offloads_running, stats.offloads_waiting) == (0, 0)
        assert not meeting.is_awaited()
        assert caplog.text.count("as it stopped") == 3
        assert not multiprocessing.active_children()
        if kind != "workers":
            meeting.dismiss()
            meeting.dismiss()
        for client in clients:
            client.close()


def test_stop_cancels_what_an_executor_has_queued(meeting):
    """The executor can cancel what it has not begun."""
    handler = meet_at(meeting)
    with ThreadPoolExecutor(1) as executor:
        server = ThreadedTCPServer(LOOPBACK, handler, executor=executor).start()
        with connect(server) as one, connect(server) as other:
            one.sendall(b"\n")
            meeting.welcome()
            other.sendall(b"\n")
            wait_for(server, lambda stats: stats.offloads_running == 2)
            assert server.stop(drain=0).clean
        meeting.dismiss()
    assert not meeting.is_awaited()


def test_stop_as_a_call_is_queued_ends_it(serve):
    """It comes in a signal handler, say, when the call is listed and does not wait yet."""
    class Stopped(Turns):
        """A stop follows at once."""

        def wait(self, turn):
            """Queue the call, and stop."""
            super().wait(turn)
            turn.call.period.force()
            offloads.give_up()

    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    offloads = server._threaded_state.offloads
    with occupied(server, gate):
        offloads._turns.__class__ = Stopped
        with pytest.raises(ServerStopping):
            server.offload(calls.square, 2)


def test_call_of_an_ended_period_raises_though_the_server_serves_again(serve, monkeypatch):
    """Its thread runs again only after the stop."""
    gate, late = Gate(), threading.Event()
    server = serve(ClientHandler, max_offloads=1)

    def wait_late(waker, call):
        """Be a thread that takes long to run again."""
        is_connected = wait(waker, call)
        wait_until(late)
        return is_connected

    wait = offloading.wait_until_set
    monkeypatch.setattr(offloading, "wait_until_set", wait_late)
    with occupied(server, gate):
        with calling(server.offload, calls.square, 1) as outcome:
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            server.shutdown()
            server.start()
            late.set()
        assert isinstance(outcome[0], ServerStopping)


def test_survivor_of_a_stop_offloads_no_more(serve):
    """It raises ServerStopping also when the server serves again, and the new clients' calls work."""
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()
    gate = Gate(lambda handler: outcomes.put(attempt(handler.server)))

    def attempt(server: ThreadedTCPServer) -> object:
        """Offload, and return the result or the exception."""
        try:
            return server.offload(calls.square, 3)
        except ServerStopping as error:
            return type(error)

    server = serve(gate.handler, drain_timeout=0, force_timeout=0, reuse_threads=False)
    with connect(server):
        wait_until(gate.entered)
        thread = server.clients[1].thread
        server.shutdown()
        server.start()
        assert server.offload(calls.square, 3) == 9
        gate.release.set()
        assert outcomes.get(timeout=GUARD) is ServerStopping
        thread.join(GUARD)
        assert not thread.is_alive()


def test_stop_between_the_submit_and_the_wait_is_noticed(serve):
    """The executor itself stops the server, say."""
    class Executor:
        """Stops the server in ``submit``, and never runs anything."""

        def submit(self, function):
            """Stop."""
            state = server._threaded_state
            state.stopping.period.force()
            state.offloads.give_up()
            return Future()

    server = serve(ClientHandler, executor=Executor())
    with pytest.raises(ServerStopping):
        server.offload(calls.square)


def test_dropped_server_leaves_no_worker():
    """Its workers end though nobody has closed it."""
    server = ThreadedTCPServer(LOOPBACK, executor=1)
    server.offload(calls.square, 1)
    server.socket.close()
    del server
    gc.collect()
    assert not multiprocessing.active_children()


def test_two_callers_of_a_stop_both_find_the_workers_gone(serve):
    """Each caller returns after the workers have ended, whichever of them ends them."""
    server = serve(ClientHandler, executor=2)

    def stop() -> list[Any]:
        """Stop, and return the workers that are left."""
        server.stop()
        return multiprocessing.active_children()

    assert together(4, stop) == [[], [], [], []]
