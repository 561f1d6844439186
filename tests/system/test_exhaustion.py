"""A process that runs out of memory: it costs the clients that want more than there is, and nobody else."""
from __future__ import annotations

import socket
import sys

import pytest

from ..tools import GUARD, receive, receive_all
from .programs import last_lines, next_line, program, tell

pytest.importorskip("resource", reason="the platform cannot bound a process's memory")

SERVER = """
import resource, sys
from threaded_echo import LineHandler, ThreadedTCPServer

class Hungry(LineHandler):
    def process(self, line):
        return bytes(int(line[1:]))[:1] if line.startswith(b"+") else line

with ThreadedTCPServer(("127.0.0.1", 0), Hungry).start() as server:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
    print(server.server_address[1], flush=True)
    sys.stdin.readline()
    report, stats = server.stop(), server.stats()
print(report.clean, stats.failed, stats.finished)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="its size is read from Linux's files")
def test_memory_that_runs_out_costs_those_who_want_more_than_there_is():
    """Their handlers fail; another client is served all the while, and the stop is clean."""
    with program(sys.executable, "-c", SERVER) as process:
        address = ("127.0.0.1", int(next_line(process)))
        with socket.create_connection(address, GUARD) as other:
            for number in range(20):
                with socket.create_connection(address, GUARD) as hungry:
                    hungry.sendall(b"+1000000000\n")
                    assert receive_all(hungry) == b""
                other.sendall(b"%d\n" % number)
                assert receive(other, len(b"%d\n" % number)) == b"%d\n" % number
        tell(process, "stop")
        lines = last_lines(process)
    assert lines[-1] == "True 20 21"
    assert any("MemoryError" in line for line in lines)
