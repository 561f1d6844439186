"""Offloaded calls: where they run, what they return and raise, and what a death costs."""
from __future__ import annotations

import os
import signal
import sys
import threading
import types
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from threaded_echo import ClientHandler, LineHandler, ThreadedTCPServer, WorkerDied, current_client

from .. import calls
from ..conftest import LOOPBACK
from .tools import KINDS, executor_of, meeting_server, wait_for
from ..tools import GUARD, ask, connect, receive, running, together, wait_until


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_executor_returns_and_raises(kind):
    """A handler and any other thread get the result or the exception, and each call is counted."""
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


@pytest.mark.parametrize("kind", ["workers", "worker threads", "threads"])
def test_client_that_computes_says_so(kind, meeting):
    """When the call is over, the state is "serving" again."""
    with meeting_server(kind, meeting) as server:
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


def test_wrong_executor_is_named_at_the_call(serve):
    """The option may have been set at any time."""
    server = serve(ClientHandler)
    server.executor = 0
    with pytest.raises(ValueError, match="executor"):
        server.offload(calls.square, 2)
    server.executor = None


class KilledWorker(Exception):
    """Has the name of Dask's exception."""


def test_worker_that_dies_in_dask_is_reported(serve, monkeypatch):
    """Dask has an exception of its own for it."""
    class Executor:
        """Loses what it is given, as a cluster does."""

        def submit(self, function):
            """Fail."""
            future = Future()
            future.set_exception(KilledWorker("task"))
            return future

    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(KilledWorker=KilledWorker))
    server = serve(ClientHandler, executor=Executor())
    with pytest.raises(WorkerDied, match="KilledWorker"):
        server.offload(calls.square)


def test_call_that_no_interpreter_takes_names_the_function(serve, monkeypatch):
    """The executor's own exception, here of another name, says only that something cannot be shared."""
    class Executor:
        """Fails as an InterpreterPoolExecutor does."""

        def submit(self, function):
            """Fail."""
            raise KilledWorker("args not shareable")

    monkeypatch.setitem(sys.modules, "concurrent.interpreters", types.SimpleNamespace(NotShareableError=KilledWorker))
    server = serve(ClientHandler, executor=Executor())
    with pytest.raises(KilledWorker, match="args not shareable") as caught:
        server.offload(calls.square)
    assert caught.value.__notes__[0].startswith("In a call of tests.calls.square: ")


def test_call_that_its_owner_cancels_says_so(meeting):
    """The handler's thread raises the executor's CancelledError."""
    class Executor(ThreadPoolExecutor):
        """Sets an event when it has taken a call."""

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
    """The call raises WorkerDied, also if the worker is an executor's."""
    with executor_of(kind) as executor, ThreadedTCPServer(LOOPBACK, executor=executor).start() as server:
        with pytest.raises(WorkerDied, match="has died in a call"):
            server.offload(calls.die, 5)
        if kind == "workers":
            assert server.offload(calls.square, 4) == 16


def test_client_stays_where_its_handler_catches_a_death(meet, meeting):
    """Its next call works."""
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
    """Each gets its own answers or WorkerDied. None waits for ever, and none is disconnected."""
    class Square(LineHandler):
        """Squares in a worker."""

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
            while not over.is_set() or not counts[0]:
                client.sendall(b"%d\n" % number)
                reply = replies.readline()
                died = reply == b"died\n"
                assert died or int(reply) == number * number
                counts[died] += 1
                number += 4
                answered.release()
        return counts[0], counts[1]

    def kill() -> tuple[int, int]:
        """Kill all workers again and again, each time after the clients have had some answers."""
        for _ in range(8):
            for _ in range(12):
                assert answered.acquire(timeout=GUARD)
            for worker in list(server._threaded_state.offloads._workers._held):
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
    """They do not wait for a call that may take long."""
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
    """It is the other server that computes for the client."""
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
    """When the inner call has returned, the outer one is still computing."""
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


def test_executor_that_was_shut_down_says_so(serve):
    """The caller gets its error."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    server = serve(ClientHandler, executor=executor)
    with pytest.raises(RuntimeError, match="after shutdown"):
        server.offload(calls.square, 1)
    assert server.stats().offloads_failed == 1
