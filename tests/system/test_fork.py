"""Handlers that fork: what the child does to its copy of the server is nothing to the parent."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..tools import GUARD
from .programs import CHECKOUT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")

PROGRAM = """
import os, socket, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads, from 3.12 on
from threaded_echo import LineHandler, ThreadedTCPServer

class Forks(LineHandler):
    def process(self, line):
        if line != b"fork":
            return line
        server, child = self.server, os.fork()
        if child == 0:
            status = 2
            try:
                {end}
                known = len(server.clients), len(server._threads), server.stats().accepted
                status = 0 if known == (0, 0, 0) and server.fileno() < 0 and threading.active_count() == 1 else 3
            finally:
                os._exit(status)
        return b"status %d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def talk(client, line):
    client.sendall(line + b"\\n")
    print(client.makefile("rb").readline().decode().strip())

with ThreadedTCPServer(("127.0.0.1", 0), Forks, drain_timeout=40, lifetime=1000).start() as server:
    address = server.server_address
    with socket.create_connection(address, 40) as one, socket.create_connection(address, 40) as other:
        talk(other, b"before")
        talk(one, b"fork")
        talk(other, b"the others are served on")
        talk(one, b"so is the one that forked")
        with socket.create_connection(address, 40) as third:
            talk(third, b"a new client is accepted")
        waker = server._threaded_state.loops.running[0]._door._waker
        import select
        print("rung" if select.select([waker], [], [], 0)[0] else "nobody has rung")
        report = server.stop()
        print(report.drained >= 2, report.forced, report.clean)
"""


@pytest.mark.parametrize("end", ["server.server_close()", "server.stop()", "server.shutdown(); server.server_close()"])
def test_child_that_closes_its_copy_of_the_server_leaves_the_parents_alone(end: str) -> None:
    """The child closes its descriptors only, and knows neither clients nor threads; the parent serves on."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], cwd=CHECKOUT, timeout=GUARD,
                          capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["before", "status 0", "the others are served on", "so is the one that forked",
                                        "a new client is accepted", "nobody has rung", "True 0 True"]
