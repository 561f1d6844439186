"""The file of a Unix socket: stale ones are replaced, others left alone, its permissions, its removal."""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
from contextlib import contextmanager

import pytest

from threaded_echo import ThreadedUnixStreamServer
from threaded_echo.transport import unix_path
from threaded_echo.transport.unix_path import UnixPath, has_no_file

from ..tools import GUARD, Echo, ask, running, wait_until


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Be in a folder of its own: a socket's path must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def listening(path, mode=None):
    """Take a path, and listen there."""
    with socket.socket(socket.AF_UNIX) as made:
        taken = UnixPath(path)
        taken.listen(made, 5, mode)
        yield taken


def leave_stale(path):
    """Leave a socket on which nobody listens."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def permissions(path):
    """Return those of a file."""
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def umask():
    """Set the umask that most users have."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(("address", "expected"), [("here", False), (b"/here", False), ("", True), (b"", True),
                                                   ("\0name", True), (b"\0name", True)])
def test_abstract_names_have_no_file(address, expected):
    """The system chooses one for an empty address."""
    assert has_no_file(address) is expected


@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a folder"),
                                            (lambda path: os.close(os.open(path, os.O_CREAT)), "a file that is not"),
                                            (lambda path: os.symlink("there", path), "a file that is not")])
def test_path_of_what_is_not_a_socket_is_an_error(make, kind, folder):
    """It is left alone."""
    make("here")
    with pytest.raises(FileExistsError, match=f"it is {kind}.*: here$"):
        ThreadedUnixStreamServer("here", Echo)
    assert os.listdir() == ["here"]


def test_path_in_a_folder_that_is_not_there_is_an_error(folder):
    """The error is the system's."""
    with pytest.raises(FileNotFoundError):
        ThreadedUnixStreamServer("nowhere/here", Echo)


def test_socket_of_a_server_that_was_killed_is_replaced(folder):
    """Its file is still there, and nobody listens on it; the new one's goes at the end."""
    leave_stale("here")
    with ThreadedUnixStreamServer("here", Echo).start() as server:
        assert ask(server) == b"ping\n"
    assert os.listdir() == []


@pytest.mark.parametrize("path", ["here", "./here"])
def test_socket_is_not_removed_by_another_server_between_bind_and_listen(path, folder, monkeypatch):
    """The other one waits until it listens, and then leaves it alone."""
    waits, errors = threading.Event(), []
    flock, lstat = fcntl.flock, os.lstat

    def come_second():
        try:
            with listening(path):
                pass
        except OSError as error:
            errors.append(error.errno)

    def tell(*arguments):
        """Say so when the second one has tried."""
        try:
            return flock(*arguments)
        finally:
            waits.set()

    def look(*arguments):
        """When the first one has bound and looks at its file, have the second one wait."""
        found = lstat(*arguments)
        if not started:
            monkeypatch.setattr(fcntl, "flock", tell)
            started.append(thread.start())
            wait_until(waits)
        return found

    thread, started = threading.Thread(target=come_second), []
    monkeypatch.setattr(os, "lstat", look)
    with listening("here"):
        thread.join(GUARD)
        assert started and errors == [errno.EADDRINUSE]
        assert os.listdir() == ["here"]


def test_folder_that_another_program_keeps_locked_is_an_error(folder, monkeypatch):
    """The wait for it is bounded; at the end, the file stays."""
    monkeypatch.setattr(unix_path, "_PATIENCE", 0)
    with listening("here") as path:
        pass
    lock = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another program has locked its folder: other"):
            ThreadedUnixStreamServer("other", Echo)
        path.remove()
        assert os.listdir() == ["here"]
    finally:
        os.close(lock)


def test_socket_is_removed_if_it_is_still_ours(folder, monkeypatch):
    """The program may have gone to another folder. Removing it again does nothing."""
    with listening("here") as path:
        pass
    os.mkdir("inner")
    monkeypatch.chdir("inner")
    path.remove()
    path.remove()
    assert os.listdir("..") == ["inner"]


def test_socket_whose_absolute_path_is_too_long_is_removed_from_its_folder(folder, monkeypatch):
    """Its name from the folder was short enough to bind to. From elsewhere nobody can tell whether it is in use."""
    inner = "x" * 120
    os.mkdir(inner)
    monkeypatch.chdir(inner)
    leave_stale("here")
    with listening("here") as path:
        pass
    monkeypatch.chdir("..")
    path.remove()
    assert os.listdir(inner) == ["here"]
    monkeypatch.chdir(inner)
    path.remove()
    assert os.listdir() == []


def test_socket_of_a_successor_is_not_removed(folder):
    """A dead one of somebody else's is not ours to remove, either."""
    with listening("here") as path:
        os.rename("here", "there")  # as long as it is there, its inode is not given to another file
        leave_stale("here")
    path.remove()
    assert sorted(os.listdir()) == ["here", "there"]


def test_socket_of_a_successor_with_the_same_inode_is_not_removed_while_it_listens(folder):
    """A file system may give the number of a file that has gone to the next one."""
    with listening("here") as path:
        path.remove()
        assert os.listdir() == ["here"]


def test_socket_in_a_folder_that_has_gone_is_no_error_at_the_end(folder):
    """There is nothing to remove."""
    os.mkdir("inner")
    with listening("inner/here") as path:
        os.unlink("inner/here")
        os.rmdir("inner")
    path.remove()


def test_forked_process_does_not_remove_the_socket(folder, monkeypatch):
    """Its copy of the server is closed, and the parent goes on serving."""
    with ThreadedUnixStreamServer("here", Echo).start() as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            server._threaded_path.remove()
        assert ask(server) == b"ping\n"


def test_servers_that_take_a_path_at_once_are_one_server(folder):
    """All but one are refused, and the one that is not serves."""
    barrier, servers, errors = threading.Barrier(8), [], []

    def take():
        barrier.wait()
        try:
            servers.append(ThreadedUnixStreamServer("here", Echo))
        except OSError as error:
            errors.append(error.errno)

    with running(take), running(take), running(take), running(take), running(take), running(take), running(take):
        take()
    with servers[0].start() as server:
        assert ask(server) == b"ping\n"
    assert errors == [errno.EADDRINUSE] * 7


def test_server_that_cannot_listen_leaves_no_file(folder, monkeypatch):
    """It has bound its socket already."""
    def fail(server):
        raise OSError(errno.ENOMEM, "no memory")

    server_class = type("Server", (ThreadedUnixStreamServer,), {"server_activate": fail})
    with pytest.raises(OSError, match="no memory"):
        server_class("here", Echo)
    assert os.listdir() == []


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_file_has_its_permissions_before_anybody_can_connect(mode, folder, umask):
    """Narrower ones than the umask's hold from the first moment; wider ones are given before the socket listens."""
    seen = []

    class Listener(socket.socket):
        """Looks at its file."""

        def bind(self, address):
            """Bind, and look."""
            super().bind(address)
            seen.append(permissions(address))

        def listen(self, backlog):
            """Look, and listen."""
            seen.append(permissions("here"))
            super().listen(backlog)

    with Listener(socket.AF_UNIX) as made:
        UnixPath("here").listen(made, 5, mode)
    assert seen[1] == mode
    if os.uname().sysname == "Linux":
        assert seen[0] == mode & ~0o022


def test_file_has_its_permissions_on_a_system_that_cannot_set_them_before(folder, umask, monkeypatch):
    """They are set between bind and listen, when nobody can connect."""
    def refuse(*arguments):
        raise OSError(errno.EINVAL, "no such thing on a socket")

    monkeypatch.setattr(os, "fchmod", refuse)
    with listening("here", 0o600):
        assert permissions("here") == 0o600


def test_mode_is_an_option_of_the_server(folder, umask):
    """Without it, the file has what the umask leaves. A path may be any object that stands for one."""
    with ThreadedUnixStreamServer(folder / "here", Echo, unix_mode=0o660), ThreadedUnixStreamServer("there", Echo):
        assert (permissions("here"), permissions("there")) == (0o660, 0o755)


def test_abstract_name_is_served_and_has_no_permissions(folder):
    """An empty address has the system choose a name."""
    for address in ("\0threaded_echo test", ""):
        with ThreadedUnixStreamServer(address, Echo, unix_mode=0o600).start() as server:
            assert server.server_address.startswith(b"\0")
            assert ask(server) == b"ping\n"
    assert os.listdir() == []


def test_port_sharing_has_no_effect_on_a_unix_socket(folder):
    """Newer kernels refuse the option there."""
    with ThreadedUnixStreamServer("here", Echo, allow_reuse_port=True).start() as server:
        assert ask(server) == b"ping\n"
