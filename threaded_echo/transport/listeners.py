"""Where a server listens: addresses as people write them, their families, and the paths of Unix sockets."""
from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..observe.logs import printable

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, which has no Unix sockets
    fcntl = None  # type: ignore[assignment]


def show_address(address: Any) -> str:
    """Show an address as people write it: ``127.0.0.1:9999``, ``[::1]:9999``, a path, or ``@name`` for an abstract one.

    A peer chooses the name of its Unix socket: what is not printable in it is escaped.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return printable(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}")
    if isinstance(address, (str, bytes)):
        text = os.fsdecode(address)
        return printable(f"@{text[1:]}" if text.startswith("\0") else text)
    return printable(str(address))


def resolve_ipv6(address: Any) -> Any:
    """Return the full address, for a socket of the family AF_INET6, if the host is an IPv6 address; otherwise ``None``.

    Host names are not looked up.
    """
    if not (isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str) and ":" in address[0]):
        return None
    try:
        found = socket.getaddrinfo(address[0], address[1], family=socket.AF_INET6, type=socket.SOCK_STREAM,
                                   flags=socket.AI_NUMERICHOST)
    except (OSError, OverflowError, TypeError, UnicodeError):  # whatever is wrong with it, binding raises the error
        return None
    # The scope of fe80::1%eth0 is the fourth item, which bind takes from nowhere else.
    return found[0][4] if len(address) == 2 else address


@contextmanager
def errors_name(address: Any) -> Iterator[None]:
    """Add the address to an OSError: "[Errno 98] Address already in use: 127.0.0.1:9999"."""
    try:
        yield
    except OSError as error:
        if error.strerror:
            error.strerror = f"{error.strerror}: {show_address(address)}"
        raise


class UnixPath:
    """A path for a Unix socket to listen on, which is free or has the socket of a server that has ended.

    Between the look at what is there and the moment when the new socket listens, another server could do the same, and
    one would remove the other's socket. So both do it with a lock held on the folder, which leaves nothing behind.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Free the path for a socket that is bound, and listens, in the ``with`` block.

        Raises OSError if another server listens there, or if the path is not a socket; either is left alone.
        """
        with self._locked():
            found = self._stat()
            if found is not None and not stat.S_ISSOCK(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a file that is not a socket"
                raise FileExistsError(errno.EEXIST, f"it is {kind}")
            if found is not None and self._is_dead():
                os.unlink(self._path)
            yield
            made = self._stat()
            self._file = made and (made.st_dev, made.st_ino)

    def remove(self) -> None:
        """Remove the socket, once it is closed, if it is still the one that was made."""
        with suppress(OSError), self._locked():  # the folder may have gone
            found = self._stat()
            # Once the socket is closed, a successor that has replaced it may be given the same inode: but that listens.
            if found is not None and (found.st_dev, found.st_ino) == self._file and self._is_dead():
                os.unlink(self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock on the folder."""
        folder = os.open(os.path.dirname(self._path) or os.curdir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)  # which unlocks it

    def _stat(self) -> os.stat_result | None:
        try:
            return os.lstat(self._path)
        except OSError:  # nothing is there, or the folder may not be searched: then binding raises the error
            return None

    def _is_dead(self) -> bool:
        """Return whether no server listens there."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a listener whose queue is full is alive, too
            return probe.connect_ex(self._path) == errno.ECONNREFUSED
