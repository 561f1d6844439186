"""Calls that their callers leave: their time is up, or their client has gone."""
from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import pytest

from threaded_echo import ClientHandler, LineHandler, ServerStopping, ThreadedTCPServer, WorkerDied, WorkerProcesses
from threaded_echo.clients.period import Period
from threaded_echo.offloading import calls as offloaded_calls
from threaded_echo.offloading import channel, iterations, processes, worker
from threaded_echo.offloading.call import Call, CallerLeft, Terms
from threaded_echo.offloading.messages import pickle_call
from threaded_echo.offloading.waiting import wait_with_caller
from threaded_echo.offloading.wire import Disconnected

from .. import calls
from ..tools import GUARD, connect, receive, running, until, wait_until
from .tools import calling, executor_of, pool, reset, wait_for

RUNNING_ON = ["worker threads", "threads", "submit"]
"""Executors in which nothing can end a function."""


@pytest.fixture
def late(monkeypatch, meeting) -> Callable[[], list[int]]:
    """Make calls with a time-out late once they have begun, whatever the clock says; returns the processes."""
    def arrange() -> list[int]:
        def is_late(call: Call) -> bool:
            if call.terms.timeout is None:
                return False
            if not begun:
                begun.append(meeting.welcome())
            return True

        begun: list[int] = []
        monkeypatch.setattr(Call, "is_late", is_late)
        monkeypatch.setattr(Call, "seconds_left", lambda call: None if call.terms.timeout is None else 0.0)
        return begun

    return arrange


class Told(LineHandler):
    """Offloads a call to a meeting, and tells the test how that ends."""

    address: tuple[str, int]
    told: queue.SimpleQueue[BaseException]

    def process(self, line: bytes) -> bytes:
        """Offload."""
        try:
            return self.offload(calls.meet, self.address)
        except Exception as error:
            self.told.put(error)
            raise


@contextmanager
def telling_server(kind: str, meeting, **options) -> Iterator[tuple[ThreadedTCPServer, queue.SimpleQueue]]:
    """Serve by such a handler."""
    told: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    handler = type("Handler", (Told,), {"address": meeting.address, "told": told})
    with executor_of(kind) as executor:
        with ThreadedTCPServer(("127.0.0.1", 0), handler, executor=executor, **options).start() as server:
            yield server, told


def test_call_that_is_late_in_a_worker_process_ends_with_it(serve, meeting, late):
    """Another process takes the place of the one that is killed, before the next call."""
    server = serve(ClientHandler, executor=1)
    begun = late()
    with pytest.raises(TimeoutError, match=r"tests\.calls\.meet has not returned within 30 s"):
        server.offload_within(30, calls.meet, meeting.address)
    with running(server.offload, calls.meet, meeting.address):
        assert meeting.welcome() != begun[0]
        assert len(multiprocessing.active_children()) == 1
        meeting.dismiss()
        meeting.dismiss()
    wait_for(server, lambda stats: (stats.offloads_running, stats.offloads_done, stats.offloads_failed) == (0, 1, 1))


def test_option_is_the_time_of_each_call(serve, meeting, late):
    """It counts for what handlers offload; `offload_within` has another one, or none."""
    class Handler(LineHandler):
        """Offloads."""

        def process(self, line):
            """With the option, or without a time-out."""
            try:
                return self.offload(calls.meet, meeting.address) if line == b"option" else b"%d" % (
                    self.offload_within(None, calls.square, 3))
            except TimeoutError as error:
                return str(error).encode()

    server = serve(Handler, executor=1, offload_timeout=7.5)
    late()
    with connect(server) as client, client.makefile("rb") as replies:
        client.sendall(b"option\n")
        assert replies.readline() == b"tests.calls.meet has not returned within 7.5 s\n"
        client.sendall(b"none\n")
        assert replies.readline() == b"9\n"


def test_iteration_that_is_late_ends_with_its_worker(serve, meeting, late):
    """The option counts for the whole of it. The next call has another process."""
    server = serve(ClientHandler, executor=1, offload_timeout=30)
    begun = late()
    with closing(server.offload_iter(calls.meet_for_each, meeting.address, 3)) as items:
        with pytest.raises(TimeoutError, match=r"tests\.calls\.meet_for_each has not returned within 30 s"):
            next(items)
    assert server.offload_within(None, os.getpid) != begun[0]
    meeting.dismiss()
    assert server.stats().offloads_running == 0


def test_worker_that_starts_for_a_late_iteration_is_kept():
    """It is not at fault."""
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1, offload_timeout=0) as server:
        with pytest.raises(TimeoutError):
            list(server.offload_iter(calls.numbers, 3))
        workers = server._threaded_state.offloads._workers
        until(lambda: workers._idle)
        [started] = workers._idle
        server.offload_timeout = None
        assert list(server.offload_iter(calls.numbers, 3)) == [0, 1, 2]
        assert workers._idle == [started]


def test_stop_as_the_client_of_an_iteration_goes_is_what_its_handler_is_told_of(monkeypatch, meeting):
    """Whichever came first."""
    told: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    class Handler(LineHandler):
        """Iterates."""

        def process(self, line):
            """Tell how that ends."""
            try:
                list(self.offload_iter(calls.meet_for_each, meeting.address, 3))
            except Exception as error:
                told.put(error)

    with ThreadedTCPServer(("127.0.0.1", 0), Handler, executor=1).start() as server, connect(server) as client:
        def close(*arguments: object) -> None:
            """Let a stop come just then."""
            server._threaded_state.stopping.period.force()

        monkeypatch.setattr(iterations, "close", close)
        client.sendall(b"\n")
        meeting.welcome()
        server.clients[1].disconnect()
        assert isinstance(told.get(timeout=GUARD), ServerStopping)


@pytest.mark.parametrize("kind", ["workers", *RUNNING_ON])
def test_call_that_ends_in_time_returns(kind, meeting):
    """Its wait has an end, which does not come."""
    with executor_of(kind) as executor, ThreadedTCPServer(("127.0.0.1", 0), executor=executor) as server:
        with calling(server.offload_within, GUARD, calls.meet, meeting.address) as outcome:
            meeting.welcome()
            meeting.dismiss()
        assert outcome == [b"go"]


@pytest.mark.parametrize("seconds", [-1, "1", float("nan"), True])
def test_wrong_seconds_are_an_error_at_the_call(serve, seconds):
    """As with every other number of seconds."""
    server = serve(ClientHandler)
    with pytest.raises((TypeError, ValueError), match="seconds"):
        server.offload_within(seconds, calls.square, 2)


def test_replies_go_out_ahead_of_a_call_with_a_deadline(serve, meeting):
    """As ahead of any other call."""
    class Handler(LineHandler):
        """Offloads the second line."""

        def process(self, line):
            """Reply to the first at once."""
            return line if line == b"one" else self.offload_within(GUARD, calls.meet, meeting.address)

    with connect(serve(Handler, executor=1)) as client:
        client.sendall(b"one\ntwo\n")
        assert receive(client, 4) == b"one\n"
        meeting.welcome()
        meeting.dismiss()
        assert receive(client, 3) == b"go\n"


@pytest.mark.parametrize("kind", ["inline", "workers", *RUNNING_ON])
def test_call_that_is_late_before_its_turn_never_begins(kind, meeting):
    """The wait for the turn counts, and the call that runs is left alone."""
    with executor_of(kind) as executor:
        with ThreadedTCPServer(("127.0.0.1", 0), executor=executor, max_offloads=1) as server:
            with running(server.offload, calls.meet, meeting.address):
                meeting.welcome()
                with pytest.raises(TimeoutError, match="within 0 s"):
                    server.offload_within(0, calls.meet, meeting.address)
                stats = server.stats()
                assert (stats.offloads_running, stats.offloads_waiting, stats.offloads_failed) == (1, 0, 1)
                meeting.dismiss()
        assert not meeting.is_awaited()


@pytest.mark.parametrize("kind", RUNNING_ON)
def test_function_that_is_late_in_a_thread_runs_on(kind, meeting, late, caplog):
    """That is logged, and it keeps its slot until it ends."""
    with executor_of(kind) as executor:
        with ThreadedTCPServer(("127.0.0.1", 0), executor=executor, max_offloads=1) as server:
            late()
            with pytest.raises(TimeoutError, match="calls.meet has not returned"):
                server.offload_within(30, calls.meet, meeting.address)
            assert "calls.meet runs on after its 30 s: only a worker process can be ended" in caplog.text
            with running(server.offload, calls.square, 2):
                wait_for(server, lambda stats: (stats.offloads_running, stats.offloads_waiting) == (1, 1))
                meeting.dismiss()
            stats = server.stats()
            assert (stats.offloads_running, stats.offloads_done, stats.offloads_failed) == (0, 1, 1)


def test_call_that_an_executor_has_not_begun_is_cancelled_when_it_is_late(meeting):
    """Nothing runs on, and nothing is logged."""
    with executor_of("threads") as executor, ThreadedTCPServer(("127.0.0.1", 0), executor=executor) as server:
        with running(server.offload, calls.meet, meeting.address), running(server.offload, calls.meet, meeting.address):
            meeting.welcome()
            meeting.welcome()
            with pytest.raises(TimeoutError):
                server.offload_within(0, calls.meet, meeting.address)
            assert server.stats().offloads_running == 2
            meeting.dismiss()
            meeting.dismiss()
    assert not meeting.is_awaited()


@pytest.mark.parametrize("kind", ["workers", *RUNNING_ON])
@pytest.mark.parametrize("how", ["reset", "disconnect"])
def test_handler_whose_client_goes_is_told_at_once(kind, how, meeting):
    """The function ends by itself, and its worker takes the next call."""
    with telling_server(kind, meeting) as (server, told), connect(server) as client:
        client.sendall(b"\n")
        process = meeting.welcome()
        if how == "reset":
            reset(client)
        else:
            server.clients[1].disconnect()
        assert isinstance(told.get(timeout=GUARD), ConnectionAbortedError)
        assert server.stats().offloads_running == 1
        meeting.dismiss()
        wait_for(server, lambda stats: (stats.offloads_running, stats.offloads_failed) == (0, 1))
        if kind == "workers":
            for _ in range(2):
                with running(server.offload, calls.meet, meeting.address):
                    seen = meeting.welcome()
                    meeting.dismiss()
            assert server._threaded_state.offloads._workers._idle and process != 0 != seen
            assert len(multiprocessing.active_children()) == 2
        assert server.stats().failed == 0, "its client went away"


@pytest.mark.parametrize("kind", ["workers", "worker threads"])
def test_stop_waits_for_a_function_whose_client_has_gone(kind, meeting, monkeypatch):
    """As long as it waits for handlers, since the function may be writing something."""
    with telling_server(kind, meeting) as (server, told), connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        server.clients[1].disconnect()
        told.get(timeout=GUARD)
        until(lambda: not server.clients)
        offloads, looked = server._threaded_state.offloads, threading.Event()

        def left() -> list:
            """Tell that the stop has looked."""
            found = looks()
            looked.set()
            return found

        looks = offloads.left
        monkeypatch.setattr(offloads, "left", left)
        with calling(server.stop, GUARD) as outcome:
            wait_until(looked)
            assert server.stats().offloads_running == 1
            meeting.dismiss()
        assert outcome[0].clean
        assert server.stats().offloads_running == 0


def test_stop_kills_the_worker_of_a_call_that_was_left(meeting):
    """After the drain."""
    with telling_server("workers", meeting) as (server, told), connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        server.clients[1].disconnect()
        told.get(timeout=GUARD)
        assert server.stop(0).clean
        assert not multiprocessing.active_children()
        assert server.stats().offloads_running == 0


def test_stop_forgets_a_call_that_an_executor_of_the_programs_runs_on_with(meeting):
    """It belongs to the program. Its end, later, counts for nothing."""
    with executor_of("submit") as executor:
        handler = type("Handler", (Told,), {"address": meeting.address, "told": queue.SimpleQueue()})
        with ThreadedTCPServer(("127.0.0.1", 0), handler, executor=executor).start() as server:
            with connect(server) as client:
                client.sendall(b"\n")
                meeting.welcome()
                server.clients[1].disconnect()
                handler.told.get(timeout=GUARD)
                assert server.stop(0).clean
                stats = server.stats()
                assert (stats.offloads_running, stats.offloads_failed) == (0, 1)
                meeting.dismiss()
        for thread in executor.threads:
            thread.join(GUARD)
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_failed) == (0, 1)


def test_handler_cut_by_a_stop_is_told_of_the_stop(meeting):
    """Not that its client has gone, which is the stop's doing."""
    with telling_server("workers", meeting) as (server, told), connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        server.stop(0)
        assert isinstance(told.get(timeout=GUARD), ServerStopping)


# One worker, without a server.

class Caller:
    """Has calls whose caller leaves."""

    def __init__(self, timeout: float | None = None) -> None:
        self.period = Period()
        self.call = Call(self.period, None, calls.square, (3,), {}, nullcontext, Terms(timeout))
        self.over = threading.Event()

    def make(self, workers: processes.Workers, function: Callable, *args: object) -> object:
        """Call a function in a worker."""
        with pickle_call(function, args, {}) as message:
            return workers.call(message, 1, self.period, nullcontext, self.call, self.over.set)


def test_worker_that_only_starts_is_not_killed_for_a_late_call():
    """Otherwise one that takes longer to start than a call may take would never be there."""
    caller = Caller(0)
    with pool(0, caller.period) as workers:
        with pytest.raises(CallerLeft):
            caller.make(workers, calls.square, 3)
        [started] = [*workers._held, *workers._idle]
        wait_until(caller.over)
        assert workers._idle == [started]
        caller.call = None
        assert caller.make(workers, calls.square, 3) == 9


@pytest.mark.parametrize("iterates", [False, True], ids=["call", "iteration"])
def test_worker_whose_initializer_runs_is_not_killed_for_a_late_call(meeting, monkeypatch, iterates):
    """It has started, and cannot be called yet. The caller does not wait for it."""
    prepared = WorkerProcesses(1, initializer=calls.meet, initargs=(meeting.address,))
    with ThreadedTCPServer(("127.0.0.1", 0), executor=prepared) as server:
        workers = server._threaded_state.offloads._find_workers()

        def is_late(call: Call) -> bool:
            """Wait for the start."""
            return call.terms.timeout is not None and any(held._has_started for held in list(workers._held))

        monkeypatch.setattr(Call, "is_late", is_late)
        monkeypatch.setattr(Call, "seconds_left", lambda call: None if call.terms.timeout is None else 0.01)
        server.offload_timeout = 30
        call = (lambda: list(server.offload_iter(calls.numbers, 3))) if iterates else (
            lambda: server.offload(calls.square, 3))
        with calling(call) as outcome:
            meeting.welcome()
        assert isinstance(outcome[0], TimeoutError)
        assert server.stats().offloads_running == 1
        meeting.dismiss()
        monkeypatch.undo()
        server.offload_timeout = None
        assert server.offload(calls.square, 3) == 9
        assert server.stats().offloads_failed == 1
        assert len(multiprocessing.active_children()) == 1


def test_call_that_never_ends_is_killed_when_its_time_is_up_though_its_client_has_gone(meeting):
    """The thread that waits for it has the same deadline."""
    with pool(1) as workers:
        [made] = workers._idle
        with pickle_call(calls.meet, (meeting.address,), {}) as message:
            message.send(made._channel)
        meeting.welcome()
        made.see_through(0)
        assert not made.is_alive()
        meeting.dismiss()


@pytest.mark.parametrize("reason", ["descriptors", "start", "stopping"])
def test_killed_worker_that_cannot_be_replaced_is_not_missed(monkeypatch, reason):
    """The next call tries again, if there is one."""
    def fail(setup: None) -> None:
        """Be out of descriptors."""
        raise OSError(24, "Too many open files")

    caller = Caller(0)
    with pool(1, caller.period) as workers:
        if reason == "descriptors":
            monkeypatch.setattr(processes, "Worker", fail)
        elif reason == "start":
            monkeypatch.setattr(worker, "work", calls.end_as_it_starts)
        else:
            caller.period.stop()
        with pytest.raises(CallerLeft):
            caller.make(workers, calls.spin)
        wait_until(caller.over)
        assert not workers._idle and not workers._held and not workers._starting
        monkeypatch.undo()
        caller.call = None
        assert caller.make(workers, calls.square, 3) == 9


def test_stop_does_not_wait_for_the_start_of_a_worker_that_replaces_another(monkeypatch):
    """However long it takes to import the program's modules."""
    caller = Caller(0)
    with pool(1, caller.period) as workers:
        monkeypatch.setattr(worker, "work", calls.say_nothing)
        with pytest.raises(CallerLeft):
            caller.make(workers, calls.spin)
        until(lambda: workers._starting)
        caller.period.stop()
        workers.interrupt_start()
        wait_until(caller.over)


def test_stop_just_before_such_a_worker_is_listed_ends_it(monkeypatch):
    """Its start would otherwise be waited for."""
    class Starting(processes.Worker):
        """A stop comes as it is made."""

        def __init__(self, setup: None) -> None:
            super().__init__(setup)
            caller.period.stop()
            workers.interrupt_start()

    caller = Caller(0)
    with pool(1, caller.period) as workers:
        monkeypatch.setattr(worker, "work", calls.say_nothing)
        monkeypatch.setattr(processes, "Worker", Starting)
        with pytest.raises(CallerLeft):
            caller.make(workers, calls.spin)
        wait_until(caller.over)
        assert not workers._held


def test_call_is_seen_through_by_its_caller_if_there_are_no_threads(monkeypatch):
    """It is told late then. A stop meanwhile waits for no thread that was never started."""
    def fail(thread: threading.Thread) -> None:
        """Fail as a stop closes the workers."""
        caller.period.force()
        workers.close()
        raise RuntimeError("can't start new thread")

    caller = Caller(0)
    with pool(1, caller.period) as workers:
        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(CallerLeft):
            caller.make(workers, calls.spin)
        assert caller.over.is_set() and not workers._held and not workers._leftovers


def test_stop_waits_for_the_thread_that_sees_a_call_through(meeting):
    """It has ended its worker, and nothing is left."""
    caller = Caller()
    with pool(1, caller.period) as workers:
        held = workers._hold_idle(1, caller.period)
        with pickle_call(calls.meet, (meeting.address,), {}) as message:
            message.send(held._channel)
        meeting.welcome()
        workers._leave(held, caller.call, 1, caller.over.set)
        caller.period.force()
        workers.close()
        assert caller.over.is_set() and not workers._held
        meeting.dismiss()


def test_end_of_a_worker_is_seen_though_its_channel_stays_open(monkeypatch):
    """A process that it has forked may keep that open."""
    with pool(1) as workers:
        [made] = workers._idle
        monkeypatch.setattr(made, "_look", lambda client, seconds: ([made._end], True))
        with pytest.raises(Disconnected):
            made.receive(Caller(GUARD).call)


def test_deadline_holds_on_a_platform_without_poll(monkeypatch):
    """Windows has none."""
    monkeypatch.delattr(select, "poll")
    caller = Caller(0)
    with pool(1, caller.period) as workers:
        with pytest.raises(CallerLeft) as left:
            caller.make(workers, calls.spin)
        assert left.value.is_connected
        wait_until(caller.over)
        caller.call = Caller(GUARD).call
        assert caller.make(workers, calls.square, 3) == 9


def test_worker_that_dies_while_its_caller_has_a_deadline_is_dead(monkeypatch):
    """The deadline makes no difference to that."""
    caller = Caller(GUARD)
    with pool(1, caller.period) as workers:
        with pytest.raises(WorkerDied, match="exit code 5"):
            caller.make(workers, calls.die, 5)


def test_worker_that_takes_too_long_to_start_is_given_up_before_its_caller_is(monkeypatch):
    """The call has more time than that."""
    monkeypatch.setattr(worker, "START_TIMEOUT", 0.01)
    monkeypatch.setattr(worker, "work", calls.say_nothing)
    caller = Caller(GUARD)
    with pool(0, caller.period) as workers, pytest.raises(WorkerDied, match="is not ready"):
        caller.make(workers, calls.square, 3)


def test_stop_that_cuts_a_client_is_not_the_clients_doing():
    """What is waited for ends with the stop. A caller without a deadline has all the time until then."""
    period, looks = Period(), iter([([], False), ([], True), ([7], True)])
    seen = []

    def look(client: object, seconds: float | None) -> tuple[list[int], bool]:
        """Lose the connection, as a stop cuts it."""
        seen.append(client)
        period.force()
        return next(looks)

    call = Call(period, "its client", calls.square, (3,), {}, nullcontext)
    assert wait_with_caller(look, call, None) == [7]
    assert seen == ["its client", None, None]


def test_stop_as_a_client_goes_is_what_its_handler_is_told_of(monkeypatch, meeting):
    """Whichever came first."""
    with telling_server("workers", meeting, drain_timeout=0) as (server, told), connect(server) as client:
        offloads = server._threaded_state.offloads

        def leave(*arguments: object) -> None:
            """Let a stop come just then."""
            monkeypatch.undo()
            offloads._workers._leave(*arguments)
            server._threaded_state.stopping.period.force()

        monkeypatch.setattr(offloads._workers, "_leave", leave)
        client.sendall(b"\n")
        meeting.welcome()
        server.clients[1].disconnect()
        assert isinstance(told.get(timeout=GUARD), ServerStopping)


def test_stop_as_a_client_goes_for_whose_iteration_a_worker_starts_is_what_is_told(monkeypatch):
    """Whichever came first."""
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1) as server:
        def leave(*arguments: Any) -> None:
            """Be left, and let a stop come just then."""
            server._threaded_state.stopping.period.force()
            arguments[-1]()
            raise CallerLeft(False)

        monkeypatch.setattr(offloaded_calls, "iterate_in_worker", leave)
        with pytest.raises(ServerStopping):
            next(server.offload_iter(calls.numbers, 1))


def test_slow_call_is_logged_while_it_runs(serve, meeting, caplog):
    """Once, with its client, its name and its age, at WARNING."""
    caplog.set_level(logging.WARNING, "threaded_echo")

    class Handler(LineHandler):
        """Offloads."""

        def process(self, line):
            """Meet."""
            return self.offload(calls.meet, meeting.address)

    server = serve(Handler, executor=1, slow_offload=0)
    with connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        until(lambda: caplog.records)
        meeting.dismiss()
        assert receive(client, 3) == b"go\n"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("client 1: tests.calls.meet has not ended after 0")


@pytest.mark.parametrize("iterates", [False, True], ids=["call", "iteration"])
def test_call_that_its_worker_does_not_receive_is_late_all_the_same(monkeypatch, meeting, iterates):
    """An object keeps it from that as it is unpickled. The worker is killed, and the next call has another one."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 0.01)
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1) as server:
        process = server.offload(os.getpid)
        server.offload_timeout = 0.02
        monkeypatch.setattr(worker.Worker, "receive", lambda *_: pytest.fail("the call was sent, after all"))
        arguments = [calls.Sightseer(meeting.address), bytes(5_000_000)]
        with pytest.raises(TimeoutError, match="calls.same has not returned within 0.02 s"):
            next(server.offload_iter(calls.same, arguments)) if iterates else server.offload(calls.same, arguments)
        monkeypatch.undo()
        server.offload_timeout = None
        assert server.offload(os.getpid) != process
        assert server.stats().offloads_running == 0


LARGE = 5_000_000


@pytest.mark.parametrize("iterates", [False, True], ids=["call", "iteration"])
def test_worker_that_is_stopped_in_its_reply_is_late_in_time(monkeypatch, iterates):
    """Though a transfer is looked at much later otherwise. The next call has another worker."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 1000.0)
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1) as server:
        process = server.offload(os.getpid)
        monkeypatch.setattr(calls, "stopped", [])
        server.offload_timeout = 0.5
        with pytest.raises(TimeoutError, match="be_stopped has not returned within 0.5 s"):
            if iterates:
                list(server.offload_iter(calls.yield_and_be_stopped, LARGE))
            else:
                server.offload(calls.return_and_be_stopped, LARGE)
        assert calls.stopped == [process]
        server.offload_timeout = None
        assert server.offload(os.getpid) != process


def test_iteration_that_is_left_as_its_worker_is_stopped_in_an_item_ends_in_its_time(monkeypatch):
    """The worker is killed."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 1000.0)
    monkeypatch.setattr(iterations, "CLOSE_TIMEOUT", 0.05)
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1) as server:
        items = server.offload_iter(calls.yield_and_fill, LARGE)
        process = next(items)
        [held] = server._threaded_state.offloads._workers._held
        until(held._channel.has_data)
        os.kill(process, signal.SIGSTOP)
        items.close()
        assert not held.is_alive()


def test_large_result_that_nobody_waits_for_is_dropped(meeting):
    """Nothing of it is taken for the reply to the next call, which the same worker runs."""
    caller = Caller()
    with pool(1, caller.period) as workers:
        held = workers._hold_idle(1, caller.period)
        with pickle_call(calls.meet_and_return, (meeting.address, LARGE), {}) as message:
            message.send(held._channel)
        meeting.welcome()
        workers._leave(held, caller.call, 1, caller.over.set)
        meeting.dismiss()
        wait_until(caller.over)
        caller.call = None
        assert caller.make(workers, calls.square, 3) == 9
        assert workers._idle == [held]


def test_worker_that_is_stopped_in_a_result_that_nobody_waits_for_is_killed_in_time(monkeypatch, meeting):
    """The call's own time holds for that, too."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 1000.0)
    with pool(1) as workers:
        [made] = workers._idle
        with pickle_call(calls.meet_and_return, (meeting.address, LARGE), {}) as message:
            message.send(made._channel)
        process = meeting.welcome()
        meeting.dismiss()
        until(made._channel.has_data)
        os.kill(process, signal.SIGSTOP)
        made.see_through(0.05)
        assert not made.is_alive()
