"""Where the command listens: addresses, names, Unix sockets."""
from __future__ import annotations

import errno
import os
import re
import socket
import socketserver
import sys
from contextlib import ExitStack, suppress

import pytest

from threaded_echo.command import run as cli

from ..tools import ask, connect
from .operating import port_of, run


HAS_IPV6 = False
with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
    probe.bind(("::1", 0))
    HAS_IPV6 = True


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
def test_ipv6_address_is_shown_in_brackets():
    """The brackets tell the port from the rest, as in a URL."""
    ports: list[int] = []

    def script(operator):
        """Come by IPv6."""
        with socket.create_connection(operator.address()) as client:
            ports.append(port_of(client))
            operator.line()
        operator.interrupt()

    status, lines = run(["--port", "0", "--host", "::1"], script)
    assert status == cli.OK
    assert re.fullmatch(r"listening on \[::1\]:\d+", lines[0])
    assert lines[1] == f"client 1 connected from [::1]:{ports[0]}"


def test_port_that_is_taken_is_told(capsys):
    """One line on standard error says so, and nothing goes to standard output."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = port_of(other)
        assert run(["--port", str(port)]) == (cli.FAILED, [])
    reason = os.strerror(errno.EADDRINUSE)
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on 127.0.0.1:{port}: {reason}\n"


def test_port_that_is_not_ours_to_bind_is_told(capsys, monkeypatch):
    """The first 1024 ports mostly need a permission."""
    def refuse(server):
        """Refuse, as the kernel does."""
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socketserver.TCPServer, "server_bind", refuse)
    assert run(["--port", "80"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == "threaded_echo: cannot listen on 127.0.0.1:80: Permission denied\n"


def test_address_that_is_not_ours_is_told(capsys):
    """The address is reserved for documentation, so that no machine has it."""
    assert run(["--host", "192.0.2.1", "--port", "0"]) == (cli.FAILED, [])
    reason = os.strerror(errno.EADDRNOTAVAIL)
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on 192.0.2.1:0: {reason}\n"


def test_host_that_is_unknown_is_told(capsys, monkeypatch):
    """The line has the resolver's own reason."""
    def fail(*arguments, **keywords):
        """Know nothing."""
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert run(["--host", "nowhere", "--port", "1"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == "threaded_echo: cannot listen on nowhere:1: Name or service not known\n"


def test_host_that_cannot_be_a_name_is_told(capsys):
    """The resolver is not even asked for such a name."""
    assert run(["--host", "two..dots", "--port", "1"]) == (cli.FAILED, [])
    assert capsys.readouterr().err.startswith("threaded_echo: cannot listen on two..dots:1: ")


def run_on_path(path: str) -> tuple[int, list[str]]:
    """Run the command on a Unix socket, and be one client."""
    def script(operator):
        """Say hello."""
        assert ask(operator.address(), b"hello\n") == b"hello\n"
        operator.interrupt()

    return run(["--unix", path], script)


def test_unix_socket_is_served_and_removed_at_the_end(folder):
    """The clients of a Unix socket have no address to show."""
    status, lines = run_on_path("here")
    assert status == cli.OK
    assert lines[:3] == ["listening on here", "client 1 connected", "client 1: hello"]
    assert "client 1 disconnected" in lines[3:-1]
    assert os.listdir() == []


def test_unix_socket_of_a_server_that_was_killed_is_replaced(folder):
    """Nobody listens on the socket that is there."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("here")
        stale.listen()
    assert run_on_path("here")[0] == cli.OK
    assert os.listdir() == []


def test_unix_socket_of_a_live_server_is_left_alone(folder, capsys):
    """The other server goes on accepting."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("here")
        other.listen()
        assert run(["--unix", "here"]) == (cli.FAILED, [])
        assert capsys.readouterr().err == f"threaded_echo: cannot listen on here: {os.strerror(errno.EADDRINUSE)}\n"
        with connect("here"):
            for _ in range(2):  # the command's own look at it was the first
                other.accept()[0].close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
def test_unix_socket_whose_queue_is_full_is_left_alone(folder):
    """The look at the socket does not wait for its server."""
    with socket.socket(socket.AF_UNIX) as other, ExitStack() as stack:
        other.bind("here")
        other.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect("here")
        assert run(["--unix", "here"]) == (cli.FAILED, [])
        assert os.listdir() == ["here"]


@pytest.mark.parametrize(("make", "kind"), [(lambda path: path.write_text("precious"), "a file that is not a socket"),
                                            (lambda path: path.mkdir(), "a folder")])
def test_path_that_is_no_socket_is_an_error_and_left_alone(make, kind, folder, capsys):
    """One line says what it is."""
    make(folder / "here")
    before = os.stat("here")
    assert run(["--unix", "here"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on here: it is {kind}\n"
    assert os.stat("here").st_ino == before.st_ino


@pytest.mark.skipif(sys.platform != "linux", reason="no abstract names here")
def test_name_of_a_peer_cannot_forge_a_line(folder):
    """A client may give its socket any name, line ends and control characters included."""
    def script(operator):
        """Come under such a name."""
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(b"\0threaded_echo test\nclient 7 disconnected\x1b[2J")
            client.connect(operator.address())
            operator.line()
        operator.interrupt()

    _, lines = run(["--unix", "here"], script)
    assert lines[1] == r"client 1 connected from @threaded_echo test\nclient 7 disconnected\x1b[2J"


def test_unix_socket_that_another_has_replaced_is_not_removed(folder):
    """At the end, the path is somebody else's."""
    with socket.socket(socket.AF_UNIX) as other:
        def script(operator):
            """Take the path."""
            operator.address()
            os.unlink("here")
            other.bind("here")
            other.listen()
            operator.interrupt()

        assert run(["--unix", "here"], script)[0] == cli.OK
        assert os.listdir() == ["here"]


def test_unix_path_that_is_too_long_is_told(folder, capsys):
    """The system's limit is about a hundred bytes."""
    assert run(["--unix", "a" * 300]) == (cli.FAILED, [])
    assert "AF_UNIX path too long" in capsys.readouterr().err
