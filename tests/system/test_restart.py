"""Sockets that outlive a server: handed in by systemd, inherited in a restart, or shared by port.

``RESTARTS=50`` makes it restart as often under load.
"""
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from ..conftest import LOOPBACK
from ..tools import GUARD, ask, receive_all, running
from .commands import Command, command
from .programs import CHECKOUT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no systemd here")

SERVE = [sys.executable, "-X", "dev", "-W", "error", "-m", "threaded_echo", "--systemd", "--linger-timeout", "50"]

# Hands a listening socket in as systemd does: in the process that becomes the server, as descriptor 3.
HAND_IN = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""

RESTARTS = int(os.environ.get("RESTARTS", "10"))


class Notified(socket.socket):
    """Hears what servers tell."""

    def hear(self) -> str:
        """Wait for the next message."""
        return self.recv(100).decode()


@pytest.fixture
def notified(tmp_path, monkeypatch):
    """Be told by the servers that are started."""
    monkeypatch.chdir(tmp_path)
    with Notified(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind("notify")
        made.settimeout(GUARD)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield made


def start(stack: ExitStack, listener: socket.socket, notified: Notified) -> Command:
    """Start a server that inherits a listening socket, and wait until it accepts."""
    process = stack.enter_context(subprocess.Popen(
        [sys.executable, "-c", HAND_IN, str(listener.fileno()), *SERVE, "--quiet"], pass_fds=[listener.fileno()],
        cwd=CHECKOUT, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    stack.callback(process.kill)
    assert notified.hear() == "READY=1"
    return Command(process)


class Load:
    """Clients that come all the time: each connects, sends a line, and has to get it back."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.answered = 0
        self.errors: list[object] = []
        self.over = threading.Event()
        self._address = address

    def run(self) -> None:
        """Be one client after another."""
        while not self.over.is_set():
            try:
                answer = ask(self._address)
            except OSError as error:
                self.errors.append(error)
            else:
                self.answered += 1
                if answer != b"ping\n":
                    self.errors.append(answer)


def test_server_is_restarted_under_load_without_a_connection_lost(notified):
    """Each new process inherits the listener and serves before the old one is told to end, some times.

    A client that has come to the old one and has not asked yet is served by it, after its signal.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(LOOPBACK, backlog=1000))
        address = listener.getsockname()
        servers = [start(stack, listener, notified)]
        loads = [Load(address) for _ in range(4)]
        with ExitStack() as loading:
            for load in loads:
                loading.enter_context(running(load.run))
                loading.callback(load.over.set)
            for _ in range(RESTARTS):
                old = servers[-1]
                early = socket.create_connection(address)
                early.settimeout(GUARD)
                servers.append(start(stack, listener, notified))
                old.signal(signal.SIGTERM)
                assert notified.hear() == "STOPPING=1"
                with early:
                    early.sendall(b"late")
                    early.shutdown(socket.SHUT_WR)
                    assert receive_all(early) == b"late"
                status, lines, errors = old.end()
                assert (status, errors) == (0, "")
                assert lines[-1].endswith(" 0 drained, 0 forced, 0 still running"), lines
        assert [load.errors for load in loads] == [[], [], [], []]
        assert min(load.answered for load in loads) > RESTARTS
        servers[-1].signal(signal.SIGTERM)
        assert servers[-1].end()[0] == 0


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate here")
def test_systemd_hands_in_sockets_of_several_families(tmp_path):
    """The real one does it, with names; it starts the server at the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = str(tmp_path / "socket")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(
            ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "--listen", path, "--fdname", "tcp:unix",
             "--setenv", "PYTHONPATH", *SERVE], cwd=tmp_path, env=environment, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(2):  # it says where it listens, then waits
                assert "Listening on " in process.stderr.readline()
            assert ask(("127.0.0.1", port)) == b"ping\n"
            assert ask(path) == b"ping\n"
            assert process.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
            assert process.stdout.readline() == f"listening on {path}\n"
            process.send_signal(signal.SIGTERM)  # it has become the server
            assert "0 still running" in process.stdout.read()
            assert process.wait(GUARD) == 0
        finally:
            process.kill()


def test_two_processes_share_a_port():
    """The kernel chooses one of them for each connection: both get some."""
    with command("--port", "0", "--reuse-port") as one:
        address = one.address()
        with command("--port", str(address[1]), "--reuse-port") as other:
            assert other.address() == address
            lines = [[], []]
            for _ in range(100):
                assert ask(address) == b"ping\n"
            for server, found in zip((one, other), lines, strict=True):
                server.signal(signal.SIGTERM)
                found += server.end()[1]
            served = [sum(" connected from " in line for line in found) for found in lines]
            assert min(served) > 0 and sum(served) == 100
