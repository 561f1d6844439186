"""Where a server listens: addresses as they are shown, IPv6, addresses that are taken, the paths of Unix sockets."""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from contextlib import suppress

import pytest

from threaded_echo import ThreadedTCPServer, ThreadedUnixStreamServer
from threaded_echo.transport.listeners import UnixPath, resolve_ipv6, show_address

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, receive_all, running, wait_until

HAS_IPV6 = False
with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
    probe.bind(("::1", 0))
    HAS_IPV6 = True

IPV6 = pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")


@pytest.mark.parametrize(("address", "shown"), [
    (("127.0.0.1", 9999), "127.0.0.1:9999"), (("", 80), ":80"), (("::1", 80, 0, 0), "[::1]:80"),
    ("/run/echo", "/run/echo"), (b"/run/echo", "/run/echo"), ("", ""), (b"", ""),
    (b"\0name", "@name"), (b"\0a\nclient 1 disconnected\x1b[2J", "@a\\nclient 1 disconnected\\x1b[2J"),
    ("/tmp/a\rb", "/tmp/a\\rb"), (b"\xff", "\\udcff"), (None, "None"), ((1,), "(1,)"),
])
def test_address_is_shown_as_people_write_it(address, shown):
    """What a peer has chosen can neither drive a terminal nor forge a line."""
    assert show_address(address) == shown


@IPV6
def test_server_on_an_ipv6_address_serves():
    """The family is that of the address."""
    with ThreadedTCPServer(("::1", 0), Echo).start() as server:
        with socket.create_connection(server.server_address[:2]) as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"x"


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("localhost", 0), ("", 0), ("2:d", 0), ("::1", "no port"),
                                     "path", ("::1",), (b"::1", 0)])
def test_what_is_not_an_ipv6_address_is_left_to_the_server(address):
    """Names and the empty host stay what they are, and binding raises the error of a wrong address."""
    assert resolve_ipv6(address) is None


def test_ipv6_address_with_a_scope_is_complete():
    """The interface is the fourth item of the address."""
    name = socket.if_nameindex()[0][1]
    assert resolve_ipv6((f"fe80::1%{name}", 80)) == ("fe80::1", 80, 0, socket.if_nametoindex(name))
    assert resolve_ipv6(("::1", 80, 0, 7)) == ("::1", 80, 0, 7)


@pytest.mark.parametrize("where", ["class", "base"])
def test_class_that_sets_its_family_keeps_it(where):
    """A program's own choice wins, also one that a base has made."""
    base = type("Base", (ThreadedTCPServer,), {"address_family": socket.AF_INET})
    server_class = base if where == "class" else type("Server", (base,), {})
    with pytest.raises(OSError), server_class(("::1", 0), Echo):
        pass
    six = type("Six", (ThreadedTCPServer,), {"address_family": socket.AF_INET6})
    if HAS_IPV6:
        with six(("::", 0), Echo) as server:
            assert server.socket.family == socket.AF_INET6


def test_address_that_is_taken_is_named_by_the_error():
    """Its type and number are the system's."""
    with socket.create_server(LOOPBACK) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError) as raised:
            ThreadedTCPServer(("127.0.0.1", port), Echo)
    assert str(raised.value) == f"[Errno {errno.EADDRINUSE}] Address already in use: 127.0.0.1:{port}"
    assert (type(raised.value), raised.value.errno) == (OSError, errno.EADDRINUSE)


def test_path_that_is_taken_is_named_by_the_error(monkeypatch, tmp_path):
    """A Unix socket's server says so as well, and leaves the socket alone."""
    monkeypatch.chdir(tmp_path)
    with ThreadedUnixStreamServer("here", Echo).start() as server:
        with pytest.raises(OSError, match="Address already in use: here$"):
            ThreadedUnixStreamServer("here", Echo)
        assert ask(server) == b"ping\n"


def test_error_without_a_reason_of_the_system_stays_as_it_is(monkeypatch, tmp_path):
    """A path that is too long is Python's own error."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="^AF_UNIX path too long$"):
        ThreadedUnixStreamServer("a" * 300, Echo)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Be in a folder of its own: a socket's path must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bound(path):
    """Bind a socket to a path; the caller lets it listen."""
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(path)
    except OSError:
        made.close()
        raise
    return made


@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a folder"),
                                            (lambda path: os.close(os.open(path, os.O_CREAT)), "a file that is not"),
                                            (lambda path: os.symlink("there", path), "a file that is not")])
def test_path_of_what_is_not_a_socket_is_an_error(make, kind, folder):
    """It is left alone."""
    make("here")
    with pytest.raises(FileExistsError, match=kind), UnixPath("here").taken():
        pass
    assert os.listdir() == ["here"]


def test_path_in_a_folder_that_is_not_there_is_an_error(folder):
    """The error is the system's."""
    with pytest.raises(FileNotFoundError), UnixPath("nowhere/here").taken():
        pass


@pytest.mark.parametrize("path", ["here", "./here"])
def test_socket_is_not_removed_by_another_server_between_bind_and_listen(path, folder, monkeypatch):
    """The other one waits until it listens, and then leaves it alone."""
    waits = threading.Event()
    errors = []

    def flock(*arguments):
        """Tell of the second call, which has to wait."""
        waits.set()
        return real(*arguments)

    def come_second():
        try:
            with UnixPath(path).taken(), bound(path):
                pass
        except OSError as error:
            errors.append(error.errno)

    real = fcntl.flock
    with UnixPath("here").taken(), bound("here") as made:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", flock)
            thread = threading.Thread(target=come_second)
            thread.start()
            wait_until(waits)
        made.listen()
        inode = os.stat("here").st_ino
        # The second one comes when the lock is given up, and the socket is still open.
        kept = socket.socket(fileno=os.dup(made.fileno()))
    with kept:
        thread.join(GUARD)
        assert errors == [errno.EADDRINUSE]
        assert os.stat("here").st_ino == inode


def test_socket_is_removed_if_it_is_still_ours(folder):
    """The socket has been closed by then. Removing it again does nothing."""
    path = UnixPath("here")
    with path.taken():
        bound("here").close()
    path.remove()
    path.remove()
    assert os.listdir() == []


def test_socket_of_a_successor_is_not_removed(folder):
    """A dead one of somebody else's is not ours to remove, either."""
    path = UnixPath("here")
    with path.taken():
        kept = bound("here")  # as long as it is open, its inode is not given to another file
    with kept:
        os.unlink("here")
        bound("here").close()
        path.remove()
        assert os.listdir() == ["here"]


def test_socket_of_a_successor_with_the_same_inode_is_not_removed_while_it_listens(folder):
    """A file system may give the number of a file that has gone to the next one."""
    path = UnixPath("here")
    with path.taken():
        made = bound("here")
    with made:
        made.listen()
        path.remove()
        assert os.listdir() == ["here"]


def test_socket_in_a_folder_that_has_gone_is_no_error_at_the_end(folder):
    """There is nothing to remove."""
    os.mkdir("inner")
    path = UnixPath("inner/here")
    with path.taken():
        bound("inner/here").close()
    os.unlink("inner/here")
    os.rmdir("inner")
    path.remove()


def test_servers_that_take_a_path_at_once_are_one_server(folder):
    """All but one are refused, and the one that is not serves."""
    barrier, servers, errors = threading.Barrier(8), [], []

    def take():
        barrier.wait()
        try:
            with UnixPath("here").taken():
                servers.append(ThreadedUnixStreamServer("here", Echo))
        except OSError as error:
            errors.append(error.errno)

    with running(take), running(take), running(take), running(take), running(take), running(take), running(take):
        take()
    with servers[0].start() as server:
        assert ask(server) == b"ping\n"
    assert errors == [errno.EADDRINUSE] * 7
