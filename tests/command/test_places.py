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
from threaded_echo.transport import systemd

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


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
def test_empty_host_is_everywhere():
    """A client of either family is shown by its own address."""
    ports: list[int] = []

    def script(operator):
        """Come by IPv4, then by IPv6."""
        _, port = operator.address()
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)) as client:
                ports.append(port_of(client))
                operator.line()
            operator.line()
        operator.interrupt()

    status, lines = run(["--port", "0", "--host", ""], script)
    assert status == cli.OK
    assert re.fullmatch(r"listening on \[::\]:\d+", lines[0])
    assert lines[1] == f"client 1 connected from 127.0.0.1:{ports[0]}"
    assert lines[3] == f"client 2 connected from [::1]:{ports[1]}"


def test_each_of_several_hosts_has_a_line():
    """A name is all its addresses; none is listened on twice."""
    def script(operator):
        """Come to each of them."""
        for address in (operator.address(), operator.address()):
            assert ask(address, b"x") == b"x"
        operator.interrupt()

    status, lines = run(["--port", "0", "--host", "127.0.0.1", "--host", "127.0.0.2", "--host", "127.0.0.1"], script)
    assert status == cli.OK
    assert [line.rpartition(":")[0] for line in lines[:2]] == ["listening on 127.0.0.1", "listening on 127.0.0.2"]
    assert lines[2].startswith("client 1 connected")


def test_one_of_several_hosts_that_cannot_be_listened_on_is_told(capsys):
    """The line names that one, and the command does not serve the others."""
    assert run(["--port", "0", "--host", "127.0.0.1", "--host", "192.0.2.1"]) == (cli.FAILED, [])
    reason = os.strerror(errno.EADDRNOTAVAIL)
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on 192.0.2.1:0: {reason}\n"


def test_port_may_be_shared_with_another_process():
    """Both have to want it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        port = port_of(other)
        status, lines = run(["--port", str(port), "--reuse-port", "--duration", "0"])
    assert status == cli.OK and lines[0] == f"listening on 127.0.0.1:{port}"


def test_file_of_a_unix_socket_has_the_permissions_that_were_asked_for(folder):
    """They are octal, as chmod takes them."""
    modes = []

    def script(operator):
        """Look at it."""
        modes.append(os.stat(operator.address()).st_mode & 0o777)
        operator.interrupt()

    assert run(["--unix", "here", "--unix-mode", "602"], script)[0] == cli.OK
    assert modes == [0o602]


def test_sockets_of_systemd_are_served(folder, monkeypatch):
    """Each has a line. Its Unix socket's file is its own to remove."""
    monkeypatch.setattr(systemd, "_FIRST", 200)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("here")
        unix.listen()
        for number, listener in enumerate((tcp, unix), 200):
            os.dup2(listener.fileno(), number)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "2")

        def script(operator):
            """Come to each."""
            for address in (operator.address(), operator.address()):
                assert ask(address, b"x") == b"x"
            operator.interrupt()

        status, lines = run(["--systemd"], script)
        assert status == cli.OK
        assert lines[:2] == [f"listening on 127.0.0.1:{port_of(tcp)}", "listening on here"]
        assert "LISTEN_FDS" not in os.environ and os.listdir() == ["here"]


def test_sockets_that_systemd_has_not_handed_in_are_an_exit_status(capsys, monkeypatch):
    """One line says what is missing."""
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    assert run(["--systemd"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == ("threaded_echo: systemd has handed in no sockets: the variables LISTEN_PID and "
                                       "LISTEN_FDS are not set\n")


def test_client_may_go_on_after_the_first_signal_if_that_is_asked_for():
    """The lines tell what is waited for."""
    def script(operator):
        """Stay a while."""
        with connect(operator.address()) as client:
            operator.line()
            operator.interrupt()
            assert operator.line() == "lingering: 1 client live"
            client.sendall(b"x\n")
            assert client.recv(2) == b"x\n"

    status, lines = run(["--port", "0", "--linger-timeout", "300"], script)
    assert status == cli.OK
    assert lines[-1].endswith("0 drained, 0 forced, 0 still running") and "stopping: 0 clients live" in lines
