"""What the tests of the offloading share: a handler, executors of every kind, and waiting for what happens inside."""
from __future__ import annotations

import concurrent.futures
import multiprocessing
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from threaded_echo import LineHandler, ServerStopping, ThreadedTCPServer

from .. import calls
from ..tools import GUARD, LOOPBACK, Gate, Meeting, running, wait_until


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
