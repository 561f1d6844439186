"""The tutorial's session: real netcats against ``python -m threaded_echo``, run from the checkout.

Debian's nc and ncat do not return when a server merely ends the stream: they also wait for the end of their own input.
So a netcat that is to be there until the stop has an input that ends, which it is told not to pass on to the server.
"""
from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ..tools import GUARD
from .programs import last_lines, module, next_line, program, tell

Process = subprocess.Popen[str]

NETCAT = pytest.mark.skipif(shutil.which("nc") is None, reason="netcat-openbsd is not installed")
NCAT = pytest.mark.skipif(shutil.which("ncat") is None, reason="ncat is not installed")


@contextmanager
def server(*options: str) -> Iterator[tuple[Process, str]]:
    """Run the command line on a free port; yields its process and the port."""
    with program(*module("threaded_echo", "--port", "0", *options), stderr=subprocess.PIPE) as process:
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", next_line(process))
        assert found
        yield process, found[1]


def join(stack: ExitStack, process: Process, number: int, *command: str) -> Process:
    """Connect with a client's program, which is told of under the next number."""
    client = stack.enter_context(program(*command))
    assert re.fullmatch(rf"client {number} connected from 127\.0\.0\.1:\d+", next_line(process))
    return client


def say(process: Process, client: Process, number: int, message: str) -> None:
    """Send a message with a client's program: it is told of under the client's number, and comes back."""
    tell(client, message)
    assert next_line(process) == f"client {number}: {message}"
    assert next_line(client) == message


def end_input(client: Process) -> None:
    """End a client's input."""
    assert client.stdin is not None
    client.stdin.close()


def leave(process: Process, client: Process, number: int) -> None:
    """End the input of a client that passes that on: its program returns, and its leaving is told."""
    end_input(client)
    assert client.wait(GUARD) == 0
    assert next_line(process) == f"client {number} disconnected"


def ended(process: Process, clients: dict[int, Process]) -> None:
    """Check that a stopped server has ended these clients, and tells so."""
    for client in clients.values():
        assert client.wait(GUARD) == 0
        assert last_lines(client) == []
    first, *leaving, last = last_lines(process)
    plural = "" if len(clients) == 1 else "s"
    assert first == f"stopping: {len(clients)} client{plural} live"
    assert sorted(leaving) == [f"client {number} disconnected" for number in sorted(clients)]
    assert re.fullmatch(rf"stopped in \d+\.\d\d\d s: {len(clients)} drained, 0 forced, 0 still running", last)
    assert process.wait(GUARD) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def converse(stack: ExitStack, process: Process, port: str) -> dict[int, Process]:
    """Have three netcats connect and talk, and the second leave; return those that stay, by number."""
    options = {1: (), 2: ("-N",), 3: ()}  # -N: at the end of the input, end the stream too
    clients = {number: join(stack, process, number, "nc", *more, "127.0.0.1", port) for number, more in options.items()}
    for number, client in clients.items():
        say(process, client, number, f"hello, I am netcat {number}")
    say(process, clients[1], 1, "a second message")
    leave(process, clients.pop(2), 2)
    say(process, clients[3], 3, "one of us has left")
    for client in clients.values():
        end_input(client)
    return clients


@NETCAT
def test_netcat_returns_when_the_time_is_up() -> None:
    """It is told of, echoed, and then ended by nobody but the clock."""
    with ExitStack() as stack:
        process, port = stack.enter_context(server("--duration", "2"))
        client = join(stack, process, 1, "nc", "127.0.0.1", port)
        say(process, client, 1, "hello")
        end_input(client)
        ended(process, {1: client})


@NETCAT
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_three_netcats_until_a_signal_are_numbered_echoed_and_ended(number: signal.Signals) -> None:
    """Each message is printed under its client's number and echoed; those that stay return at the signal."""
    with ExitStack() as stack:
        process, port = stack.enter_context(server())
        clients = converse(stack, process, port)
        process.send_signal(number)
        ended(process, clients)


@NCAT
def test_ncats_until_a_signal_are_numbered_echoed_and_ended() -> None:
    """Nmap's netcat does as well: one leaves, and one is there to the end."""
    with ExitStack() as stack:
        process, port = stack.enter_context(server())
        stays = join(stack, process, 1, "ncat", "--no-shutdown", "127.0.0.1", port)
        leaves = join(stack, process, 2, "ncat", "127.0.0.1", port)
        say(process, stays, 1, "hello")
        say(process, leaves, 2, "hello, too")
        leave(process, leaves, 2)
        end_input(stays)
        process.send_signal(signal.SIGINT)
        ended(process, {1: stays})
