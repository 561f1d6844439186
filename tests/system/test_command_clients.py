"""Bad clients and bad handlers of the command: they harm nobody else."""
from __future__ import annotations

import re
import socket
import struct

from ..tools import ask, connect, receive
from .commands import command, handlers

BUG = """
class Divide(LineHandler):
    def process(self, line):
        return str(100 // int(line)).encode()
"""


def test_handler_with_a_bug_costs_its_client_only(tmp_path):
    """Standard error has the traceback under the client's number, and the others are served, before and after."""
    with command("--handler", "handlers:Divide", folder=handlers(tmp_path, BUG)) as server:
        address = server.address()
        with connect(address) as other:
            other.sendall(b"10\n")
            assert receive(other, 3) == b"10\n"
            assert ask(address, b"0\n") == b""
            other.sendall(b"20\n")
            assert receive(other, 2) == b"5\n"
            assert ask(address, b"50\n") == b"2\n"
        server.lines_to("client 1 disconnected")
        server.signal()
        status, _, errors = server.end()
    assert status == 0
    assert errors.startswith("threaded_echo: client 2: its handler has failed\nTraceback (most recent call last):\n")
    assert f"{tmp_path / 'handlers.py'}" in errors
    assert errors.splitlines()[-1].startswith("ZeroDivisionError: ")
    assert errors.count("Traceback") == 1


def test_clients_that_reset_at_once_are_noticed_by_nobody():
    """The clients may be gone before they are accepted, or after."""
    with command() as server:
        address = server.address()
        with connect(address) as other:
            for _ in range(20):
                client = connect(address)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            other.sendall(b"still here\n")
            assert receive(other, 11) == b"still here\n"
        assert ask(address) == b"ping\n"
        server.signal()
        status, lines, errors = server.end()
    assert (status, errors) == (0, "")
    assert "client 1: still here" in lines
    assert any(re.fullmatch(r"client \d+: ping", line) for line in lines)
    assert sum(line.endswith("disconnected") for line in lines) == sum("connected from" in line for line in lines) >= 2
