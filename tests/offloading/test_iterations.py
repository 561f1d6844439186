"""Iterating over what a function yields in a worker, or in the handler's own thread."""
from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from threaded_echo import (
    ClientHandler, LineHandler, OffloadRefused, ServerStopping, ThreadedTCPServer, WorkerDied, WorkerThreads)
from threaded_echo.clients.period import Period
from threaded_echo.offloading import calls as offloads
from threaded_echo.offloading import iterations, worker
from threaded_echo.offloading.call import AHEAD, Call, CallerLeft
from threaded_echo.offloading.executors import run_inline
from threaded_echo.offloading.child import run_iteration
from threaded_echo.offloading.messages import CLOSE, ERROR, ITEM, ITERATE, NEXT, RESULT, Received, pickle_call
from threaded_echo.offloading.worker import NotBegun, Worker

from .. import calls
from ..conftest import LOOPBACK
from ..tools import GUARD, Gate, ask, connect, receive, receive_all, running, until, wait_until
from .tools import calling, channels, executor_of, pool, reset, stay, wait_for

EACH = pytest.mark.parametrize("executor", [None, 2, WorkerThreads(2)], ids=["inline", "workers", "worker threads"])


@contextmanager
def serving(executor: Any, handler: type = ClientHandler, **options: Any) -> Iterator[ThreadedTCPServer]:
    """Serve with an executor."""
    with ThreadedTCPServer(LOOPBACK, handler, executor=executor, **options).start() as server:
        yield server


class Rows(LineHandler):
    """Replies to a line with what `calls.meet_for_each` yields, each with a line end; then tells how that ended."""

    address: tuple[str, int]
    outcomes: queue.SimpleQueue[Any]

    def process(self, line: bytes) -> bytes:
        """Iterate; the line says how often, at most."""
        try:
            for item in self.offload_iter(calls.meet_for_each, self.address, int(line)):
                self.send(item + b"\n")
        except BaseException as error:
            self.outcomes.put(error)
            raise
        return b"end"


def rows(meeting) -> type[Rows]:
    """Make such a handler class for a meeting."""
    return type("Handler", (Rows,), {"address": meeting.address, "outcomes": queue.SimpleQueue()})


# What it gives.

@EACH
def test_items_come_in_order_and_count_as_one_call(executor):
    """A handler and any other thread get them. Whatever can be iterated over will do."""
    class Handler(LineHandler):
        """Counts."""

        def process(self, line):
            """Send each number, and the last reply after them."""
            for number in self.offload_iter(calls.numbers, int(line)):
                self.send(b"%d\n" % number)
            return b"end"

    with serving(executor, Handler) as server:
        assert ask(server, b"0\n12\n") == b"end\n" + b"".join(b"%d\n" % number for number in range(12)) + b"end\n"
        assert list(server.offload_iter(calls.numbers, 3)) == [0, 1, 2]
        assert list(server.offload_iter(sorted, [2, 1])) == [1, 2]
        assert list(server.offload_iter(calls.keywords, function=1, self=2)) == ["function", "self"]
        wait_for(server, lambda stats: stats.offloads_done == 5)
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_waiting, stats.offloads_failed) == (0, 0, 0)


@EACH
def test_exception_comes_after_the_items_before_it(executor):
    """It is the function's own; the worker goes on with the next call."""
    with serving(executor) as server:
        found = []
        with pytest.raises(LookupError, match="no more"):
            for item in server.offload_iter(calls.numbers_and_fail, 3):
                found.append(item)
        assert found == [0, 1, 2]
        with pytest.raises(TypeError, match="not iterable"):
            next(server.offload_iter(calls.square, 3))
        assert server.offload(calls.square, 3) == 9
        assert server.stats().offloads_failed == 2


@EACH
def test_each_item_arrives_at_once(executor, meeting):
    """The client has it before the function goes on. Replies to earlier lines go out first."""
    with serving(executor, rows(meeting)) as server, connect(server) as client:
        client.sendall(b"2\n")
        for answer in (b"one", b"two"):
            meeting.welcome()
            meeting.dismiss(answer)
            assert receive(client, 4) == answer + b"\n"
        meeting.welcome()
        meeting.dismiss()
        assert receive(client, 4) == b"end\n"


def test_replies_go_out_ahead_of_an_iteration(serve):
    """They do not wait for its first item."""
    entered, release = threading.Event(), threading.Event()

    class Handler(LineHandler):
        """Iterates for the second line."""

        def process(self, line):
            """Reply to the first at once."""
            return line if line == b"one" else b"".join(self.offload_iter(self.items))

        def items(self):
            """Wait."""
            entered.set()
            wait_until(release)
            yield b"two"

    with connect(serve(Handler)) as client:
        client.sendall(b"one\ntwo\n")
        wait_until(entered)
        assert receive(client, 4) == b"one\n"
        release.set()
        assert receive(client, 4) == b"two\n"


@EACH
def test_client_computes_while_its_handler_waits_for_an_item(executor, meeting):
    """In the loop's body it is served."""
    states: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Handler(LineHandler):
        """Looks at its client in the loop."""

        def process(self, line):
            """Iterate."""
            for _ in self.offload_iter(calls.meet_for_each, meeting.address, 1):
                states.put(self.client.state)
            return self.client.state.encode()

    with serving(executor, Handler) as server, connect(server) as client:
        client.sendall(b"\n")
        for _ in range(2):
            meeting.welcome()  # the second time perhaps before the handler is through with the first item
            until(lambda: server.clients[1].state == "computing")
            assert server.stats().offloads_running == 1
            meeting.dismiss()
        assert receive(client, 8) == b"serving\n"
        assert states.get(timeout=GUARD) == "serving"


def test_large_items_come_whole():
    """Each is received straight into its object. What nobody has used is skipped when the loop is left."""
    items = [bytes([number]) * 500_000 for number in range(6)] + [bytearray(300_000)]
    with pool(1) as workers:
        assert list(iterate(workers, calls.same, items)) == items
        with closing(iterate(workers, calls.same, items)) as some:
            assert next(some) == items[0]
        assert len(workers._idle) == 1


def iterate(workers, function, *args, period=None, client=None) -> Any:
    """Iterate in a worker."""
    with pickle_call(function, args, {}, ITERATE) as message:
        caller = Call(period or Period(), client, function, args, {}, nullcontext)
        yield from workers.iterate(message, 3, caller.period, nullcontext, caller)


def test_arguments_are_the_callers_again_when_the_first_item_has_come():
    """A bytearray that is being sent keeps its size."""
    data = bytearray(100_000)
    with pool(1) as workers, closing(iterate(workers, calls.same, [data, data])) as items:
        assert next(items) == data
        data.append(1)


def test_function_is_only_a_few_items_ahead():
    """It waits until the handler asks for more, and does not go on when it is told to end."""
    produced, closed = [], []

    def produce():
        """Note what it yields."""
        try:
            for number in range(100):
                produced.append(number)
                yield number
        finally:
            closed.append(True)

    with channels() as (server, theirs), running(run_produced, theirs, produce):
        def expect(number: int) -> None:
            """Receive an item."""
            with Received(server) as received:
                assert (received.kind, received.load()) == (ITEM, number)

        for number in range(AHEAD):
            expect(number)
        server.send(NEXT)
        expect(AHEAD)
        assert len(produced) == AHEAD + 1 and not closed
        server.send(CLOSE)
        with Received(server) as received:
            assert received.kind == RESULT
        assert len(produced) == AHEAD + 1 and closed


def run_produced(channel: Any, produce: Any) -> None:
    """Run an iteration as a worker does, whose call needs not be pickled."""
    with run_iteration(Loaded(produce), channel) as last:
        last.send(channel)


class Loaded:
    """A call that has been received."""

    name = "produce"

    def __init__(self, function: Any) -> None:
        self.function = function

    def load(self) -> Any:
        """Return it."""
        return self.function, (), {}


def outcome_of(function, *answers: int) -> tuple[list[Any], Any]:
    """Run an iteration as a worker does, with the server's answers sent before; return its items and its last message.
    """
    with channels() as (server, theirs):
        for answer in answers:
            server.send(answer)
        run_produced(theirs, function)
        items = []
        while True:
            with Received(server) as received:
                if received.kind != ITEM:
                    return items, (received.kind, received.load())
                items.append(received.load())


def test_end_of_an_iteration_tells_how_it_ended():
    """The generator has been closed by then, and what that raises is told as well."""
    assert outcome_of(lambda: calls.numbers(2)) == ([0, 1], (RESULT, None))
    assert outcome_of(lambda: calls.numbers(9), NEXT, NEXT, CLOSE) == ([0], (RESULT, None))
    for function, answers, message in ((lambda: calls.numbers_and_fail(1), (), "no more"),
                                       (calls.fail_as_it_closes, (CLOSE,), "as it closes"),
                                       (calls.yield_a_lock, (), "what produce yielded cannot be sent back")):
        items, (kind, (error, text)) = outcome_of(function, *answers)
        assert kind == ERROR and message in str(error) and message in text
        assert len(items) == 1


def test_server_that_ends_in_an_iteration_ends_the_worker_too():
    """There is nobody to tell. The generator is closed."""
    closed = threading.Event()

    def produce():
        """Yield until the end."""
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    with channels() as (server, theirs):
        with calling(run_produced, theirs, produce) as outcome:
            Received(server).close()
            server.close()
        assert type(outcome[0]).__name__ == "Disconnected"
    assert closed.is_set()


# What ends it.

def test_loop_that_is_left_early_closes_the_generator(meeting):
    """Its finally block runs in the worker, which takes the next call. The call counts as done."""
    with serving(1) as server:
        process = server.offload(os.getpid)
        goes_on = threading.Event()
        with calling(leave_after_one, server, meeting, goes_on) as outcome:
            assert meeting.welcome() == process
            meeting.dismiss(b"one")
            meeting.welcome()
            goes_on.set()
            meeting.dismiss(b"two")
            meeting.welcome()  # as it closes
            meeting.dismiss()
        assert outcome == [b"one"]
        assert server.offload(os.getpid) == process
        assert (server.stats().offloads_done, server.stats().offloads_failed) == (3, 0)


def leave_after_one(server, meeting, goes_on: threading.Event) -> bytes:
    """Leave the loop after the first item, when the function has gone on."""
    for item in server.offload_iter(calls.meet_for_each, meeting.address, 2):
        wait_until(goes_on)
        return item
    raise AssertionError


def test_generator_that_does_not_close_in_time_is_killed(monkeypatch, meeting):
    """The worker is replaced, and the handler does not wait for it."""
    monkeypatch.setattr(iterations, "CLOSE_TIMEOUT", 0.01)
    with serving(1) as server:
        for process in server.offload_iter(calls.never_end, meeting.address):
            assert meeting.welcome() == process
            meeting.dismiss()
            break
        assert server.offload(os.getpid) != process
        assert (server.stats().offloads_done, server.stats().offloads_failed) == (2, 0)


@pytest.mark.parametrize(("function", "message"), [(calls.fail_as_it_closes, "as it closes"),
                                                   (calls.will_not_close, "ignored GeneratorExit")])
def test_what_a_generator_raises_as_it_closes_is_logged(caplog, function, message):
    """Nobody is there to catch it. The worker takes the next call."""
    with serving(1) as server:
        process = server.offload(os.getpid)
        with closing(server.offload_iter(function)) as items:
            next(items)
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "a call of the program's own: what an iteration raised after it was left" in record.getMessage()
        assert message in caplog.text
        assert server.offload(os.getpid) == process


def test_iterator_that_is_never_asked_costs_nothing():
    """The call is made when its first item is wanted."""
    with serving(1) as server:
        server.offload_iter(calls.numbers, 3)
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_done, stats.offloads_failed) == (0, 0, 0)


def test_worker_that_dies_ends_the_iteration():
    """The items before that have come."""
    with serving(1) as server:
        items = server.offload_iter(calls.yield_and_die)
        assert next(items) == 1
        with pytest.raises(WorkerDied, match="exit code 6"):
            next(items)
        assert server.offload(calls.square, 2) == 4
        assert server.stats().offloads_failed == 1


def test_worker_that_is_killed_in_the_loops_body_is_found_out_about():
    """At the next item, or when the loop is left."""
    for leave in (False, True):
        with serving(1) as server:
            items = server.offload_iter(calls.will_not_close)
            os.kill(next(items), signal.SIGKILL)
            with nullcontext() if leave else pytest.raises(WorkerDied):
                items.close() if leave else [*items]
            assert server.offload(calls.square, 2) == 4


def test_worker_that_died_while_idle_costs_nothing():
    """The iteration begins in a new one."""
    with pool(1) as workers:
        workers._idle[0].kill()
        assert list(iterate(workers, calls.numbers, 3)) == [0, 1, 2]


def test_iteration_that_kills_even_a_new_worker_is_not_tried_for_ever(monkeypatch):
    """As a call that does."""
    def refuse(each: Worker, *arguments: object) -> None:
        """End before the call begins."""
        each.kill()
        raise NotBegun

    monkeypatch.setattr(Worker, "exchange", refuse)
    with pool() as workers, pytest.raises(WorkerDied, match="as it received a call"):
        next(iterate(workers, calls.numbers, 1))


@EACH
def test_stop_that_forces_ends_the_iteration(executor, meeting):
    """A handler that waits for an item, or asks for the next one, gets ServerStopping."""
    handler = rows(meeting)
    with ThreadedTCPServer(LOOPBACK, handler, executor=executor).start() as server, connect(server) as client:
        client.sendall(b"9\n")
        meeting.welcome()
        meeting.dismiss(b"one")
        assert receive(client, 4) == b"one\n"
        meeting.welcome()
        with running(server.stop, 0):
            until(lambda: server._threaded_state.stopping.period.forced)
            meeting.dismiss(b"two")
            if executor != 2:
                meeting.welcome()  # as it closes
                meeting.dismiss()
        assert isinstance(handler.outcomes.get(timeout=GUARD), (ServerStopping, OSError))
        assert server.stats().offloads_failed == 1 or executor != 2


def test_no_iteration_begins_after_the_stop():
    """As no call does."""
    server = ThreadedTCPServer(LOOPBACK, executor=1)
    server.stop()
    with pytest.raises(ServerStopping):
        next(server.offload_iter(calls.numbers, 1))


def test_stop_between_two_items_ends_an_iteration_in_the_handlers_thread(serve):
    """The next item is not computed, and the generator is closed."""
    closed = []

    def produce():
        """Yield until the end."""
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    server = serve(ClientHandler)
    items = server.offload_iter(produce)
    next(items)
    server.shutdown()
    with pytest.raises(ServerStopping, match="ended this call"):
        next(items)
    assert closed
    assert server.stats().offloads_failed == 1


@pytest.fixture
def told_to_close(monkeypatch) -> threading.Event:
    """Know when a worker has been told to close its generator."""
    def send(each: Worker, kind: int) -> None:
        """Tell of it."""
        real(each, kind)
        if kind == CLOSE:
            told.set()

    real, told = Worker.send, threading.Event()
    monkeypatch.setattr(Worker, "send", send)
    return told


@pytest.mark.parametrize("leave", [reset, lambda client: None], ids=["reset", "disconnect"])
def test_client_that_goes_ends_the_iteration(leave, meeting, told_to_close):
    """Its handler is told, the generator is closed, and the worker is free."""
    handler = rows(meeting)
    with serving(1, handler) as server:
        process = server.offload(os.getpid)
        with connect(server) as client:
            client.sendall(b"9\n")
            meeting.welcome()
            meeting.dismiss(b"one")
            assert receive(client, 4) == b"one\n"
            meeting.welcome()
            leave(client)
            for each in server.clients.values():
                if leave is not reset:
                    each.disconnect()
            wait_until(told_to_close)
            meeting.dismiss(b"two")
            meeting.welcome()  # as it closes
            meeting.dismiss()
            assert isinstance(handler.outcomes.get(timeout=GUARD), ConnectionAbortedError)
        assert server.offload(os.getpid) == process


def test_client_that_goes_before_the_first_item_leaves_the_worker_usable(meeting, told_to_close):
    """The worker tells that it has begun in good time for the next call."""
    handler = rows(meeting)
    with serving(1, handler) as server:
        process = server.offload(os.getpid)
        client = connect(server)
        client.sendall(b"9\n")
        meeting.welcome()
        reset(client)
        wait_until(told_to_close)
        meeting.dismiss(b"one")
        meeting.welcome()  # as it closes
        meeting.dismiss()
        assert isinstance(handler.outcomes.get(timeout=GUARD), ConnectionAbortedError)
        os.kill(process, signal.SIGKILL)
        assert server.offload(calls.square, 2) == 4


def test_half_closed_client_gets_every_item(meeting):
    """It has sent all that it wants to, as netcat does."""
    with serving(1, rows(meeting)) as server, calling(ask, server, b"2\n") as outcome:
        for answer in (b"one", b"two", b"closed"):
            meeting.welcome()
            meeting.dismiss(answer)
    assert outcome == [b"one\ntwo\nend\n"]


def test_item_that_cannot_be_loaded_ends_the_iteration():
    """The error says why; the generator is closed, and the worker free."""
    with serving(1) as server:
        process = server.offload(os.getpid)
        items = server.offload_iter(calls.yield_a_traveller)
        assert next(items) == 1
        with pytest.raises(TypeError, match="cannot be loaded: not here"):
            next(items)
        assert server.offload(os.getpid) == process


def test_item_that_cannot_be_sent_ends_the_iteration():
    """The error has the function's name."""
    with serving(1) as server:
        items = server.offload_iter(calls.yield_a_lock)
        assert next(items) == 1
        with pytest.raises(TypeError, match="calls.yield_a_lock yielded cannot be sent back"):
            next(items)
        assert server.offload(calls.square, 2) == 4


@pytest.mark.parametrize("at", ["an item", "the end"])
def test_interrupted_wait_ends_the_worker(monkeypatch, at):
    """A signal handler has raised, and nobody knows what has been received."""
    def interrupt(*arguments, **keywords):
        """Raise as a signal handler does."""
        monkeypatch.undo()
        raise KeyboardInterrupt

    with pool(1) as workers:
        items = iterate(workers, calls.will_not_close)
        process = next(items)
        monkeypatch.setattr(worker.Worker, "receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(items) if at == "an item" else items.close()
        assert process not in [each._process.pid for each in workers._idle]
        monkeypatch.undo()


# Where it runs.

@pytest.mark.parametrize("kind", ["threads", "submit", "processes"])
def test_executor_of_the_programs_cannot_iterate(kind):
    """The error says which can."""
    with executor_of(kind) as executor, serving(executor) as server:
        with pytest.raises(TypeError, match="needs a number of worker processes, WorkerThreads, or None"):
            server.offload_iter(calls.numbers, 1)


def test_function_that_is_not_a_modules_is_named():
    """As for a call, at the first item."""
    with serving(1) as server, pytest.raises(TypeError, match="<lambda> cannot be sent"):
        next(server.offload_iter(lambda: iter([])))


@EACH
def test_iteration_keeps_its_place_until_it_is_over(executor):
    """Another call waits, and begins when the loop has ended."""
    with serving(executor, max_offloads=1) as server:
        items = server.offload_iter(calls.numbers, 2)
        assert next(items) == 0
        with calling(server.offload, calls.square, 3) as outcome:
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            assert not outcome
            assert list(items) == [1]
        assert outcome == [9]


def test_calls_of_a_generator_in_the_handlers_thread_use_its_place(serve):
    """They would wait for themselves; so would one that is made as the generator is closed."""
    server = serve(ClientHandler, max_offloads=1)
    found = []

    def produce():
        """Call in an iteration."""
        try:
            yield server.offload(calls.square, 2)
            yield next(server.offload_iter(calls.numbers, 1))
        finally:
            found.append(server.offload(calls.square, 3))

    with closing(server.offload_iter(produce)) as items:
        assert [next(items), next(items)] == [4, 0]
    assert found == [9]


def test_handler_that_computes_in_the_loop_leaves_its_gate(serve):
    """A slow loop keeps nobody else from a worker of their own."""
    gate = Gate()

    class Handler(LineHandler):
        """Is slow between two items."""

        def process(self, line):
            """Iterate, or compute."""
            if line:
                return b"%d" % self.offload(calls.square, int(line))
            for _ in self.offload_iter(calls.numbers, 20):
                gate.entered.set()
                wait_until(gate.release)
            return b"end"

    server = serve(Handler, executor=2)
    with connect(server) as slow:
        slow.sendall(b"\n")
        wait_until(gate.entered)
        assert ask(server, b"3\n4\n") == b"9\n16\n"
        gate.release.set()
        assert receive(slow, 4) == b"end\n"
        slow.close()


def test_dropped_iterator_frees_its_worker(serve):
    """The handler has kept none."""
    server = serve(ClientHandler, executor=1)
    next(server.offload_iter(calls.numbers, 9))
    until(lambda: server.stats().offloads_done == 1)
    assert server.offload(calls.square, 2) == 4


def test_handler_that_fails_in_the_loop_frees_its_worker(serve, caplog):
    """Its client is ended as always."""
    class Handler(LineHandler):
        """Fails."""

        def process(self, line):
            """Fail at the first item."""
            for _ in self.offload_iter(calls.numbers, 9):
                raise LookupError("in the loop")

    server = serve(Handler, executor=1)
    assert ask(server, b"\n") == b""
    until(lambda: server.stats().offloads_done == 1)
    assert "in the loop" in caplog.text
    with connect(server) as client:
        client.sendall(b"\n")
        assert receive_all(client) == b""


# The deadline.

@pytest.mark.parametrize("executor", [None, 1, WorkerThreads(1)], ids=["inline", "workers", "worker threads"])
def test_time_is_up_though_the_next_item_is_there(executor):
    """A function that is faster than its handler does not go on for ever."""
    with serving(executor) as server:
        server.offload(calls.square, 1)
        server.offload_timeout = 0.02
        with pytest.raises(TimeoutError, match="has not returned within 0.02 s"):
            for _ in server.offload_iter(calls.yield_for_ever):
                pass
        server.offload_timeout = None
        assert server.offload(calls.square, 3) == 9
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_done, stats.offloads_failed) == (0, 2, 1)


def test_iterator_that_leaves_its_call_takes_no_slots_from_others(serve):
    """It was made inside another call. The thread that uses it is inside none afterwards."""
    server, gate = serve(ClientHandler, max_offloads=1), Gate()
    assert list(server.offload(lambda: server.offload_iter(calls.numbers, 2))) == [0, 1]
    with running(server.offload, stay, gate):
        wait_until(gate.entered)
        server.at_offload_limit = "refuse"
        with pytest.raises(OffloadRefused):
            server.offload(calls.square, 3)
        gate.release.set()


def test_stop_that_kills_the_worker_is_what_the_one_who_waits_is_told(meeting):
    """Not that it has died."""
    with serving(1) as server:
        with calling(next, server.offload_iter(calls.meet_for_each, meeting.address, 1)) as outcome:
            meeting.welcome()
            server._threaded_state.stopping.period.force()
            server._threaded_state.offloads.give_up()
        assert isinstance(outcome[0], ServerStopping)
        meeting.dismiss()


def test_client_that_goes_as_the_worker_dies_is_what_the_handler_is_told_of():
    """There is no generator left to close."""
    def leave(*arguments: object) -> None:
        """Find that the client has gone."""
        raise CallerLeft(False)

    dead = SimpleNamespace(exchange=leave, is_alive=lambda: False)
    caller = Call(Period(), None, calls.numbers, (3,), {}, nullcontext)
    with pytest.raises(ConnectionAbortedError):
        next(iterations.iterate(dead, SimpleNamespace(close=bool), caller))


def test_iteration_that_a_stop_has_overtaken_is_told_so(monkeypatch):
    """Its caller would wait on, but for the stop."""
    def leave(*arguments: object) -> Iterator[Any]:
        """Find that nobody waits."""
        raise CallerLeft(True)
        yield

    monkeypatch.setattr(offloads, "iterate_in_worker", leave)
    with serving(1, drain_timeout=0, force_timeout=0) as server, pytest.raises(ServerStopping):
        next(server.offload_iter(calls.numbers, 3))


def test_call_that_a_stop_has_overtaken_does_not_begin():
    """The stop came when the call was on its way to its thread."""
    period = Period()
    period.force()
    with pytest.raises(ServerStopping):
        run_inline(Call(period, None, calls.fail, ("it ran",), {}, nullcontext))


def test_worker_of_an_iteration_that_is_left_after_its_time_is_ended_at_once():
    """It is not given the time to close its generator, of which there is none left."""
    ended = []
    iterations.close(SimpleNamespace(end=lambda: ended.append(True)), SimpleNamespace(is_late=lambda: True))
    assert ended == [True]
