"""Calls worker processes, and measures that; prints one JSON object.

``python -m tests.benchmarks.worker_calls_program calls PEER SECONDS``, or ``sharing PEER SECONDS MEGABYTES``.
"""
from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from threaded_echo import ThreadedTCPServer

SPAWN = multiprocessing.get_context("spawn")
WARM_UP = 3


def same(value: Any) -> Any:
    """Return the argument."""
    return value


@contextmanager
def server(executor: Any) -> Iterator[Callable[[Any], Any]]:
    """Call through a server's executor."""
    with ThreadedTCPServer(("127.0.0.1", 0), executor=executor).start() as made:
        yield partial(made.offload, same)


@contextmanager
def pool(executor: Executor) -> Iterator[Callable[[Any], Any]]:
    """Call through an executor of the standard library's."""
    with executor:
        yield lambda value: executor.submit(same, value).result()


def send_back(connection: Connection) -> None:
    """Send each message back, at the priority of a worker process."""
    os.nice(10)
    while True:
        try:
            connection.send_bytes(connection.recv_bytes())
        except EOFError:
            return


@contextmanager
def pipe() -> Iterator[Callable[[Any], Any]]:
    """Send bytes through multiprocessing's pipe, and receive them."""
    def exchange(data: bytes) -> bytes:
        ours.send_bytes(data)
        return ours.recv_bytes()

    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=send_back, args=(theirs,))
    process.start()
    theirs.close()
    with ours:
        yield exchange
    process.join()


def send_back_from(source: Connection, target: Connection, size: int) -> None:
    """Send what comes through one pipe back through another one, without a new object for it."""
    os.nice(10)
    memory = memoryview(bytearray(size))
    while read_all(source.fileno(), memory):
        write_all(target.fileno(), memory)


def read_all(descriptor: int, memory: memoryview) -> bool:
    """Read until the memory is full; return False at the end of the stream."""
    done = 0
    while done < len(memory):
        count = os.readv(descriptor, [memory[done:]])
        if not count:
            return False
        done += count
    return True


def write_all(descriptor: int, memory: memoryview) -> None:
    """Write all of the memory."""
    done = 0
    while done < len(memory):
        done += os.write(descriptor, memory[done:])


@contextmanager
def bare_pipe(size: int) -> Iterator[Callable[[Any], Any]]:
    """Write and read pipes of the system's, always in the same memory: the least that can be done."""
    def exchange(data: bytes) -> None:
        write_all(writer.fileno(), memoryview(data))
        read_all(reader.fileno(), memory)

    (theirs, writer), (reader, back), memory = SPAWN.Pipe(False), SPAWN.Pipe(False), memoryview(bytearray(size))
    process = SPAWN.Process(target=send_back_from, args=(theirs, back, size))
    process.start()
    theirs.close()
    back.close()
    with reader:
        with writer:
            yield exchange
        process.join()


CALLS: dict[str, Callable[[], AbstractContextManager[Callable[[Any], Any]]]] = {
    "process pool": lambda: pool(ProcessPoolExecutor(1, SPAWN)), "thread pool": lambda: pool(ThreadPoolExecutor(1)),
    "threaded_echo, worker": lambda: server(1), "threaded_echo, inline": lambda: server(None),
}

SHARED: dict[str, tuple[Callable[[int], AbstractContextManager[Callable[[Any], Any]]], type]] = {
    "pipe": (lambda size: pipe(), bytes), "bare pipe, one memory": (bare_pipe, bytes),
    "process pool": (lambda size: pool(ProcessPoolExecutor(1, SPAWN)), bytes),
    "threaded_echo, bytes": (lambda size: server(1), bytes),
    "threaded_echo, bytearray": (lambda size: server(1), bytearray),
}


def times(call: Callable[[Any], Any], value: Any, seconds: float) -> list[float]:
    """Call for so long, after a few calls that are not measured; return what each took."""
    for _ in range(WARM_UP):
        call(value)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        call(value)
        taken.append(time.perf_counter() - start)
    return taken


def main(what: str, peer: str, seconds: float, megabytes: int = 0) -> dict[str, float]:
    """Measure a peer."""
    if what == "calls":
        with CALLS[peer]() as call:
            return {"us": statistics.median(times(call, 1, seconds)) * 1e6}
    make, kind = SHARED[peer]
    size = megabytes << 20
    with make(size) as call:
        taken = times(call, kind(size), seconds)
    return {"ms": statistics.median(taken) * 1e3, "best_ms": min(taken) * 1e3}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *map(int, sys.argv[4:]))))
