"""WorkerThreads as the executor of servers: their stops, sharing, the processors, calls within calls."""
from __future__ import annotations

import gc
import os
import threading
import weakref
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import ExitStack, closing

import pytest

from threaded_echo import (
    ClientHandler, LineHandler, ServerStopping, StopReport, ThreadedTCPServer, WorkerThreads, current_client)
from threaded_echo.offloading import thread_work
from threaded_echo.offloading.thread_work import ThreadCall
from threaded_echo.transport.waker import Waker

from .. import calls
from ..conftest import LOOPBACK
from ..tools import GUARD, Gate, ask, connect, receive, until, wait_until
from .test_threads import names_of_threads, run_script
from .tools import calling, meet_at, occupied, stay, wait_for


@pytest.fixture
def executor():
    """Two threads."""
    with WorkerThreads(2) as made:
        yield made


def stop_without_the_functions(server: ThreadedTCPServer) -> StopReport:
    """Stop, and give up when all handlers have ended."""
    with calling(server.stop, 0, GUARD) as outcome:
        until(lambda: not server.clients and not server.stats().threads_busy)
        server.stop(0, 0)
    return outcome[0]


def test_stop_reports_a_function_that_runs_on(executor, meeting):
    """It is a survivor, with its client, its thread and its lines. Calls that wait never begin."""
    server = ThreadedTCPServer(LOOPBACK, meet_at(meeting), executor=executor).start()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(3)]
        for number, client in enumerate(clients, 1):
            client.sendall(b"\n")
            wait_for(server, lambda stats: stats.offloads_running + stats.offloads_waiting == number)
        meeting.welcome()
        meeting.welcome()
        report = stop_without_the_functions(server)
        assert (report.forced, report.clean) == (3, False)
        assert [survivor.client.number for survivor in report.survivors] == [1, 2]
        for survivor in report.survivors:
            assert survivor.thread in threading.enumerate()
            assert not survivor.stack or "in meet" in survivor.stack[-1]  # without the GIL it may not be readable
        stats = server.stats()
        assert (stats.offloads_running, stats.offloads_waiting, stats.offloads_failed) == (2, 0, 1)
        meeting.dismiss()
        meeting.dismiss()
        wait_for(server, lambda stats: (stats.offloads_running, stats.offloads_failed) == (0, 3))
    assert not meeting.is_awaited()
    assert server.stop(0).clean


def test_second_stop_does_not_wait_for_what_the_first_has_given_up(executor, meeting, caplog):
    """Unless seconds are given. It is logged once."""
    server = ThreadedTCPServer(LOOPBACK, meet_at(meeting), executor=executor, drain_timeout=GUARD, force_timeout=GUARD)
    with connect(server.start()) as client:
        client.sendall(b"\n")
        meeting.welcome()
        assert len(stop_without_the_functions(server).survivors) == 1
        with calling(server.server_close) as closed:
            pass  # it returns, though the time-outs are long
        assert closed == [None] and len(server.stop().survivors) == 1
        assert caplog.text.count("still running after the stop") == 1
        with calling(server.stop, 0, GUARD) as outcome:
            meeting.dismiss()
        assert outcome[0].clean


def test_threads_end_with_the_last_server_that_uses_them(serve, executor):
    """And start again with the next one."""
    one = serve(ClientHandler, executor=executor)
    assert len(names_of_threads()) == 2, "they are there before the first client"
    other = serve(ClientHandler, executor=executor)
    one.stop()
    assert other.offload(calls.square, 3) == 9
    assert len(names_of_threads()) == 2
    other.shutdown()
    assert not names_of_threads()
    other.start()
    assert len(names_of_threads()) == 2
    assert other.offload(calls.square, 4) == 16
    other.stop()
    assert executor.submit(calls.square, 5).result(GUARD) == 25, "the program may go on"


def test_stop_cancels_only_the_calls_of_its_own_server(serve, executor, meeting):
    """Those of another one with the same threads, and what the program has submitted, go on."""
    one, other = [serve(meet_at(meeting), executor=executor) for _ in range(2)]
    with connect(one) as first, connect(one) as second, connect(other) as third:
        for client in (first, second):
            client.sendall(b"\n")
            meeting.welcome()
        third.sendall(b"\n")
        wait_for(other, lambda stats: stats.offloads_running == 1)
        future = executor.submit(calls.square, 3)
        with calling(one.stop, 0, GUARD) as outcome:
            until(lambda: not one.clients)
            meeting.dismiss()
            meeting.dismiss()
        assert outcome[0].clean
        meeting.welcome()
        meeting.dismiss()
        assert receive(third, 3) == b"go\n"
        assert future.result(GUARD) == 9


def test_stop_does_not_wait_for_what_the_program_runs_in_the_threads(serve, executor):
    """It is not the server's, and no survivor."""
    gate = Gate()
    server = serve(ClientHandler, executor=executor)
    future = executor.submit(stay, gate)
    wait_until(gate.entered)
    assert server.stop().clean
    assert not future.done()
    gate.release.set()


def test_call_that_waits_in_the_executor_is_cancelled(executor, meeting):
    """The program has filled all threads; the call's slot is free at once."""
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        for _ in range(2):
            executor.submit(calls.meet, meeting.address)
            meeting.welcome()
        with pytest.raises(TimeoutError):
            server.offload_within(0, calls.meet, meeting.address)
        assert server.stats().offloads_running == 0
        queue = executor._crew.queue
        queued = queue.qsize()
        with calling(server.offload, calls.meet, meeting.address) as outcome:
            until(lambda: queue.qsize() > queued)  # its slot comes before that
            executor.shutdown(wait=False, cancel_futures=True)
        assert isinstance(outcome[0], CancelledError)
        meeting.dismiss()
        meeting.dismiss()
    executor.shutdown()
    assert not meeting.is_awaited()


def test_executor_that_is_shut_down_says_so(executor):
    """Where a server starts with it, and at each call."""
    executor.shutdown()
    with ThreadedTCPServer(LOOPBACK, executor=executor) as server:
        with pytest.raises(RuntimeError, match="after shutdown"):
            server.offload(calls.square, 1)
        with pytest.raises(RuntimeError, match="after shutdown"):
            server.start()


def test_initializer_that_fails_fails_the_calls_of_a_server(caplog):
    """As a worker that has died, with the reason."""
    with WorkerThreads(1, initializer=calls.fail, initargs=("no model",)) as broken:
        with ThreadedTCPServer(LOOPBACK, executor=broken) as server:
            with pytest.raises(BrokenExecutor, match="initializer"):
                server.offload(calls.square, 1)
    assert "no model" in caplog.text


def test_call_within_a_call_needs_no_thread_of_its_own(serve):
    """With one thread it would wait for itself."""
    with WorkerThreads(1) as one:
        server = serve(ClientHandler, executor=one)
        assert server.offload(server.offload, server.offload, calls.square, 3) == 9
        assert server.offload(calls.square, 4) == 16


def test_function_that_stops_its_server_is_not_waited_for(executor):
    """Its handler is, and cannot end before the function has."""
    class Handler(LineHandler):
        """Stops the server from a worker thread."""

        def process(self, line):
            """Stop."""
            self.offload(lambda: reports.append(self.server.stop(0, GUARD)) or done.set())

    reports: list[object] = []
    done = threading.Event()
    server = ThreadedTCPServer(LOOPBACK, Handler, executor=executor).start()
    with connect(server) as client:
        client.sendall(b"\n")
        wait_until(done)
    assert reports[0].clean
    until(lambda: server.stop().clean)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform has no processor affinity")
def test_threads_are_not_kept_on_one_processor(serve):
    """Only the server's own are."""
    everywhere = os.sched_getaffinity(0)
    with WorkerThreads(1) as late:
        server = serve(ClientHandler, one_cpu=True)
        server.executor = late  # while it serves: a handler's call starts the threads

        class Handler(LineHandler):
            """Says where it and what it offloads may run."""

            def process(self, line):
                """Look."""
                return repr((os.sched_getaffinity(0), self.offload(calls.affinity))).encode()

        server.RequestHandlerClass = Handler
        here, there = eval(ask(server, b"\n"))
        assert (len(here), there) == (1, everywhere)
        executor = WorkerThreads(1)
        with ThreadedTCPServer(LOOPBACK, Handler, executor=executor, one_cpu=True).start() as other:
            assert eval(ask(other, b"\n"))[1] == everywhere


def test_function_in_a_thread_serves_no_client(serve, executor):
    """It runs in no handler's thread."""
    class Handler(LineHandler):
        """Asks who it is."""

        def process(self, line):
            """Ask here and there."""
            return repr((current_client() is self.client, self.offload(current_client))).encode()

    assert ask(serve(Handler, executor=executor), b"\n") == b"(True, None)\n"


def test_system_exit_of_a_function_is_the_handlers(serve, executor):
    """The thread lives on."""
    server = serve(ClientHandler, executor=executor)
    with pytest.raises(SystemExit):
        server.offload(calls.leave, 3)
    assert server.offload(calls.square, 3) == 9


def test_stop_before_a_call_is_put_to_the_threads_ends_it(serve, executor, monkeypatch):
    """The signal handler that stops the server runs just then."""
    server = serve(ClientHandler, executor=executor)
    put = executor.put

    def put_and_stop(work: ThreadCall) -> None:
        """Stop, too."""
        put(work)
        server._threaded_state.stopping.period.force()
        server._threaded_state.offloads.give_up()

    monkeypatch.setattr(executor, "put", put_and_stop)
    gate = Gate()
    with pytest.raises(ServerStopping):
        server.offload(stay, gate)
    gate.release.set()


def test_end_of_the_interpreter_does_not_wait_for_what_a_stop_has_left():
    """The stop has told of it already."""
    assert run_script("""
import logging, socket, threading
logging.disable()
from threaded_echo import LineHandler, ThreadedTCPServer, WorkerThreads
from threaded_echo.offloading import crew
crew.EXIT_TIMEOUT = 1000
begun = threading.Event()
def stay():
    begun.set()
    threading.Event().wait()
class Handler(LineHandler):
    def process(self, line):
        self.offload(stay)
server = ThreadedTCPServer(("127.0.0.1", 0), Handler, executor=WorkerThreads(1)).start()
with socket.create_connection(server.server_address) as client:
    client.sendall(b"\\n")
    begun.wait()
    print(server.stop(0, 0).clean)
    while server.clients:  # until the handler, too, has seen that the stop has given its call up
        threading.Event().wait(0.001)
""") == "False\n"


# One call, without a server.

def test_call_that_is_left_as_it_ends_has_ended():
    """Its caller does not leave it to a thread that is through with it."""
    waker, over = Waker(), []
    call = ThreadCall(lambda: 3, waker)
    call.run()
    assert not call.leave(lambda: over.append(1)) and not over
    assert call.is_over() and not call.is_left()
    waker.close()


def test_call_that_is_left_before_it_is_taken_up_never_begins():
    """Whatever happens to it in the queue."""
    waker, begun = Waker(), []
    call = ThreadCall(lambda: begun.append(1), waker)
    assert not call.leave(lambda: begun.append(2))
    call.run()
    call.cancel()
    assert not begun
    waker.close()


def test_submitted_call_that_nobody_waits_for_is_over_when_it_has_run():
    """Whatever it has raised."""
    future: thread_work.Future[int] = thread_work.Future()
    work = thread_work.Submitted(future, calls.fail, ("it",), {})
    assert not work.is_over() and not work.is_left()
    work.run()
    assert work.is_over() and isinstance(future.exception(0), LookupError)


@pytest.mark.parametrize("moment", ["start", "put"])
def test_stop_between_the_threads_and_the_call_leaves_no_thread(monkeypatch, moment):
    """The call never begins, and no server uses the threads any more."""
    begun, threads = threading.Event(), WorkerThreads(1)
    with ThreadedTCPServer(LOOPBACK, executor=None).start() as server:
        real = getattr(WorkerThreads, moment)

        def stop(each: WorkerThreads, *arguments: object) -> object:
            """Let a stop come first."""
            monkeypatch.undo()
            server.stop(0)
            return real(each, *arguments)

        server.executor = threads
        monkeypatch.setattr(WorkerThreads, moment, stop)
        with pytest.raises(ServerStopping):
            server.offload(begun.set)
    assert not begun.is_set() and not threads._servers
    until(lambda: not any("worker thread" in each.name for each in threading.enumerate()))


def leave_at_once(server: ThreadedTCPServer, model: object) -> None:
    """Be late before the thread takes the call up: it is busy with another server's."""
    gate = Gate()
    with ThreadedTCPServer(LOOPBACK, executor=server.executor).start() as other, occupied(other, gate):
        server.offload_within(0, calls.same, model)


def leave_an_iteration(server: ThreadedTCPServer, model: object) -> None:
    """Leave the loop early."""
    with closing(server.offload_iter(calls.same, [model, 2])) as items:
        next(items)
    raise TimeoutError


@pytest.mark.parametrize("leave", [leave_at_once, leave_an_iteration])
def test_call_that_was_left_does_not_keep_its_arguments(leave):
    """A cycle would keep them until the garbage collector comes, and a model may be large."""
    model = threading.Event()
    reference = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        with WorkerThreads(1) as one, ThreadedTCPServer(LOOPBACK, executor=one).start() as server:
            with pytest.raises(TimeoutError):
                leave(server, model)
            del model
            until(lambda: reference() is None)  # the thread is through with it in a moment
    finally:
        gc.enable()


def test_call_in_a_thread_that_two_servers_share_does_not_wait_for_it(executor):
    """Nor does one in what the program has submitted. There may be no other thread."""
    with WorkerThreads(1) as one, ExitStack() as stack:
        server, other = (stack.enter_context(ThreadedTCPServer(LOOPBACK, executor=one, max_offloads=1).start())
                         for _ in range(2))
        assert server.offload(lambda: other.offload(calls.square, 3)) == 9
        assert server.offload(lambda: list(other.offload_iter(calls.numbers, 2))) == [0, 1]
        assert one.submit(lambda: server.offload(calls.square, 4)).result(GUARD) == 16
        other.executor = executor
        assert server.offload(lambda: other.offload(threading.current_thread)) in executor._crew.threads
