"""A server that stands while clients are connected to it, and measures itself; prints one JSON object.

``python -m tests.benchmarks.standing_server many|idle PEER COUNT LOAD_GENERATOR``. PEER is ``stock`` or
``threaded_echo``; both run the same handler.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from threaded_echo import ThreadedTCPServer

from .peers import ADDRESS, Echo, StockServer

SECONDS = 3.0
"""How long an idle server is watched."""


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


def switches() -> int:
    """Count how often the threads of this process were put to sleep, which is how often they have woken."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
    return total


def main(benchmark: str, peer: str, count: int, generator: str) -> dict[str, float]:
    """Measure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server: Any = (StoppingStock if peer == "stock" else ThreadedTCPServer)(ADDRESS, Echo)
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
            time.sleep(SECONDS)
            figures["wakeups_a_second"] = (switches() - woken - 1) / SECONDS  # one is our own
            figures["cpu_ms_a_second"] = (time.process_time() - used) / SECONDS * 1000
        began = time.perf_counter()
        server.stop()
        figures["stop_s"] = time.perf_counter() - began
        figures["stop_ms"] = figures["stop_s"] * 1000
        assert threading.active_count() <= 2, "threads are left"
    return figures


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])), flush=True)
    os._exit(0)
