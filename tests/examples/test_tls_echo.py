"""The example with TLS: clients that have a certificate, and those that have none."""
from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from threaded_echo.examples import tls_echo
from threaded_echo.examples.tls_echo import NamedEchoHandler

from ..tools import ask, connect, receive_all
from ..transport.test_tls import CERTIFICATE
from .programs import operate

ARGUMENTS = ["--cert", str(CERTIFICATE), "--key", str(CERTIFICATE), "--ca", str(CERTIFICATE)]


def ask_tls(address: Any, certificate: Path | None) -> bytes:
    """Send a line over TLS, and return what comes."""
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    if certificate is not None:
        context.load_cert_chain(certificate)
    with context.wrap_socket(connect(address), server_hostname="localhost") as client:
        client.sendall(b"hello\n")
        if certificate is not None:
            return client.recv(100)
        return receive_all(client)


def test_program_serves_who_has_a_certificate() -> None:
    """The line comes back with the name in it; without one there is an error in place of it."""
    def talk(address: Any) -> bytes:
        """Try without, then with one."""
        with pytest.raises(OSError):
            ask_tls(address, None)
        return ask_tls(address, CERTIFICATE)

    assert operate(tls_echo.main, talk, *ARGUMENTS) == b"localhost: hello\n"


def test_handler_without_tls_refuses_to_serve(serve: Any) -> None:
    """It has no name to say."""
    server = serve(NamedEchoHandler)
    assert ask(server, b"hello\n") == b""
    assert server.stats().failed == 1


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The exit message has the reason."""
    with pytest.raises(SystemExit, match="^tls_echo: cannot serve: .*No such file"):
        tls_echo.main(["--port", "0", *ARGUMENTS[2:], "--cert", str(tmp_path / "missing.pem")])
