"""Clients of every kind, while others are disconnected and the server is stopped and started anew.

``RESTARTS=1000`` makes it as often; that takes a minute, and pytest needs ``--timeout 0`` for it.
"""
from __future__ import annotations

import errno
import logging
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from threaded_echo import ClientHandler, ThreadedTCPServer

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, running, together

SEED = 20240229
RESTARTS = int(os.environ.get("RESTARTS", "20"))
CLIENT_THREADS = 6
KINDS = {"talk", "half_close", "reset", "vanish", "wait", "cut off", "refused",
         "disconnect", "shutdown", "stop", "stop by many"}

# An address of the servers' own: while none listens, nobody else's connection is given their port. Each client thread
# has its own too: a connection to an address from the same one might be given the very port that it is for.
ADDRESSES = "127.0.3.{}" if sys.platform == "linux" else LOOPBACK[0]


class Chunks(ClientHandler):
    """Echoes, by this package's own handler."""

    def process(self, data: bytes) -> bytes:
        """Return the chunk."""
        return data


class Load:
    """What one thread does as a client, again and again, until it is over."""

    def __init__(self, number: int, address: tuple[str, int], over: threading.Event) -> None:
        self.address = address
        self.source = (ADDRESSES.format(number + 2), 0)
        self.over = over
        self.random = random.Random(SEED + number)
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        """Be a client of a random kind until it is over."""
        kinds = [self.talk, self.half_close, self.reset, self.vanish, self.wait]
        while not self.over.is_set():
            kind = self.random.choice(kinds)
            try:
                with socket.create_connection(self.address, GUARD, self.source) as client:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    kind(client)
            except ConnectionRefusedError:
                self.done["refused"] += 1
                self.over.wait(0.001)  # not to take the processor from who starts the next server
            except OSError as error:  # the server was stopped, or has disconnected this client
                if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                    raise  # the guard's, for example: somebody was forgotten
                self.done["cut off"] += 1
            else:
                self.done[kind.__name__] += 1

    def talk(self, client: socket.socket) -> None:
        """Send, and read what comes back, a few times; then leave."""
        for _ in range(self.random.randrange(1, 5)):
            data = self.send(client)
            back = b""
            while len(back) < len(data):
                piece = client.recv(65536)
                if not piece:
                    return self.check(data, back)
                back += piece
            assert back == data

    def half_close(self, client: socket.socket) -> None:
        """Send, end the stream, and read until its end."""
        data, back = self.send(client), b""
        try:
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                back += piece
        finally:
            self.check(data, back)

    def reset(self, client: socket.socket) -> None:
        """Send, and reset the connection."""
        self.send(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def vanish(self, client: socket.socket) -> None:
        """Leave, perhaps without a word, and without reading."""
        if self.random.random() < 0.5:
            self.send(client)

    def wait(self, client: socket.socket) -> None:
        """Say something, and idle until the server ends the connection."""
        data = self.send(client)
        self.check(data, b"".join(iter(lambda: client.recv(65536), b"")))

    def send(self, client: socket.socket) -> bytes:
        """Send some bytes that are recognised."""
        data = self.random.randbytes(self.random.choice([1, 100, 10_000]))
        client.sendall(data)
        return data

    def check(self, data: bytes, back: bytes) -> None:
        """What has come back is what was sent, or its beginning."""
        assert data.startswith(back)


class Operator:
    """Starts servers, stops them, and has each of their counts checked."""

    def __init__(self) -> None:
        self.random = random.Random(SEED)
        self.server = self.make((ADDRESSES.format(1), 0))
        self.done: Counter[str] = Counter()
        self.accepted = 0

    def make(self, address: tuple[str, int]) -> ThreadedTCPServer:
        """Start a server of a random kind."""
        handler = self.random.choice([Echo, Chunks])
        return ThreadedTCPServer(address, handler, reuse_threads=self.random.random() < 0.7).start()

    def disconnect_some(self, over: threading.Event) -> None:
        """Disconnect a client now and then, and look at the counts, until it is over."""
        choose = random.Random(SEED - 1).choice
        while not over.wait(0.002):
            server = self.server
            if clients := list(server.clients.values()):
                choose(clients).disconnect()
                self.done["disconnect"] += 1
            stats = server.stats()
            assert stats.accepted == stats.live + stats.finished + stats.refused
            assert stats.live <= stats.peak

    def restart(self) -> None:
        """Stop the server one way or another, and start it or its successor."""
        kind = self.random.choice(["shutdown", "stop", "stop by many"])
        if kind == "shutdown":
            self.server.shutdown()
            assert not self.server.clients
            self.server.start()
        else:
            reports = together(3 if kind == "stop by many" else 1, self.server.stop)
            assert all(report.clean for report in reports)
            self.retire()
            self.server = self.make(self.server.server_address)
        self.done[kind] += 1

    def retire(self) -> None:
        """Check that a server that has been stopped has nothing left."""
        stats = self.server.stats()
        assert stats.accepted == stats.finished + stats.refused
        assert (stats.live, stats.threads_busy, stats.threads_idle) == (0, 0, 0)
        assert not self.server.clients
        self.accepted += stats.accepted


def kinds_done(*threads: Load | Operator) -> set[str]:
    """Name what has happened at least once."""
    return {kind for thread in threads for kind in list(thread.done)}  # a list at once, as others add to it


def test_clients_of_every_kind_while_servers_come_and_go_leave_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is left, nothing fails, nothing is logged as an error, and nobody gets bytes that are not their own."""
    operator, over = Operator(), threading.Event()
    loads = [Load(number, operator.server.server_address, over) for number in range(CLIENT_THREADS)]
    with ExitStack() as stack:
        stack.callback(lambda: operator.server.stop(drain=0))
        for load in loads:
            stack.enter_context(running(load.run))
        stack.enter_context(running(operator.disconnect_some, over))
        stack.callback(lambda: operator.server.stop())  # ahead of the joins: it ends those that wait
        stack.callback(over.set)
        deadline, restarts = time.monotonic() + GUARD, 0
        while restarts < RESTARTS or kinds_done(operator, *loads) != KINDS and time.monotonic() < deadline:
            over.wait(operator.random.uniform(0.005, 0.1))
            operator.restart()
            restarts += 1
    operator.retire()
    print(f"{operator.accepted} clients:", dict(sum((load.done for load in loads), operator.done)))
    assert kinds_done(operator, *loads) == KINDS
    assert operator.accepted > 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
