"""A server's certificate: loaded from files, and renewed while the server serves.

Guarantees:

- A certificate that does not load changes nothing: both files are read once, and what was read is tried in a context of
  its own before the live one is touched.
- While the live context is changed, no connection is being wrapped, since OpenSSL copies the certificate into each
  connection then, without a lock. Connections that are wrapped already keep the certificate that they have.
"""
from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from . import tls

if TYPE_CHECKING:
    import ssl

Path = str | os.PathLike[str]


def server_context(certfile: Path, keyfile: Path | None = None, cafile: Path | None = None) -> ssl.SSLContext:
    """Make the context of a server; ``cafile``: clients need a certificate that one of these authorities has signed.

    Raises OSError, in many cases an `ssl.SSLError`, which names the file.
    """
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A client could make the server compute by asking for one handshake after the other; TLS 1.3 has no such thing.
    context.options |= ssl.OP_NO_RENEGOTIATION
    with _read(certfile, keyfile) as files:
        _load(context, *files, certfile, keyfile)
    if cafile is not None:
        with open(cafile, "rb"):  # an error of opening it names it
            pass
        try:
            context.load_verify_locations(cafile)
        except ssl.SSLError as error:
            raise ssl.SSLError(error.errno, f"cannot load {os.fspath(cafile)}: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Certificates:
    """Wraps a server's connections in TLS, and renews its certificate. *Thread safety*: any thread."""

    def __init__(self) -> None:
        self.files: tuple[Path, Path | None] | None = None
        """The certificate's file and its key's (``None``: the same) that were loaded last; ``None`` if none were."""
        self.renew: Callable[[], ssl.SSLContext] | None = None
        """Makes the server's context anew from its files, if the context is not the program's own."""

    def wrap(self, context: ssl.SSLContext, connection: socket.socket, ragged: bool = True) -> ssl.SSLSocket:
        """As `tls.wrap`."""
        with _changing(context):
            return tls.wrap(context, connection, ragged)

    def reload(self, server: Any, certfile: Path | None = None,
               keyfile: Path | None = None) -> tuple[Path, Path | None]:
        """Load a certificate into the context of a server, and return its files: see ``ThreadedMixIn.reload_tls``."""
        listener = tls.as_tls(getattr(server, "socket", None))
        context: ssl.SSLContext | None = server.ssl_context
        if context is None and listener is not None:
            context = listener.context
        if context is None:
            raise RuntimeError("this server has no TLS: set its ssl_context")
        if certfile is None:
            if keyfile is not None:
                raise TypeError("reload_tls: a keyfile needs its certfile")
            if self.files is None:
                raise RuntimeError("this server does not know the files of its certificate: call "
                                   "reload_tls(certfile, keyfile) once")
            certfile, keyfile = self.files
            if self.renew is not None:  # not just the certificate: the authority's, and a key of another kind
                server.ssl_context = self.renew()
                return self.files
        with _read(certfile, keyfile) as files:
            _load(_trial_of(context), *files, certfile, keyfile)
            with _changing(context):
                _load(context, *files, certfile, keyfile)
                self.files = certfile, keyfile
        return certfile, keyfile


def _changing(context: ssl.SSLContext) -> threading.RLock:
    """Return the lock that is held while a context is changed, or a connection wrapped by it.

    It belongs to the context, which servers may share. A forked process has its own.
    """
    lock: threading.RLock = vars(context).setdefault(f"_threaded_changing_{os.getpid()}", threading.RLock())  # atomic
    return lock


def _trial_of(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a context that takes the certificates that ``context`` does."""
    import ssl

    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trial.set_ciphers(f"DEFAULT:@SECLEVEL={context.security_level}")  # what OpenSSL holds keys and signatures to
    return trial


@contextmanager
def _read(certfile: Path, keyfile: Path | None) -> Iterator[tuple[str, str | None]]:
    """Read the files once, and keep copies that load alike again and again, for the ``with`` block.

    The copies are in memory where the platform has such files, else in a folder that only this user may read.
    """
    with ExitStack() as stack:
        yield _copy(certfile, stack), None if keyfile is None else _copy(keyfile, stack)


def _copy(path: Path, stack: ExitStack) -> str:
    with open(path, "rb") as file:
        data = file.read()
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        copy = stack.enter_context(open(os.memfd_create("certificate"), "wb"))
        name = f"/proc/self/fd/{copy.fileno()}"
    else:
        import tempfile  # which registers something for each fork

        name = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "certificate")
        copy = stack.enter_context(open(name, "xb"))
    copy.write(data)
    copy.flush()
    return name


def _load(context: ssl.SSLContext, copy: str, key_copy: str | None, certfile: Path, keyfile: Path | None) -> None:
    """Load copies of the files, by whose own names an error is told."""
    import ssl

    names = os.fspath(certfile) if keyfile is None else f"{os.fspath(certfile)} with the key {os.fspath(keyfile)}"
    try:
        context.load_cert_chain(copy, key_copy, _refuse)
    except ssl.SSLError as error:
        reason = _missing(copy, key_copy) or _reason(error)
        raise ssl.SSLError(error.errno, f"cannot load {names}: {reason}") from error
    except _Encrypted:
        raise ssl.SSLError(0, f"cannot load {names}: the key is encrypted, and nobody is there to ask") from None


def _missing(copy: str, key_copy: str | None) -> str | None:
    """Say what is not in the files; OpenSSL says "PEM lib" of all that. ``None`` if it is something else."""
    with open(copy, "rb") as file:
        certificate = file.read()
    key = certificate
    if key_copy is not None:
        with open(key_copy, "rb") as file:
            key = file.read()
    if b"-----BEGIN " not in certificate or b"CERTIFICATE-----" not in certificate:
        return "there is no certificate in PEM in it"
    if b"PRIVATE KEY-----" not in key:
        return "there is no private key in it: name the key's file, too" if key_copy is None else \
               "there is no private key in the key's file"
    return None


class _Encrypted(Exception):
    """The key's password is asked for."""


def _refuse() -> str:
    """Refuse to give a password, for which OpenSSL would ask at the terminal."""
    raise _Encrypted


def _reason(error: ssl.SSLError) -> str:
    """Say what is wrong in OpenSSL's words: "key values mismatch"."""
    return (error.reason or str(error)).replace("_", " ").lower()
