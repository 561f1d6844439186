"""The file of a Unix socket that a server listens on: taken without harm to another server, and removed at the end."""
from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, which has no Unix sockets
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 5.0
"""Seconds for another program to give up its lock on the folder. Servers hold it for a moment."""
_PAUSE = 0.01


def has_no_file(address: str | bytes) -> bool:
    """Return whether an address is one of Linux's abstract names, or empty, which has the system choose such a name."""
    return os.fsencode(address)[:1] in (b"", b"\0")


class UnixPath:
    """A path for a Unix socket to listen on, which is free or has the socket of a server that has ended.

    Between the look at what is there and the moment when the new socket listens, another server could do the same, and
    one would remove the other's socket. So both do it with a lock held on the folder, which leaves nothing behind.
    """

    def __init__(self, path: str | bytes) -> None:
        self._path = path
        self._absolute = os.path.abspath(path)  # the program may go to another folder before the end
        self._process = os.getpid()
        self._file: tuple[int, int] | None = None

    def listen(self, listener: socket.socket, backlog: int, mode: int | None = None) -> None:
        """Bind a socket to the path, and listen, in place of a socket on which nobody listens any more.

        ``mode``: the permissions of the file; ``None``: what the umask leaves. Raises OSError if another server listens
        there, or if the path is not a socket; either is left alone.
        """
        with self._locked():
            found = self._stat()
            if found is not None and not stat.S_ISSOCK(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a file that is not a socket"
                raise FileExistsError(errno.EEXIST, f"it is {kind}")
            if found is not None and self._is_dead(self._path):
                os.unlink(self._absolute)
            if mode is not None:
                with suppress(OSError):  # Linux gives the file this mode, less the umask; elsewhere it may be refused
                    os.fchmod(listener.fileno(), mode)
            listener.bind(self._path)
            made = os.lstat(self._absolute)
            self._file = made.st_dev, made.st_ino
            if mode is not None and stat.S_IMODE(made.st_mode) != mode:
                os.chmod(self._absolute, mode)  # nobody can connect before it listens
            listener.listen(backlog)

    def remove(self) -> None:
        """Remove the socket, once it is closed, if it is still the one that was made, and by this process."""
        if os.getpid() != self._process or self._file is None:
            return
        with suppress(OSError), self._locked():  # the folder may have gone
            found = self._stat()
            # Once the socket is closed, a successor that has replaced it may be given the same inode: but that listens.
            if found is not None and (found.st_dev, found.st_ino) == self._file and self._is_dead(self._shortest()):
                os.unlink(self._absolute)
                self._file = None

    def _shortest(self) -> str | bytes:
        """Return the path by which the socket was bound, if that still leads there: its absolute path may be too long.
        """
        return self._path if os.path.abspath(self._path) == self._absolute else self._absolute

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock on the folder. Raises OSError if another program does not give it up."""
        folder = os.open(os.path.dirname(self._absolute), os.O_RDONLY)
        try:
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise BlockingIOError(errno.EAGAIN, "another program has locked its folder") from None
                    time.sleep(_PAUSE)
            yield
        finally:
            os.close(folder)  # which unlocks it

    def _stat(self) -> os.stat_result | None:
        try:
            return os.lstat(self._absolute)
        except OSError:  # nothing is there, or the folder may not be searched: then binding raises the error
            return None

    def _is_dead(self, path: str | bytes) -> bool:
        """Return whether no server listens there."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a listener whose queue is full is alive, too
            try:
                return probe.connect_ex(path) == errno.ECONNREFUSED
            except OSError:  # the path is too long for an address: nothing is known
                return False
