"""The command as its operator meets it: a process, run from the bare checkout. Its end, and its exit status."""
from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from ..tools import ask, connect, receive, receive_all
from .commands import STOPPED, command, handlers

ENDLESS = """
class Silent(ClientHandler):
    def handle(self):
        self.send(b"!")
        while True:
            threading.Event().wait()

class Loud(ClientHandler):
    def handle(self):
        self.send(b"!")
        while True:
            print("still here" * 100)

class Pool(ClientHandler):
    def handle(self):
        future = concurrent.futures.ThreadPoolExecutor(1).submit(threading.Event().wait)
        self.send(b"!")
        future.result()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_it_with_success(number):
    """Every client is ended, whether it has spoken or not."""
    with command() as server:
        address = server.address()
        with connect(address) as speaks, connect(address) as says_nothing:
            speaks.sendall(b"hello\n")
            assert receive(speaks, 6) == b"hello\n"
            for _ in range(3):
                server.line()
            server.signal(number)
            assert receive_all(speaks) == receive_all(says_nothing) == b""
        status, lines, errors = server.end()
    assert (status, errors) == (0, "")
    assert lines[0] == "stopping: 2 clients live"
    assert sorted(lines[1:3]) == ["client 1 disconnected", "client 2 disconnected"]
    assert re.fullmatch(STOPPED.format(2, 0, 0), lines[3])
    assert len(lines) == 4


def test_end_of_its_duration_is_success():
    """The process ends by itself when the time is up."""
    with command("--duration", "0") as server:
        server.address()
        status, lines, errors = server.end()
    assert (status, len(lines), errors) == (0, 2, "")


def test_port_that_is_taken_is_a_failure():
    """One line says so, and the other server is not disturbed."""
    with command() as first:
        host, port = first.address()
        with command("--port", str(port)) as second:
            assert second.end() == (1, [], f"threaded_echo: cannot listen on {host}:{port}: Address already in use\n")
        assert ask((host, port)) == b"ping\n"


def test_handler_that_cannot_be_imported_is_a_failure(tmp_path):
    """One line says so, without a traceback, and the command does not listen."""
    with command("--handler", "handlers:Missing", folder=handlers(tmp_path, "")) as server:
        assert server.end() == (1, [], "threaded_echo: module 'handlers' has no 'Missing'\n")


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--handler", "Missing"), ("--duration", "-1"),
                                       ("--unknown",)])
def test_wrong_usage_is_told_with_its_own_status(arguments):
    """Standard error has the usage, and names the argument."""
    with command(*arguments) as server:
        status, lines, errors = server.end()
    assert (status, lines) == (2, [])
    assert errors.startswith("usage: threaded_echo ")
    assert f"threaded_echo: error: {'unrecognized arguments: ' if arguments == ('--unknown',) else 'argument '}" \
           f"{arguments[0]}" in errors


@pytest.mark.parametrize("name", ["Silent", "Loud", "Pool"])
def test_handler_that_never_ends_is_told_with_its_own_status(name, tmp_path):
    """The process ends all the same, even if the handler prints without end, or waits for a thread of its own."""
    with command("--handler", f"handlers:{name}", "--drain-timeout", "0", "--force-timeout", "0",
                 folder=handlers(tmp_path, ENDLESS)) as server:
        with connect(server.address()) as client:
            assert receive(client, 1) == b"!"
            server.signal()
            status, lines, errors = server.end()
    assert status == 3
    assert any(re.search(STOPPED.format(0, 0, 1), line) for line in lines)
    assert errors.startswith("threaded_echo: still running after the stop:\nclient 1, from 127.0.0.1:")
    # Without the GIL, where a thread is can be read only if no other thread runs, and one that prints always runs.
    if name != "Loud" or getattr(sys, "_is_gil_enabled", lambda: True)():
        assert f"{tmp_path / 'handlers.py'}" in errors


def test_second_signal_does_not_wait_for_a_handler_that_never_ends(tmp_path):
    """The first signal would wait for the handler for more than a day."""
    with command("--handler", "handlers:Silent", "--drain-timeout", "100000", "--force-timeout", "0",
                 folder=handlers(tmp_path, ENDLESS)) as server:
        with connect(server.address()) as client:
            assert receive(client, 1) == b"!"
            server.signal()
            server.lines_to("stopping: 1 client live")
            server.signal()
            status, lines, errors = server.end()
    assert status == 3
    assert re.fullmatch(STOPPED.format(0, 0, 1), lines[-1])
    assert errors.count("threaded_echo: still running after the stop") == 1


def test_unix_socket_of_a_killed_server_is_taken_over(tmp_path, monkeypatch):
    """The socket that a SIGKILL leaves behind is replaced, and the successor removes its own."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        with command("--unix", "socket", folder=tmp_path) as server:
            assert ask(server.address()) == b"ping\n"
            server.signal(number)
            assert server.end()[0] == status
        assert os.path.exists("socket") == (number is signal.SIGKILL)
