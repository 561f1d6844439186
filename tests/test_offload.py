"""Offloaded calls: where they run, how they wait, and what ends their waiting."""
from __future__ import annotations

import concurrent.futures
import gc
import logging
import multiprocessing
import os
import queue
import select
import signal
import socket
import struct
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from threaded_echo import (ClientHandler, LineHandler, OffloadRefused, ServerStopping, ThreadedTCPServer, WorkerDied,
                           current_client)
from threaded_echo.offload import _Bell

from . import calls
from .conftest import LOOPBACK
from .tools import GUARD, Gate, ask, connect, receive, receive_all, running, together, wait_until


class Meet(LineHandler):
    """Offloads a call to a meeting for each line, and replies with its answer, or with its error's name."""

    address: tuple[str, int]

    def process(self, line: bytes) -> bytes:
        """Reply."""
        try:
            return self.offload(calls.meet, self.address)
        except Exception as error:
            if isinstance(error, ServerStopping):
                raise
            return type(error).__name__.encode()


@pytest.fixture
def meet(serve, meeting) -> Callable[..., ThreadedTCPServer]:
    """Start a server whose handlers offload calls to the meeting."""
    def start(**options: object) -> ThreadedTCPServer:
        """As ``serve``."""
        return serve(type("Handler", (Meet,), {"address": meeting.address}), **options)

    return start


class Submitter:
    """An executor as simple as they come: a thread a call, a ``cancel`` without effect, nothing but ``submit``."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def submit(self, function, /, *args, **kwargs):
        """Call it in a thread."""
        class Obstinate(Future):
            """Says that it is cancelled, and goes on."""

            def cancel(self):
                """Do nothing."""
                return False

        def run() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        future: Future[Any] = Obstinate()
        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        return future

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join(GUARD)


@contextmanager
def executor_of(kind: str) -> Iterator[Any]:
    """Make an option ``executor`` that takes two calls at once; shut it down."""
    if kind in ("inline", "workers"):
        yield {"inline": None, "workers": 2}[kind]
    elif kind == "threads":
        with ThreadPoolExecutor(2) as threads:
            yield threads
    elif kind == "submit":
        with Submitter() as submitter:
            yield submitter
    elif kind == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
            yield processes
    else:
        with concurrent.futures.InterpreterPoolExecutor(2) as interpreters:
            yield interpreters


def wait_for(server: ThreadedTCPServer, what: Callable[[Any], bool]) -> None:
    """Wait until the statistics say so: there is no event for what happens inside."""
    for _ in range(int(GUARD * 100)):
        if what(server.stats()):
            return
        threading.Event().wait(0.01)
    pytest.fail(f"it did not happen in time: {server.stats()}")


def stay(gate: Gate) -> None:
    """Hold a place until the gate opens."""
    gate.entered.set()
    wait_until(gate.release)


@contextmanager
def occupied(server: ThreadedTCPServer, gate: Gate) -> Iterator[threading.Thread]:
    """Have a call that holds a place until the gate opens, or the context is left."""
    with running(server.offload, stay, gate) as thread:
        wait_until(gate.entered)
        try:
            yield thread
        finally:
            gate.release.set()


def reset(client: socket.socket) -> None:
    """Close a connection so that the other side knows at once."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


KINDS = ["inline", "workers", "threads", "submit", "processes"]
if hasattr(concurrent.futures, "InterpreterPoolExecutor"):
    KINDS.append("interpreters")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_executor_returns_and_raises(kind):
    """To a handler, and to any other thread; counted."""
    class Handler(LineHandler):
        """Squares."""

        def process(self, line):
            """Reply with the square."""
            return str(self.offload(calls.square, int(line))).encode()

    with executor_of(kind) as executor:
        with ThreadedTCPServer(LOOPBACK, Handler, executor=executor).start() as server:
            assert ask(server, b"11\n12\n") == b"121\n144\n"
            assert server.offload(calls.keywords, function=1, self=2) == {"function": 1, "self": 2}
            with pytest.raises(LookupError, match="of it"):
                server.offload(calls.fail, "of it")
            stats = server.stats()
            assert (stats.offloads_running, stats.offloads_waiting) == (0, 0)
            assert (stats.offloads_done, stats.offloads_failed) == (3, 1)


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_client_that_computes_says_so(kind, meeting):
    """And serves again afterwards."""
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            [found] = server.clients.values()
            assert found.state == "computing"
            assert server.stats().offloads_running == 1
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"
            wait_for(server, lambda stats: stats.offloads_done == 1)
            assert found.state == "serving"


def test_workers_are_there_before_the_first_client(serve):
    """So that none waits for a process to start."""
    server = serve(ClientHandler, executor=2)
    assert len(multiprocessing.active_children()) == 2
    server.stop()
    assert not multiprocessing.active_children()


def test_workers_are_started_for_handle_request(meeting):
    """A program's own loop has them as well."""
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with ThreadedTCPServer(LOOPBACK, handler, executor=1) as server, running(server.handle_request):
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"


def test_workers_that_cannot_start_fail_the_start(monkeypatch):
    """With what to do about it; the server can be closed."""
    monkeypatch.setattr("threaded_echo.workers.work", calls.end_as_it_starts)
    with ThreadedTCPServer(LOOPBACK, executor=2) as server, pytest.raises(WorkerDied, match="__main__"):
        server.start()


def test_stop_while_workers_start_ends_them(monkeypatch):
    """However long they take."""
    monkeypatch.setattr("threaded_echo.workers.work", calls.say_nothing)
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
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
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
    handler = type("Handler", (Meet,), {"address": meeting.address})
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
    handler = type("Handler", (Meet,), {"address": meeting.address})
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


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_queued_call_of_a_client_that_has_gone_is_cancelled(kind, meeting):
    """The calls of the others are not."""
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
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
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
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
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with executor_of(kind) as executor:
        with ThreadedTCPServer(LOOPBACK, handler, executor=executor, max_offloads=1).start() as server:
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
    handler = type("Handler", (Meet,), {"address": meeting.address})
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


def test_wrong_executor_is_named_at_the_call(serve):
    """It may have been set at any time."""
    server = serve(ClientHandler)
    server.executor = 0
    with pytest.raises(ValueError, match="executor"):
        server.offload(calls.square, 2)
    server.executor = None


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
        monkeypatch.setattr("threaded_echo.offload._Bell", make_late)
        assert server.offload(calls.square, 3) == 9


def test_stop_while_the_bell_is_made_is_noticed(serve, monkeypatch):
    """And the bell does not stay."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)

    def make_late() -> _Bell:
        """Let a stop come first."""
        server._threaded_state.offloads.give_up()
        return _Bell()

    with occupied(server, gate):
        monkeypatch.setattr("threaded_echo.offload._Bell", make_late)
        with pytest.raises(ServerStopping):
            server.offload(calls.square, 3)


class KilledWorker(Exception):
    """Stands for Dask's."""


def test_worker_that_dies_in_dask_is_told_of(serve, monkeypatch):
    """Its error is none of the standard library's."""
    class Executor:
        """Loses what it is given."""

        def submit(self, function):
            """Fail."""
            future = Future()
            future.set_exception(KilledWorker("task"))
            return future

    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(KilledWorker=KilledWorker))
    server = serve(ClientHandler, executor=Executor())
    with pytest.raises(WorkerDied, match="KilledWorker"):
        server.offload(calls.square)


def test_call_that_its_owner_cancels_says_so(meeting):
    """As the executor does."""
    class Executor(ThreadPoolExecutor):
        """Tells when it has taken a call."""

        def submit(self, *args, **kwargs):
            """Take a call."""
            future = super().submit(*args, **kwargs)
            taken.set()
            return future

    taken = threading.Event()
    with Executor(1) as executor, ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        errors = []

        def call() -> None:
            """Queue a call behind another."""
            with pytest.raises(CancelledError) as caught:
                server.offload(calls.square, 1)
            errors.append(caught.value)

        executor.submit(calls.meet, meeting.address)
        meeting.welcome()
        taken.clear()
        with running(call):
            wait_until(taken)
            executor.shutdown(wait=False, cancel_futures=True)
            meeting.dismiss()
        assert len(errors) == 1


@pytest.mark.parametrize("kind", ["workers", "processes"])
def test_worker_that_dies_costs_its_call(kind):
    """It raises WorkerDied; what runs in an executor of the program's, too."""
    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, executor=executor).start() as server:
        with pytest.raises(WorkerDied, match="has died in a call"):
            server.offload(calls.die, 5)
        if kind == "workers":
            assert server.offload(calls.square, 4) == 16


def test_client_stays_where_its_handler_catches_a_death(meet, meeting):
    """And its next call works."""
    server = meet(executor=1)
    with connect(server) as client:
        client.sendall(b"\n")
        os.kill(meeting.welcome(), signal.SIGKILL)
        assert receive(client, 11) == b"WorkerDied\n"
        meeting.dismiss()
        client.sendall(b"\n")
        meeting.welcome()
        meeting.dismiss()
        assert receive(client, 3) == b"go\n"


def test_workers_killed_in_a_loop_cost_no_client_more_than_a_call(serve):
    """Each gets its own answers, or is told; none waits for ever, and none is disconnected."""
    class Square(LineHandler):
        """Squares, elsewhere."""

        def process(self, line):
            """Reply with the square."""
            try:
                return b"%d" % self.offload(calls.square, int(line))
            except WorkerDied:
                return b"died"

    def ask_on(first: int) -> tuple[int, int]:
        """Ask until the end; count the answers and the deaths."""
        counts = [0, 0]
        with connect(server) as client, client.makefile("rb") as replies:
            number = first
            while not over.is_set():
                client.sendall(b"%d\n" % number)
                reply = replies.readline()
                died = reply == b"died\n"
                assert died or int(reply) == number * number
                counts[died] += 1
                number += 4
                answered.release()
        return counts[0], counts[1]

    def kill() -> tuple[int, int]:
        """Kill all that there are, again and again, once the clients have had answers."""
        for _ in range(8):
            for _ in range(12):
                assert answered.acquire(timeout=GUARD)
            for worker in server._threaded_state.offloads._workers._held.copy():
                worker.kill()
        over.set()
        return 1, 0

    server = serve(Square, executor=2)
    over, answered = threading.Event(), threading.Semaphore(0)
    roles = iter([kill, *(lambda first=first: ask_on(first) for first in range(4))])
    counts = together(5, lambda: next(roles)())
    assert all(answers > 0 for answers, _ in counts)
    stats = server.stats()
    assert stats.offloads_failed == sum(deaths for _, deaths in counts)
    assert (stats.accepted, stats.failed) == (4, 0)


def test_replies_go_out_ahead_of_a_call(serve, meeting):
    """They do not wait for what may take long."""
    class Handler(LineHandler):
        """Offloads the second line."""

        def process(self, line):
            """Reply to the first at once."""
            return line if line == b"one" else self.offload(calls.meet, meeting.address)

    server = serve(Handler, executor=1)
    with connect(server) as client:
        client.sendall(b"one\ntwo\n")
        assert receive(client, 4) == b"one\n"
        meeting.welcome()
        meeting.dismiss()
        assert receive(client, 3) == b"go\n"


def test_call_in_the_handler_of_another_server_is_not_its_clients(serve):
    """Its going would be none of this server's business."""
    inner = serve(ClientHandler)
    states: list[str] = []

    class Outer(ClientHandler):
        """Uses another server's executor."""

        def process(self, data):
            """Look at oneself from there."""
            return inner.offload(lambda: states.append(current_client().state)) or data

    outer = serve(Outer)
    assert ask(outer, b"x") == b"x"
    assert states == ["serving"]


def test_calls_within_calls_leave_the_state_right(serve):
    """The outer one still computes when the inner one has returned."""
    states: list[str] = []

    class Handler(ClientHandler):
        """Offloads in what it offloads."""

        def process(self, data):
            """Look at oneself."""
            self.offload(self.outer)
            states.append(self.client.state)
            return data

        def outer(self):
            """Offload once more."""
            self.offload(states.append, "inner")
            states.append(self.client.state)

    assert ask(serve(Handler), b"x") == b"x"
    assert states == ["inner", "computing", "serving"]


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

    monkeypatch.setattr("threaded_echo.offload._Bell.wait", interrupt)
    with occupied(server, gate):
        with pytest.raises(KeyboardInterrupt):
            server.offload(calls.square, 1)
    monkeypatch.undo()
    assert server.offload(calls.square, 2) == 4
    assert offloads.count() == (0, 0, 2, 1)


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


def test_bell_without_poll_waits_too(serve, monkeypatch, meeting):
    """As on Windows, where nothing tells that a client has gone."""
    monkeypatch.delattr(select, "poll")
    handler = type("Handler", (Meet,), {"address": meeting.address})
    with ThreadPoolExecutor(1) as executor, ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server:
        with connect(server) as client:
            client.sendall(b"\n")
            meeting.welcome()
            meeting.dismiss()
            assert receive(client, 3) == b"go\n"


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


def test_executor_that_was_shut_down_says_so(serve):
    """Its own error is the caller's."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    server = serve(ClientHandler, executor=executor)
    with pytest.raises(RuntimeError, match="after shutdown"):
        server.offload(calls.square, 1)
    assert server.stats().offloads_failed == 1


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
