"""The attacks and faults of the README's table: what a hostile or failing client does, again and again."""
from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..tools import GUARD, connect, receive, running

CERTIFICATE = Path(__file__).parents[1] / "transport" / "certificate.pem"

Step = Callable[[Any, ExitStack], Callable[[], object]]


class Attack(NamedTuple):
    """One attack: how it begins, the options of the server that meets it, and how often it is repeated."""

    begin: Step
    options: dict[str, Any]
    tls: bool
    times: int


ATTACKS: dict[str, Attack] = {}


def attack(name: str, *, tls: bool = False, times: int = 50, **options: Any) -> Callable[[Step], Step]:
    """List a function as an attack. It is given the server and a stack, and returns what is done again and again."""
    def add(begin: Step) -> Step:
        ATTACKS[name] = Attack(begin, options, tls, times)
        return begin
    return add


@contextmanager
def under_attack(name: str, server: Any) -> Iterator[threading.Event]:
    """Attack a server, in a thread of its own; the event is set when that was done often enough, but it goes on."""
    over, enough = threading.Event(), threading.Event()
    with ExitStack() as stack:
        step = ATTACKS[name].begin(server, stack)

        def go_on() -> None:
            try:
                for number in itertools.count(1):
                    with suppress(OSError):  # the server has ended or refused it
                        step()
                    if number == ATTACKS[name].times:
                        enough.set()
                    if over.wait(0.001 * enough.is_set()):  # it goes on, and leaves the processors to the others
                        return
            finally:
                enough.set()  # also if it has failed

        with running(go_on):
            try:
                yield enough
            finally:
                over.set()


def plain(server: Any) -> socket.socket:
    """Connect, without TLS."""
    client = connect(server)
    client.settimeout(1)  # an attacker does not wait for long
    return client


def reset(client: socket.socket) -> None:
    """Close with a reset."""
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def standing(server: Any, stack: ExitStack, count: int) -> list[socket.socket]:
    """Connect some clients that stay."""
    return [stack.enter_context(plain(server)) for _ in range(count)]


@attack("a slow trickle: one byte now and then, and never a line's end", lifetime=30.0)
def trickle(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Send a byte."""
    clients = standing(server, stack, 10)
    return lambda: [client.send(b"x") for client in clients]


@attack("clients that connect and say nothing", idle_timeout=30.0)
def silence(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Connect, and be silent."""
    standing(server, stack, 50)
    return lambda: stack.enter_context(plain(server)) if len(server.clients) < 200 else None


@attack("resets at every point of a connection")
def resets(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Reset after the connect, in a line, after a line, and in its reply."""
    def step() -> None:
        for data, reads in ((b"", 0), (b"half a li", 0), (b"line\n", 0), (b"line\n" * 1000, 1)):
            client = plain(server)
            try:
                client.sendall(data)
                client.recv(reads) if reads else None
            finally:
                reset(client)

    return step


@attack("a line without an end")
def endless_line(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Send more than a line may have."""
    def step() -> None:
        with plain(server) as client:
            client.sendall(b"x" * 100_000)
            client.recv(1)

    return step


@attack("a flood of connections from one host", times=300, max_clients_per_host=20)
def flood(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Connect from one address, and keep what is let in."""
    standing(server, stack, 20)

    def step() -> None:
        with plain(server) as client:
            assert client.recv(1) == b"", "it was let in"

    return step


@attack("a flood of connections from many hosts", times=300, max_clients=40, at_limit="refuse", limit_reply=b"busy\n")
def floods(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Connect from another address each time, and leave in between, as the others do not fit."""
    def step() -> None:
        source = f"127.1.{random.randrange(250)}.{random.randrange(1, 250)}"
        with socket.create_connection(server.server_address, 1, (source, 0)) as client:
            client.sendall(b"x")

    return step


@attack("clients that send and never read", send_timeout=1.0)
def never_reads(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Fill the connection with replies."""
    clients = standing(server, stack, 3)
    for client in clients:
        client.settimeout(0.01)
    return lambda: [client.sendall(b"a line whose reply nobody reads\n" * 10_000) for client in clients]


@attack("TLS handshakes that stall, before their first byte and in the middle", tls=True, times=20,
        handshake_timeout=1.0)
def stalled_handshakes(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Begin, and say no more."""
    def step() -> None:
        for hello in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
            stack.enter_context(plain(server)).sendall(hello)

    return lambda: step() if len(server.clients) < 50 else None


@attack("garbage in place of a TLS handshake", tls=True)
def garbage_handshakes(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Send random bytes, or plain text."""
    chance = random.Random(3)

    def step() -> None:
        for data in (chance.randbytes(500), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + chance.randbytes(50)):
            with plain(server) as client:
                client.sendall(data)
                client.recv(100)

    return step


@attack("resets in a TLS handshake", tls=True)
def handshake_resets(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Send the beginning of a client's hello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()

    def step() -> None:
        for size in (1, 5, len(hello) // 2, len(hello)):
            client = plain(server)
            try:
                client.sendall(hello[:size])
            finally:
                reset(client)

    return step


@attack("PROXY headers from hosts that are no proxies", proxy_protocol=("10.0.0.0/8",))
def forged_header(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Claim to be somebody else."""
    def step() -> None:
        with plain(server) as client:
            client.sendall(b"PROXY TCP4 10.1.2.3 10.0.0.1 1000 2000\r\nhello\n")
            assert client.recv(100) == b"", "it was believed"

    return step


@attack("broken PROXY headers from a proxy", times=15, proxy_protocol=("127.0.0.2/32",), handshake_timeout=0.3)
def broken_header(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Send headers that are none, or never end."""
    chance = random.Random(4)
    signature = b"\r\n\r\n\0\r\nQUIT\n"

    def step() -> None:
        for data in (b"PROXY TCP4 nonsense\r\n", b"PROXY " + b"x" * 500, signature + b"\x21\x11\xff\xff",
                     signature + chance.randbytes(60), chance.randbytes(200), b"PROXY TC"):
            with socket.create_connection(server.server_address, 1, ("127.0.0.2", 0)) as client:
                client.sendall(data)
                client.recv(100) if data != b"PROXY TC" else None

    return step


@attack("a flood of lines and of failures for the log")
def log_flood(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Send lines that are logged, and lines on which the handler fails."""
    def step() -> None:
        with plain(server) as client:
            client.sendall(b"\x1b[2J a line\r that drives a terminal\n" * 500)
            client.sendall(b"fail\n")
            while client.recv(65536):
                pass

    return step


@attack("descriptors that run out", times=10, reserve_descriptors=0)
def no_descriptors(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Take all that there are, but for what the test itself needs."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300), hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    taken: list[socket.socket] = []
    stack.callback(lambda: [client.close() for client in taken])

    def step() -> None:
        while len(taken) < 200:
            try:
                taken.append(plain(server))
            except OSError:
                break
        while len(taken) > 100:  # now there is room again
            taken.pop().close()

    return step


@attack("threads that cannot start", reuse_threads=False)
def no_threads(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Fail each second start of a handler thread."""
    start, turn = threading.Thread.start, iter(range(10**9))

    def fails(thread: threading.Thread) -> None:
        if thread.name.startswith("client-handler") and next(turn) % 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = fails  # type: ignore[method-assign]
    stack.callback(setattr, threading.Thread, "start", start)

    def step() -> None:
        with plain(server) as client:
            client.sendall(b"hello\n")
            client.recv(100)

    return step


@attack("a worker process that reads nothing, and calls that fill the pipe to it", times=10, executor=1, max_offloads=3)
def stopped_worker(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Stop the worker, and send it more than a pipe holds."""
    with plain(server) as client:  # the worker has begun when it has answered
        client.settimeout(GUARD)
        client.sendall(b"compute\n")
        assert receive(client, 8) == b"1000000\n"
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)

    def step() -> None:
        if len(server.clients) < 20:
            stack.enter_context(plain(server)).sendall(b"compute\n")

    return step


@attack("a clock that jumps", idle_timeout=30.0, lifetime=60.0)
def jumping_clock(server: Any, stack: ExitStack) -> Callable[[], object]:
    """Set the time of day forth and back by a day."""
    import time

    now, chance = time.time, random.Random(5)
    time.time = lambda: now() + chance.choice((-86400, 86400))  # type: ignore[assignment]
    stack.callback(setattr, time, "time", now)
    return resets(server, stack)
