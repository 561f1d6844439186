"""Offloading and the life of the server: the start of its workers, every kind of stop, serving again."""
from __future__ import annotations

import gc
import logging
import multiprocessing
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from threaded_echo import ClientHandler, ServerStopping, ThreadedTCPServer, WorkerDied
from threaded_echo.offloading.calls import _Bell

from .. import calls
from ..conftest import LOOPBACK
from .tools import executor_of, meet_at, meeting_server, occupied, wait_for
from ..tools import Gate, connect, receive, receive_all, running, together, wait_until


def test_workers_are_there_before_the_first_client(serve):
    """So that none waits for a process to start."""
    server = serve(ClientHandler, executor=2)
    assert len(multiprocessing.active_children()) == 2
    server.stop()
    assert not multiprocessing.active_children()


def test_workers_are_started_for_handle_request(meeting):
    """A program's own loop has them as well."""
    handler = meet_at(meeting)
    with ThreadedTCPServer(LOOPBACK, handler, executor=1) as server, running(server.handle_request):
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"


def test_workers_that_cannot_start_fail_the_start(monkeypatch):
    """With what to do about it; the server can be closed."""
    monkeypatch.setattr("threaded_echo.offloading.worker.work", calls.end_as_it_starts)
    with ThreadedTCPServer(LOOPBACK, executor=2) as server, pytest.raises(WorkerDied, match="__main__"):
        server.start()


def test_stop_while_workers_start_ends_them(monkeypatch):
    """However long they take."""
    monkeypatch.setattr("threaded_echo.offloading.worker.work", calls.say_nothing)
    with ThreadedTCPServer(LOOPBACK, executor=1) as server:
        with running(lambda: pytest.raises(RuntimeError, server.start)):
            while not server._threaded_state.offloads._workers._held:
                threading.Event().wait(0.001)
            server.stop(0)
        assert not multiprocessing.active_children()


def test_server_that_serves_again_has_workers_again(serve):
    """After shutdown() there are none; calls say so."""
    server = serve(ClientHandler, executor=1)
    server.shutdown()
    assert not multiprocessing.active_children()
    with pytest.raises(ServerStopping):
        server.offload(calls.square, 2)
    server.start()
    assert server.offload(calls.square, 2) == 4


@pytest.mark.parametrize("kind", ["inline", "workers", "threads"])
def test_no_call_begins_after_the_stop(kind):
    """A handler that goes on computing meets the stop at its next call."""
    with executor_of(kind) as executor:
        server = ThreadedTCPServer(LOOPBACK, executor=executor)
        server.stop()
        with pytest.raises(ServerStopping):
            server.offload(calls.square, 2)


def test_server_that_never_served_can_offload():
    """Its workers start with the first call, and end with the server."""
    with ThreadedTCPServer(LOOPBACK, executor=1) as server:
        assert server.offload(calls.square, 3) == 9
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_call_that_ends_during_the_drain_gets_its_reply_out(kind, meeting):
    """A stop waits for it as for any handler in the middle of its work."""
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
    """Those that run, and those that wait, which never begin; no survivor, no failure, a line each at info level."""
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
    """Where the executor can."""
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
    """In a signal handler, say, that comes in between."""
    class Queue(deque):
        """Where a stop comes."""

        def append(self, call):
            """Let it come now."""
            offloads._workers.give_up()
            super().append(call)

    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    offloads = server._threaded_state.offloads
    offloads._queue = Queue()

    with occupied(server, gate):
        with pytest.raises(ServerStopping):
            server.offload(calls.square, 2)


def test_stop_while_the_bell_is_made_is_noticed(serve, monkeypatch):
    """And the bell does not stay."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)

    def make_late() -> _Bell:
        """Let a stop come first."""
        server._threaded_state.offloads.give_up()
        return _Bell()

    with occupied(server, gate):
        monkeypatch.setattr("threaded_echo.offloading.calls._Bell", make_late)
        with pytest.raises(ServerStopping):
            server.offload(calls.square, 3)


def test_stop_that_is_over_still_ends_a_wait(serve, monkeypatch):
    """A thread that comes to itself late meets ServerStopping, though the server serves again."""
    gate, late = Gate(), threading.Event()
    server = serve(ClientHandler, max_offloads=1)
    errors: list[BaseException] = []

    def wait_late(bell, client):
        """Stand for a thread that is slow to wake up."""
        here = wait(bell, client)
        wait_until(late)
        return here

    def call() -> None:
        """Wait for a place."""
        try:
            server.offload(calls.square, 1)
        except ServerStopping as error:
            errors.append(error)

    wait = _Bell.wait
    monkeypatch.setattr(_Bell, "wait", wait_late)
    with occupied(server, gate):
        with running(call):
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            server.shutdown()
            server.start()
            late.set()
        assert len(errors) == 1


def test_stop_between_the_submit_and_the_wait_is_noticed(serve):
    """The executor itself stops the server, say."""
    class Executor:
        """Stops the server in ``submit``, and never runs anything."""

        def submit(self, function):
            """Stop."""
            server._threaded_state.offloads.give_up()
            return Future()

    server = serve(ClientHandler, executor=Executor())
    with pytest.raises(ServerStopping):
        server.offload(calls.square)


def test_dropped_server_leaves_no_worker():
    """Nobody has closed it."""
    server = ThreadedTCPServer(LOOPBACK, executor=1)
    server.offload(calls.square, 1)
    server.socket.close()
    del server
    gc.collect()
    assert not multiprocessing.active_children()


def test_two_callers_of_a_stop_both_find_the_workers_gone(serve):
    """Whoever ends them."""
    server = serve(ClientHandler, executor=2)

    def stop() -> list[Any]:
        """Stop, and look."""
        server.stop()
        return multiprocessing.active_children()

    assert together(4, stop) == [[], [], [], []]
