"""The servers that are compared. ``python -m tests.benchmarks.peers NAME BODY`` serves and prints its port.

Every server has the same handler body, as far as its kind allows, and the same backlog. BODY is ``echo``, or ``lines``
(each line is a message), or ``chat`` (each line is sent to all clients), or ``watched``: echo, while a thread reads
``clients`` and ``stats()`` ten times a second; or one of `OPTIONS` or `SHOWN`.
"""
from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import socket
import socketserver
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from threaded_echo import ClientHandler, EchoHandler, LineHandler, ThreadedTCPServer
from threaded_echo.command.live import make_output

ADDRESS = ("127.0.0.1", 0)
BACKLOG = 4096
CHUNK = 16384

ONE_CPU, SAME_BUFFER = "threaded_echo, one processor", "stock, same buffer"


OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "limits": {"max_clients": 10_000, "at_limit": "refuse", "max_clients_per_host": 10_000},
    "deadlines": {"idle_timeout": 60.0, "lifetime": 3600.0, "send_timeout": 30.0},
    "no reserve, no keep-alive": {"reserve_descriptors": 0, "keepalive": None},
}
"""Options whose cost is compared; the name of one is a BODY, too: echo, with those options."""


SHOWN = {"nothing logged": (False, False), "nothing logged, --live": (False, True),
         "messages logged": (True, False), "messages logged, --live": (True, True)}
"""What is shown on a terminal: whether messages are logged (by EchoHandler), and whether in the table of ``--live``.
The name of one is a BODY, too: echo, with the output of the command."""


class Echo(socketserver.BaseRequestHandler):
    """The same with a buffer as large as `ClientHandler`'s: the body that stock and this package share in `cost`."""

    def handle(self) -> None:
        """Echo."""
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


class EchoStock(socketserver.BaseRequestHandler):
    """As people write it, with a large buffer."""

    def handle(self) -> None:
        """Echo."""
        while data := self.request.recv(65536):
            self.request.sendall(data)


class LinesStock(socketserver.StreamRequestHandler):
    """Lines as socketserver has them."""

    def handle(self) -> None:
        """Echo each line."""
        for line in self.rfile:
            self.wfile.write(line)


class EchoOurs(ClientHandler):
    """Chunks as this package has them."""

    def process(self, data: bytes) -> bytes:
        """Echo."""
        return data


class LinesOurs(LineHandler):
    """Lines as this package has them."""

    def process(self, line: bytes) -> bytes:
        """Echo."""
        return line


class ChatStock(socketserver.StreamRequestHandler):
    """A chat as socketserver has it: one client that does not read holds up all."""

    everyone: set[socket.socket] = set()
    lock = threading.Lock()

    def handle(self) -> None:
        """Send each line to all."""
        with self.lock:
            self.everyone.add(self.request)
        for line in self.rfile:
            with self.lock:
                for other in self.everyone:
                    other.sendall(line)
        with self.lock:
            self.everyone.discard(self.request)


class ChatOurs(LineHandler):
    """A chat as this package has it."""

    server: ThreadedTCPServer

    def process(self, line: bytes) -> None:
        """Send to all."""
        self.server.broadcast(line + b"\n")


class StockServer(socketserver.ThreadingTCPServer):
    """Stock, but for the backlog: its own 5 would measure retransmissions."""

    request_queue_size = BACKLOG
    daemon_threads = True
    block_on_close = False


def announce(where: int | str) -> None:
    """Tell the port, or the address, to who waits for it."""
    print(where, flush=True)


def stock(body: str) -> None:
    """Serve with the standard library."""
    server = StockServer(ADDRESS, {"echo": EchoStock, "lines": LinesStock, "chat": ChatStock}.get(body, Echo))
    announce(server.server_address[1])
    server.serve_forever()


def same_buffer(body: str) -> None:
    """Serve with the standard library, and with a buffer as large as this package's."""
    stock("same")


def ours(body: str, **options: Any) -> None:
    """Serve with this package."""
    if body in SHOWN:
        return shown(*SHOWN[body])
    handlers = {"echo": EchoOurs, "lines": LinesOurs, "chat": ChatOurs,
                **dict.fromkeys(OPTIONS, EchoOurs)}
    server = ThreadedTCPServer(ADDRESS, handlers.get(body, Echo), **options, **OPTIONS.get(body, {}))
    if body == "watched":
        threading.Thread(target=watch, args=[server], daemon=True).start()
    announce(server.server_address[1])
    server.serve_forever()


def watch(server: ThreadedTCPServer) -> None:
    """Read what people look at, ten times a second."""
    while not server.stopping.wait(0.1):
        list(server.clients.values())
        server.stats()


def shown(logs_messages: bool, live: bool) -> None:
    """Serve with this package, and with what the command shows on a terminal, which takes all at once."""
    reads, writes = os.openpty()
    fcntl.ioctl(writes, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    subprocess.Popen(["cat"], stdin=reads, stdout=subprocess.DEVNULL)  # until this process ends
    os.close(reads)
    server = ThreadedTCPServer(ADDRESS, EchoHandler if logs_messages else EchoOurs)
    announce(server.server_address[1])
    os.environ["TERM"] = "xterm-256color"
    sys.stdout = open(writes, "w", encoding="utf-8")
    with make_output(logging.INFO, live, as_json=False) as output, output.showing(server):
        server.serve_forever()


def one_cpu(body: str) -> None:
    """Serve with this package, kept to one processor."""
    ours(body, one_cpu=True)


def streams(body: str, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Serve with asyncio's streams."""
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await (reader.readline() if body == "lines" else reader.read(CHUNK)):
            writer.write(data)
            await writer.drain()
        writer.close()

    everyone: set[asyncio.StreamWriter] = set()

    async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        everyone.add(writer)
        while line := await reader.readline():
            for other in everyone:
                other.write(line)
            await writer.drain()
        everyone.discard(writer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(chat if body == "chat" else echo, *ADDRESS, backlog=BACKLOG)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def protocols(body: str) -> None:
    """Serve with asyncio's protocols."""
    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Protocol, *ADDRESS, backlog=BACKLOG)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def uvloop_streams(body: str) -> None:
    """Serve with asyncio's streams on uvloop."""
    import uvloop
    streams(body, uvloop.new_event_loop)


def gevent(body: str) -> None:
    """Serve with gevent."""
    from gevent.server import StreamServer

    def echo(connection: Any, address: object) -> None:
        if body == "lines":
            with connection.makefile("rb") as lines:
                for line in lines:
                    connection.sendall(line)
        else:
            while data := connection.recv(CHUNK):
                connection.sendall(data)

    server = StreamServer(ADDRESS, echo, backlog=BACKLOG)
    server.init_socket()
    announce(server.server_port)
    server.serve_forever()


PEERS: dict[str, Callable[[str], None]] = {
    "stock": stock, SAME_BUFFER: same_buffer, "threaded_echo": ours, ONE_CPU: one_cpu, "asyncio streams": streams,
    "asyncio protocols": protocols, "uvloop streams": uvloop_streams, "gevent": gevent,
}


def installed() -> list[str]:
    """Name the peers that this interpreter has."""
    missing = [name for name in ("uvloop", "gevent") if find_spec(name) is None]
    return [name for name in PEERS if name.split()[0] not in missing]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    PEERS[sys.argv[1]](sys.argv[2])
