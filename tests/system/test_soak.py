"""Many connections of mixed manners, one after the other: what the server has at the end is what it had early on.

``SOAK=100000`` makes it as many; that takes minutes.
"""
from __future__ import annotations

import os
import random
import socket
import struct
import sys
import threading
from contextlib import ExitStack, suppress

import pytest

from threaded_echo.clients.threads import MAX_IDLE

from ..tools import GUARD, receive, receive_all, running, until
from .programs import last_lines, next_line, program, tell

CONNECTIONS = int(os.environ.get("SOAK", "3000"))
CLIENTS = 4

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="what a process has is read from Linux's files"),
              pytest.mark.timeout(60 + CONNECTIONS // 100)]

SERVER = """
import gc, sys
from threaded_echo import LineHandler, ThreadedTCPServer

class Service(LineHandler):
    def process(self, line):
        if line == b"fail":
            raise LookupError("as asked for")
        return line

server = ThreadedTCPServer(("127.0.0.1", 0), Service, max_clients=16, at_limit="refuse", limit_reply=b"busy\\n",
                           idle_timeout=0.05, lifetime=30, max_clients_per_host=16, logs_per_client=1).start()
print(server.server_address[1], flush=True)
for line in sys.stdin:
    gc.collect()
    print("collected", len(server.clients), flush=True)
report = server.stop()
stats = server.stats()
print(report.clean, stats.accepted == stats.finished + stats.refused, flush=True)
"""


class Clients:
    """Connects so many times, in several threads, each time in another manner."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._random = random.Random(7)
        self._lock = threading.Lock()
        self._left = 0

    def connect(self, count: int) -> None:
        """Connect ``count`` times."""
        self._left = count
        with ExitStack() as stack:
            for _ in range(CLIENTS):
                stack.enter_context(running(self._go_on))

    def _go_on(self) -> None:
        manners = [self.talk, self.reset, self.leave, self.fail, self.be_long, self.crowd, self.be_idle]
        while True:
            with self._lock:
                if self._left <= 0:
                    return
                self._left -= 1
                [manner] = self._random.choices(manners, [40, 10, 10, 5, 3, 1, 1])
            with socket.create_connection(self._address, GUARD) as client, suppress(OSError):  # refused, reset
                manner(client)

    def talk(self, client: socket.socket) -> None:
        """Talk, and end the stream."""
        for message in (b"hello\n", b"x" * 2000 + b"\n"):
            client.sendall(message)
            if receive(client, len(message)) == b"busy\n":
                return
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""

    def leave(self, client: socket.socket) -> None:
        """Go without a word."""

    def reset(self, client: socket.socket) -> None:
        """Reset in the middle of a line."""
        client.sendall(b"half")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def fail(self, client: socket.socket) -> None:
        """Have the handler fail."""
        client.sendall(b"fail\n")
        receive_all(client)

    def be_long(self, client: socket.socket) -> None:
        """Send a line that is too long."""
        client.sendall(b"x" * 70_000)
        receive_all(client)

    def be_idle(self, client: socket.socket) -> None:
        """Wait to be disconnected."""
        receive_all(client)

    def crowd(self, client: socket.socket) -> None:
        """Connect more clients than are let in."""
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(socket.create_connection(self._address, GUARD))


def has(process: int) -> tuple[int, int, int]:
    """Return the memory in KiB, the threads and the descriptors of a process."""
    with open(f"/proc/{process}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir(f"/proc/{process}/fd"))


def test_nothing_grows_with_the_number_of_connections():
    """Neither memory, but for idle threads, from a third of the way on, nor threads and descriptors."""
    with program(sys.executable, "-W", "ignore", "-c", SERVER, stderr=2) as process:
        clients = Clients(int(next_line(process)))

        def settle() -> tuple[int, int, int]:
            until(lambda: (tell(process, "collect"), next_line(process))[1] == "collected 0")
            return has(process.pid)

        clients.connect(CONNECTIONS // 3)
        before = settle()
        clients.connect(CONNECTIONS - CONNECTIONS // 3)
        after = settle()
        threads = max(0, after[1] - before[1])  # idle ones, of which many are kept
        # KiB. Without the GIL each thread has a heap, and those of the others go on filling up to some hundred KiB.
        each, others = (40, 0) if getattr(sys, "_is_gil_enabled", lambda: True)() else (500, 100)
        assert after[0] < before[0] + 3072 + each * threads + others * before[1], (before, after)
        assert after[1] <= MAX_IDLE + 10 and after[2] <= 100, (before, after)
        process.stdin.close()
        assert last_lines(process) == ["True True"]
