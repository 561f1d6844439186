"""What tests share: clients, and handlers that say where they are and wait to be released."""
from __future__ import annotations

import importlib.util
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from threaded_echo import ThreadedTCPServer

GUARD = 50.0
"""Seconds after which a wait gives up: only a guard against hanging, never what a test measures."""


LOOPBACK = ("127.0.0.1", 0)


def connect(server: Any) -> socket.socket:
    """Connect to a server; the caller closes."""
    address = getattr(server, "server_address", server)
    family = socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(GUARD)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


def receive_all(client: socket.socket) -> bytes:
    """Receive until end of stream."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def receive(client: socket.socket, size: int) -> bytes:
    """Receive exactly ``size`` bytes, or what comes before the end of stream."""
    data = bytearray()
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return bytes(data)


def ask(server: Any, question: bytes = b"ping\n") -> bytes:
    """Connect, send, end the stream, and return all that comes back."""
    with connect(server) as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def wait_until(event: threading.Event) -> None:
    """Wait for an event, or fail."""
    assert event.wait(GUARD), "it did not happen in time"


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true of which no event tells, or fail."""
    deadline, pause = time.monotonic() + GUARD, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.001)  # and leave the processor to those that make it true


@contextmanager
def running(target: Callable[..., object], *arguments: Any, **keywords: Any) -> Iterator[threading.Thread]:
    """Run a function in a thread, which is joined at the end."""
    thread = threading.Thread(target=target, args=arguments, kwargs=keywords)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(GUARD)
        assert not thread.is_alive(), "the thread does not end"


def run_as_program(name: str) -> None:
    """Run a module as ``python3 -m`` does, in this process.

    `runpy` cannot, if pytest rewrites the assertions of the package, as it does if that is installed with its plugin.
    """
    spec = importlib.util.find_spec(name)
    assert spec and spec.origin
    source = Path(spec.origin).read_text(encoding="utf-8")
    exec(compile(source, spec.origin, "exec"), {"__name__": "__main__", "__spec__": spec})


def together(count: int, function: Callable[[], Any]) -> list[Any]:
    """Call a function in so many threads at once, and return what each returned."""
    barrier, results, errors = threading.Barrier(count), [], []

    def call() -> None:
        try:
            barrier.wait(GUARD)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert not errors, errors
    assert len(results) == count, "not all of them returned"
    return results


def subclass(**body: Any) -> type[ThreadedTCPServer]:
    """Make a server class with these members."""
    return type("Server", (ThreadedTCPServer,), body)


class Gate:
    """A handler class (`handler`) that says it has entered, and waits to be released, whatever a stop does."""

    def __init__(self, body: Callable[[Any], object] | None = None) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            """Enters, waits, runs the body."""

            def handle(self) -> None:
                """Wait at the gate."""
                gate.entered.set()
                wait_until(gate.release)
                if body is not None:
                    body(self)

        self.handler = Handler


class Flood:
    """A handler class (`handler`) that sends without end, and says (`sending`) when it has begun."""

    def __init__(self) -> None:
        self.sending = threading.Event()
        flood = self

        class Handler(socketserver.BaseRequestHandler):
            """Sends."""

            def handle(self) -> None:
                """Send until it fails."""
                while True:
                    self.request.sendall(b"x" * 100_000)
                    flood.sending.set()

        self.handler = Handler


class Echo(socketserver.BaseRequestHandler):
    """Echoes, and knows nothing of this package."""

    def handle(self) -> None:
        """Echo until end of stream."""
        while data := self.request.recv(4096):
            self.request.sendall(data)


class Meeting:
    """A listener for `calls.meet`: knows when an offloaded call has begun, and lets it go on."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(GUARD)
        self.address = self._listener.getsockname()
        self._guests: list[socket.socket] = []

    def welcome(self) -> int:
        """Wait until a call has begun; return its process."""
        guest, _ = self._listener.accept()
        guest.settimeout(GUARD)
        self._guests.append(guest)
        return int(guest.recv(16))

    def is_awaited(self) -> bool:
        """Whether a call has begun that nobody has welcomed."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def dismiss(self, answer: bytes = b"go") -> None:
        """Let the call return that began first, if it is still alive."""
        with self._guests.pop(0) as guest, suppress(OSError):
            guest.sendall(answer)

    def close(self) -> None:
        """Close all connections."""
        for connection in (self._listener, *self._guests):
            connection.close()
