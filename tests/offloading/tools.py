"""What the tests of the offloading share: a handler, executors of every kind, and waiting for what happens inside."""
from __future__ import annotations

import concurrent.futures
import multiprocessing
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any


from threaded_echo import LineHandler, ServerStopping, ThreadedTCPServer, WorkerThreads
from threaded_echo.clients.period import Period
from threaded_echo.offloading import channel
from threaded_echo.offloading.messages import pickle_call
from threaded_echo.offloading.pipe_channel import PipeChannel
from threaded_echo.offloading.processes import Workers
from threaded_echo.offloading.threads import warned

from .. import calls
from ..tools import GUARD, LOOPBACK, Gate, Meeting, running, until, wait_until

warned.set()  # that WorkerThreads compute one at a time is known here


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


class Submitter:
    """An executor that has only ``submit``: a thread for each call, and futures that cannot be cancelled."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def submit(self, function, /, *args, **kwargs):
        """Call it in a thread."""
        class Obstinate(Future):
            """A future that cannot be cancelled."""

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
    elif kind == "worker threads":
        with WorkerThreads(2) as worker_threads:
            yield worker_threads
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


def meet_at(meeting: Meeting) -> type[Meet]:
    """Make a handler class that offloads calls to a meeting."""
    return type("Handler", (Meet,), {"address": meeting.address})


@contextmanager
def meeting_server(kind: str, meeting: Meeting, **options: Any) -> Iterator[ThreadedTCPServer]:
    """Serve with such handlers, and with an executor of a kind."""
    with executor_of(kind) as executor:
        with ThreadedTCPServer(LOOPBACK, meet_at(meeting), executor=executor, **options).start() as server:
            yield server


def wait_for(server: ThreadedTCPServer, what: Callable[[Any], bool]) -> None:
    """Wait until ``what`` is true of the statistics: the server reports no event for what happens inside."""
    until(lambda: what(server.stats()))


def stay(gate: Gate) -> None:
    """Keep a slot until the gate opens."""
    gate.entered.set()
    wait_until(gate.release)


@contextmanager
def occupied(server: ThreadedTCPServer, gate: Gate) -> Iterator[threading.Thread]:
    """Run a call that keeps its slot until the gate opens, or the context is left."""
    with running(server.offload, stay, gate) as thread:
        wait_until(gate.entered)
        try:
            yield thread
        finally:
            gate.release.set()


def reset(client: socket.socket) -> None:
    """Close a connection by a reset, which the other side notices at once."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextmanager
def pool(count: int = 0, period: Period | None = None) -> Iterator[Workers]:
    """Have so many workers, and end them and all others that have been started."""
    made, period = Workers(), period or Period()
    try:
        made.start(count, period, nullcontext)
        yield made
    finally:
        period.force()
        made.close()


def call_in(workers: Workers, function: Callable[..., Any], /, *args: Any, period: Period | None = None) -> Any:
    """Call a function in a worker."""
    with pickle_call(function, args, {}) as message:
        return workers.call(message, 3, period or Period(), nullcontext)


@contextmanager
def channels() -> Iterator[tuple[Any, Any]]:
    """Have both ends of a channel in this process: the server's and the worker's."""
    ours, theirs = (channel.open_end(end, bool) for end in channel.make_ends(multiprocessing.get_context("spawn")))
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


@contextmanager
def pipes() -> Iterator[tuple[Any, Any]]:
    """Have both ends of a channel as a platform without Unix sockets has them."""
    one, other = multiprocessing.Pipe()
    reader, writer = multiprocessing.Pipe(duplex=False)
    ours, theirs = PipeChannel(one, reader), PipeChannel(other, writer)
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


@contextmanager
def calling(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[list[Any]]:
    """Call a function in a thread. Its result or exception is in the list when the context is left."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(target(*args, **kwargs))
        except BaseException as error:
            outcome.append(error)

    with running(run):
        yield outcome


KINDS = ["inline", "workers", "worker threads", "threads", "submit", "processes"]
if hasattr(concurrent.futures, "InterpreterPoolExecutor"):
    KINDS.append("interpreters")
