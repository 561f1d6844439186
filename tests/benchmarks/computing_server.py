"""The servers that compute. ``python -m tests.benchmarks.computing_server NAME`` prints its port, and serves.

Each answers a line with the same line: ``light`` at once, ``heavy`` after a job. Each ends with its standard input, and
ends its worker processes then. NAME may be the scheduler with its workers that the peer with Dask needs; it prints its
address, which that peer takes as a second argument.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import socketserver
import sys
import tempfile
import threading
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

from threaded_echo import LineHandler, ThreadedTCPServer, WorkerThreads

from .computing_job import compute
from .peers import ADDRESS, BACKLOG, StockServer, announce

HEAVY = b"heavy"
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

DASK, DASK_SCHEDULER, FREE_THREADED = "threaded_echo, Dask", "Dask scheduler", "threaded_echo, free-threaded"
THREADS, FREE_THREADS = "threaded_echo, WorkerThreads", "threaded_echo, WorkerThreads, free-threaded"
INTERPRETERS = "threaded_echo, InterpreterPoolExecutor"

NEEDS_FREE_THREADED = (FREE_THREADED, FREE_THREADS)
"""The peers that run in the interpreter without the GIL."""


def wait_for_the_end() -> None:
    """Return when standard input ends, which it does too when the benchmark is killed."""
    sys.stdin.read()


def warm_up(call: Callable[[], object]) -> None:
    """Run a job in each worker, so that none is still importing when it is measured."""
    with ThreadPoolExecutor(PROCESSORS) as threads:
        for done in [threads.submit(call) for _ in range(PROCESSORS)]:
            done.result()


class ComputingStock(socketserver.StreamRequestHandler):
    """Computing in the handler's thread, as socketserver has it."""

    def handle(self) -> None:
        """Answer each line."""
        for line in self.rfile:
            if line.rstrip() == HEAVY:
                compute()
            self.wfile.write(line)


class ComputingOurs(LineHandler):
    """Computing where the server's executor does."""

    def process(self, line: bytes) -> bytes:
        """Answer a line."""
        if line == HEAVY:
            self.offload(compute)
        return line


def stock() -> None:
    """Compute in the threads of the standard library's server."""
    server = StockServer(ADDRESS, ComputingStock)
    announce(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wait_for_the_end()


def ours(executor: Any = None) -> None:
    """Compute in an executor of this package's server."""
    with ThreadedTCPServer(ADDRESS, ComputingOurs, executor=executor).start() as server:
        if executor is not None:
            warm_up(partial(server.offload, compute))
        announce(server.server_address[1])
        wait_for_the_end()


def with_threads() -> None:
    """Compute in threads at a lower priority."""
    warnings.simplefilter("ignore")  # with the GIL they do not help, which is what is to be seen
    with WorkerThreads(PROCESSORS) as threads:
        ours(threads)


def with_interpreters() -> None:
    """Compute in interpreters of this process, each with a GIL of its own."""
    with concurrent.futures.InterpreterPoolExecutor(PROCESSORS) as interpreters:
        ours(interpreters)


def with_dask(scheduler: str) -> None:
    """Compute in the workers of a Dask scheduler."""
    import distributed
    with distributed.Client(scheduler) as client:
        ours(client)


def dask_scheduler() -> None:
    """Be a Dask scheduler, with a worker process of one thread for each processor."""
    import dask
    import distributed
    with (tempfile.TemporaryDirectory(prefix="dask-") as folder,
          dask.config.set(temporary_directory=folder),
          distributed.LocalCluster(n_workers=PROCESSORS, threads_per_worker=1, processes=True, host="127.0.0.1",
                                   dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0") as cluster):
        announce(cluster.scheduler_address)
        wait_for_the_end()


async def serve_streams(job: Callable[[], Awaitable[object]]) -> None:
    """Serve with asyncio's streams until standard input ends."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.rstrip() == HEAVY:
                await job()
            writer.write(line)
            await writer.drain()
        writer.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    server = await asyncio.start_server(answer, *ADDRESS, backlog=BACKLOG)
    announce(server.sockets[0].getsockname()[1])
    await ended.wait()


def coroutine() -> None:
    """Compute in the coroutine that serves the client."""
    async def job() -> None:
        compute()

    asyncio.run(serve_streams(job))


def threads_of_asyncio() -> None:
    """Compute in asyncio's own threads."""
    asyncio.run(serve_streams(partial(asyncio.to_thread, compute)))


def process_pool() -> None:
    """Compute in a pool of the standard library's."""
    with ProcessPoolExecutor(PROCESSORS, multiprocessing.get_context("spawn")) as pool:
        warm_up(lambda: pool.submit(compute).result())

        async def job() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, compute)

        asyncio.run(serve_streams(job))


PEERS: dict[str, Callable[..., None]] = {
    "stock": stock, "asyncio": coroutine, "asyncio, to_thread": threads_of_asyncio,
    "asyncio, process pool": process_pool, "threaded_echo, inline": ours,
    "threaded_echo, workers": partial(ours, PROCESSORS), FREE_THREADED: ours, THREADS: with_threads,
    FREE_THREADS: with_threads, INTERPRETERS: with_interpreters, DASK: with_dask,
}


def installed() -> list[str]:
    """Name the peers that this interpreter has."""
    missing = set() if find_spec("distributed") else {DASK}
    if not hasattr(concurrent.futures, "InterpreterPoolExecutor"):  # before Python 3.14
        missing.add(INTERPRETERS)
    return [name for name in PEERS if name not in missing]


if __name__ == "__main__":
    {**PEERS, DASK_SCHEDULER: dask_scheduler}[sys.argv[1]](*sys.argv[2:])
