"""A server that stands while clients are connected to it, and measures itself; prints one JSON object.

``python -m tests.benchmarks.standing_server many|idle PEER COUNT LOAD_GENERATOR [SECONDS]``. PEER is one of `SERVERS`;
all of them echo by the same calls. SECONDS: how long an idle server is watched.
"""
from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from threaded_echo import ThreadedTCPServer

from .measure import switches
from .peers import ADDRESS, BACKLOG, CHUNK, ONE_CPU, Echo, StockServer

SECONDS = 3.0
"""How long an idle server is watched, unless the command says something else."""

BARE = "bare loop"
"""The name of `BareLoop` among the peers."""


class StoppingStock(StockServer):
    """Stock, with what its users write to end clients: its own closing would wait for them for ever."""

    block_on_close = True
    daemon_threads = False

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Keep the connection."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget it."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        """Stop the loop, end the clients, join the threads."""
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class BareLoop:
    """No server at all, but the least that a stop can be: a loop over sockets and a loop over threads."""

    def __init__(self) -> None:
        self.listener = socket.create_server(ADDRESS, backlog=BACKLOG)
        self.server_address = self.listener.getsockname()
        self.clients: list[tuple[socket.socket, threading.Thread]] = []

    def serve_forever(self) -> None:
        """Start a thread for each connection, until the listener is shut down."""
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                thread = threading.Thread(target=self.echo, args=[connection], daemon=True)
                self.clients.append((connection, thread))
                thread.start()

    @staticmethod
    def echo(connection: socket.socket) -> None:
        """Echo until the end of the stream."""
        with connection:
            while data := connection.recv(CHUNK):
                connection.sendall(data)

    def stop(self) -> None:
        """End the loop, end the clients, join the threads."""
        self.listener.shutdown(socket.SHUT_RDWR)
        for connection, _ in self.clients:
            with suppress(OSError):  # it has left
                connection.shutdown(socket.SHUT_RD)
        for _, thread in self.clients:
            thread.join()
        self.listener.close()


SERVERS: dict[str, Callable[[], Any]] = {
    BARE: BareLoop, "stock": partial(StoppingStock, ADDRESS, Echo),
    "threaded_echo": partial(ThreadedTCPServer, ADDRESS, Echo),
    ONE_CPU: partial(ThreadedTCPServer, ADDRESS, Echo, one_cpu=True),
}


@contextmanager
def clients(generator: str, port: int, count: int) -> Iterator[dict[str, float]]:
    """Connect so many clients, and hold them; yield the figures of that."""
    with subprocess.Popen([generator, str(port), "hold", str(count)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())


def resident() -> float:
    """Return the memory in use, in KB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1000


def one_more(port: int) -> float:
    """Return the seconds from a connect to its first echo: the median of some."""
    taken = []
    for _ in range(101):
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"x")
            client.recv(1)
            taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def main(benchmark: str, peer: str, count: int, generator: str, seconds: float = SECONDS) -> dict[str, float]:
    """Measure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = SERVERS[peer]()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    one_more(port)
    before = resident()
    with clients(generator, port, count) as connected:
        figures = {"connect_s": connected["seconds"], "kb_a_client": (resident() - before) / max(1, count)}
        if benchmark == "many":
            figures["one_more_us"] = one_more(port) * 1e6
        else:
            time.sleep(0.5)
            woken, used = switches(), time.process_time()
            time.sleep(seconds)
            figures["wakeups_a_second"] = (switches() - woken - 1) / seconds  # one is our own
            figures["cpu_ms_a_second"] = (time.process_time() - used) / seconds * 1000
        began = time.perf_counter()
        server.stop()
        figures["stop_s"] = time.perf_counter() - began
        figures["stop_ms"] = figures["stop_s"] * 1000
        assert threading.active_count() <= 2, "threads are left"
    return figures


if __name__ == "__main__":
    figures = main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], *map(float, sys.argv[5:]))
    print(json.dumps(figures), flush=True)
    os._exit(0)
