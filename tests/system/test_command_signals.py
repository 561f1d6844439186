"""Signals of the command that it must not take, and processes that its handlers start."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from ..tools import GUARD, ask
from .commands import command, handlers
from .programs import CHECKOUT

FORKS = """
import os, signal, socket, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # what it says of threads and os.fork is known here

class Forks(ClientHandler):
    def handle(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                child = os.fork()
                if not child:
                    ours.close()
                    theirs.send(b"!")
                    theirs.recv(1)
                    os._exit(7)
                theirs.close()
                ours.recv(1)
                os.kill(child, number)
            self.send(b"%d " % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

CHILDREN = """
import subprocess, sys

class Children(ClientHandler):
    def handle(self):
        for method in ("terminate", "kill"):
            child = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            with child:
                child.stdout.readline()
                getattr(child, method)()
                self.send(b"%d " % child.wait())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_signals_of_a_forked_process_are_not_the_servers(tmp_path):
    """A process that a handler forks ignores a terminal's key and can be terminated; neither stops the server."""
    with command("--handler", "handlers:Forks", folder=handlers(tmp_path, FORKS)) as server:
        address = server.address()
        for number in (1, 2):
            assert ask(address, b"") == b"7 -15 "
            assert len(server.lines_to(f"client {number} disconnected")) == 2
        server.signal()
        status, lines, errors = server.end()
    assert (status, errors) == (0, "")
    assert lines[0] == "stopping: 0 clients live"


def test_process_that_a_handler_starts_is_terminated_as_usual(tmp_path):
    """The server's signal handlers are not those of a program that it runs."""
    with command("--handler", "handlers:Children", folder=handlers(tmp_path, CHILDREN)) as server:
        assert ask(server.address(), b"") == b"-15 -9 "
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell here")
def test_interrupt_that_was_ignored_at_the_start_stays_ignored():
    """A shell starts `command &` so that the key of the terminal does not reach it; SIGTERM ends it."""
    background = [shutil.which("sh"), "-c", 'trap "" INT; exec "$0" -m threaded_echo --port 0', sys.executable]
    with subprocess.Popen(background, cwd=CHECKOUT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            address = "127.0.0.1", int(process.stdout.readline().rpartition(":")[2])
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                assert ask(address) == b"ping\n"
            process.send_signal(signal.SIGTERM)
            assert "stopping: " in process.stdout.read()
            assert process.wait(GUARD) == 0
        finally:
            process.kill()
