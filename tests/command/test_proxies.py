"""Proxies on the command line."""
from __future__ import annotations

import sys

import pytest

from threaded_echo.command import run as cli

from ..test_proxied_clients import HEADER
from ..tools import connect, receive
from .operating import run


def test_client_of_a_proxy_is_shown_with_its_real_address():
    """Both networks count."""
    def script(operator):
        """Come by a proxy."""
        with connect(operator.address()) as client:
            client.sendall(HEADER + b"hello\n")
            assert receive(client, 6) == b"hello\n"
        operator.interrupt()

    status, lines = run(["--port", "0", "--proxy-protocol", "10.0.0.0/8", "--proxy-protocol", "127.0.0.1"], script)
    assert status == cli.OK and lines[1:3] == ["client 1 connected from 192.0.2.1:1234", "client 1: hello"]


@pytest.mark.parametrize("network", ["localhost", "10.0.0.1/8", ""])
def test_network_that_is_none_is_wrong_usage(capsys, network):
    """Names are not looked up, and host bits are a mistake."""
    with pytest.raises(SystemExit) as raised:
        run(["--proxy-protocol", network])
    assert raised.value.code == 2 and f"argument --proxy-protocol: '{network}' " in capsys.readouterr().err.replace(
        f"argument --proxy-protocol: {network} has", f"argument --proxy-protocol: '{network}' has")


def test_package_that_is_missing_is_told(capsys, monkeypatch):
    """One line says how to install it."""
    monkeypatch.setitem(sys.modules, "proxyprotocol.detect", None)
    assert run(["--port", "0", "--proxy-protocol", "127.0.0.1"]) == (cli.FAILED, [])
    assert capsys.readouterr().err == ("threaded_echo: the option proxy_protocol needs the package proxy-protocol: "
                                       "python3 -m pip install proxy-protocol\n")
