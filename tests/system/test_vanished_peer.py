"""A peer that vanishes from the network, in a network of the test's own: neither a FIN nor a reset ever comes."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from threaded_echo import EchoHandler, ThreadedTCPServer
from threaded_echo.transport import kernel_timeouts

from ..tools import ask, until
from .programs import next_line, program

CLIENT = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
client.sendall(b"hello")
print(client.recv(5), flush=True)
sys.stdin.readline()
"""


def ip(*arguments: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[str]:
    """Make a namespace that is connected by a pair of interfaces; yield its name, which is also our interface's."""
    name = f"te{os.getpid() % 100_000}"
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid():
        pytest.skip("no network namespace can be made here")
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError:
        pytest.skip("no network namespace can be made here")
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", "10.213.77.1/24", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "address", "add", "10.213.77.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield name
    finally:
        for command in (("link", "delete", name), ("netns", "delete", name)):  # the first may not have been made
            subprocess.run(["ip", *command], capture_output=True)


def peer(network: str, server: ThreadedTCPServer) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run a client in the other network."""
    return program("ip", "netns", "exec", network, sys.executable, "-c", CLIENT, *map(str, server.server_address))


def test_peers_that_have_vanished_are_found(network, monkeypatch):
    """By keep-alive, as idle, as too old, and by a send: a server each. Nothing is left of the one who is not there.

    Other clients, who are on another way, are served meanwhile.
    """
    # The shortest time of the kernel is a second: from that on, give up after one probe without an answer, not four.
    monkeypatch.setattr(kernel_timeouts, "_PROBES", 1)
    wanted = [({"keepalive": 1.0}, None), ({"idle_timeout": 1.0}, "idle"), ({"lifetime": 2.0}, "lifetime"),
              ({"send_timeout": 1.0}, "send")]
    with ExitStack() as stack:
        found = []
        for options, reason in wanted:
            server = stack.enter_context(ThreadedTCPServer(("10.213.77.1", 0), EchoHandler, **options).start())
            assert next_line(stack.enter_context(peer(network, server))) == "b'hello'"
            [client] = server.clients.values()
            found.append((server, client, reason))
        ip("link", "set", network, "down")
        client.send(b"are you there?")  # the kernel sends it again for as long as send_timeout says
        for server, client, reason in found:
            until(lambda server=server, client=client: ask(server) == b"ping\n" and client.state == "gone")
            assert client.reason == reason
            until(lambda server=server: not server.clients)
            assert server.stats().failed == 0
            assert server.stop().clean
