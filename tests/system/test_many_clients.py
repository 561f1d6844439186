"""Thousands of clients, more clients than descriptors, and clients that do nothing.

The figures are printed: ``pytest -s tests/system/test_many_clients.py`` shows them. ``MANY_CLIENTS=10000`` makes them
as many. That takes some seconds, and many more on CPython 3.13 without the GIL, which takes the longer to end a thread
the more have ended (its allocator goes through what they have left): 10,000 bare threads take it 15 to 25 s.
"""
from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from threaded_echo import Client, ThreadedTCPServer

from ..conftest import LOOPBACK
from ..tools import Echo, connect, receive, receive_all
from .programs import last_lines, module, next_line, program, tell

SPARE = 200  # descriptors for all that is no client
GUARD = 120.0

# More than a `select` could watch.
MANY = int(os.environ.get("MANY_CLIENTS", "2000"))

pytestmark = pytest.mark.usefixtures("soft_limit_is_restored")


@pytest.fixture
def soft_limit_is_restored() -> Iterator[None]:
    """Put the limit of descriptors back to what it was."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def room_for(wanted: int) -> int:
    """Raise the limit of descriptors, of this process and those it starts; return for how many clients it does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return needed - SPARE


@pytest.mark.timeout(3 * GUARD)
def test_stop_with_thousands_of_idle_clients_drains_and_joins_them_all() -> None:
    """Every one of them ends by itself, its thread is joined, and every client sees its connection end."""
    count, all_there = room_for(MANY), threading.Event()

    class Server(ThreadedTCPServer):
        """Tells when all are there. Its time-out is a guard: how long a stop takes is told, not tested."""

        drain_timeout = GUARD
        here = 0
        lock = threading.Lock()  # guards the count

        def client_connected(self, client: Client) -> None:
            """Count a client."""
            with self.lock:
                self.here += 1
                if self.here == count:
                    all_there.set()

    threads = threading.active_count()
    with Server(LOOPBACK, Echo).start() as server:
        port = str(server.server_address[1])
        with program(*module("tests.system.idle_clients", port, str(count))) as clients:
            assert next_line(clients) == "connected"
            assert all_there.wait(GUARD)
            assert len(server.clients) == count
            report = server.stop()
            print(f"\n{count} idle clients: stopped and joined in {report.seconds:.3f} s")
            assert (report.drained, report.forced, report.clean) == (count, 0, True)
            assert threading.active_count() == threads
            assert last_lines(clients) == [str(count)]
            assert clients.wait(GUARD) == 0


@contextmanager
def measured_server() -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """Run the server that measures itself; yields its process and its address."""
    with program(*module("tests.system.measured_server")) as process:
        yield process, (LOOPBACK[0], int(next_line(process)))


def order(process: subprocess.Popen[str], command: str) -> Any:
    """Have the server obey a command, and return its answer."""
    tell(process, command)
    return json.loads(next_line(process))


def stop(process: subprocess.Popen[str]) -> Any:
    """Have the server stop, and return its report."""
    assert process.stdin is not None
    process.stdin.close()
    [report] = last_lines(process)
    assert process.wait(GUARD) == 0
    return json.loads(report)


def say_hello(client: socket.socket) -> None:
    """Send a message."""
    client.sendall(b"hello")


def hear_hello(client: socket.socket) -> None:
    """Receive it again."""
    assert receive(client, 5) == b"hello"


def test_server_out_of_descriptors_waits_quietly_and_serves_everybody_later() -> None:
    """Clients queue; the log has a line and the processor nothing to do; with descriptors back, each is served."""
    with ExitStack() as stack:
        process, address = stack.enter_context(measured_server())
        order(process, "starve 10")
        clients = [stack.enter_context(connect(address)) for _ in range(30)]
        for client in clients:
            say_hello(client)
        assert "cannot accept" in order(process, "complaint")
        work = order(process, "errors 5")
        print("\nout of descriptors:", work)
        assert work["accepted"] <= 10
        assert work["accept errors"] >= 5
        assert work["seconds"] > 0.1  # a loop that spins fails five times in microseconds
        assert work["messages"] < work["accept errors"]
        order(process, "feed")
        for client in clients:
            hear_hello(client)
        assert stop(process) == {"drained": 30, "forced": 0, "survivors": 0}
        assert all(receive_all(client) == b"" for client in clients)


def test_descriptors_that_clients_give_back_serve_those_who_wait() -> None:
    """When clients leave, those who wait get in, without anybody's help."""
    with ExitStack() as stack:
        process, address = stack.enter_context(measured_server())
        order(process, "starve 10")
        clients = [stack.enter_context(connect(address)) for _ in range(30)]
        for client in clients:
            say_hello(client)
        assert "cannot accept" in order(process, "complaint")
        for client in clients:  # the first ten are served by now, each of the others as one of those leaves
            hear_hello(client)
            client.close()
        assert stop(process)["survivors"] == 0


def test_server_keeps_descriptors_for_its_handlers() -> None:
    """Clients queue while there are too few; files can be opened; with descriptors back, each client is served."""
    with ExitStack() as stack:
        process, address = stack.enter_context(measured_server())
        order(process, "reserve 8")
        order(process, "starve 24")
        clients = [stack.enter_context(connect(address)) for _ in range(30)]
        for client in clients:
            say_hello(client)
        assert "fewer than 8 descriptors" in order(process, "complaint")
        assert order(process, "open_files 7") == 7
        hear_hello(clients[0])
        clients[0].close()
        clients[1].close()
        order(process, "feed")
        for client in clients[2:]:
            hear_hello(client)
        assert order(process, "errors 0")["accept errors"] == 0
        assert stop(process)["survivors"] == 0


def test_idle_server_is_never_woken() -> None:
    """If nothing happens, no thread of the server runs, however many clients are connected: 0, and then 100."""
    with ExitStack() as stack:
        process, address = stack.enter_context(measured_server())
        assert order(process, "undisturbed 0.6") == {"seen": True, "threads": 1}
        clients = [stack.enter_context(connect(address)) for _ in range(100)]
        for client in clients:
            say_hello(client)
            hear_hello(client)
        assert order(process, "undisturbed 1.2") == {"seen": True, "threads": 101}
        assert stop(process) == {"drained": 100, "forced": 0, "survivors": 0}
