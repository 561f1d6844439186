"""Who is at the other end of a Unix socket."""
from __future__ import annotations

import os
import socket
import sys

import pytest

from threaded_echo import ThreadedUnixStreamServer
from threaded_echo.transport.credentials import read_credentials

from ..tools import Echo, Gate, ask, connect, subclass, until, wait_until

OURS = (os.getpid(), os.geteuid(), os.getegid())

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="no SO_PEERCRED here")


@LINUX
def test_credentials_are_those_of_who_has_connected(monkeypatch, tmp_path):
    """They are there while the client is served, and afterwards."""
    monkeypatch.chdir(tmp_path)
    gate = Gate()
    with ThreadedUnixStreamServer("here", gate.handler).start() as server:
        with connect(server):
            wait_until(gate.entered)
            client = server.clients[1]
            assert client.credentials == OURS
            assert client.credentials.pid == os.getpid() and client.credentials.uid == os.geteuid()
            gate.release.set()
            until(lambda: client.state == "gone")
        assert client.credentials == OURS


@LINUX
def test_credentials_are_known_after_a_client_has_gone_that_nobody_had_asked_for(monkeypatch, tmp_path):
    """They are read before its connection is closed."""
    monkeypatch.chdir(tmp_path)
    gate = Gate()
    with ThreadedUnixStreamServer("here", gate.handler).start() as server:
        with connect(server):
            wait_until(gate.entered)
            client = server.clients[1]
            gate.release.set()
            until(lambda: client.state == "gone")
        assert client.credentials == OURS


def test_tcp_client_has_no_credentials(serve):
    """Nor does anything else than a Unix socket."""
    clients = []
    ask(serve(Echo, subclass(client_connected=lambda server, client: clients.append(client))), b"")
    assert clients[0].credentials is None
    assert read_credentials("no socket") is None


def test_platform_that_cannot_tell_knows_nothing(monkeypatch):
    """Nor does one where the connection is closed."""
    one, other = socket.socketpair()
    with one, other:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "platform", "plan9")
            assert read_credentials(one) is None
    assert read_credentials(one) is None
