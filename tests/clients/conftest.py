"""What the tests of the clients share."""
from __future__ import annotations

import socket

import pytest

from threaded_echo.clients.client import Client
from threaded_echo.clients.period import Period

from ..conftest import LOOPBACK


def make(request, address="nowhere"):
    """Make a client of nobody's."""
    return Client(1, request, address, Period(), None)


@pytest.fixture
def pair():
    """Two ends of a TCP connection: the client's, and the server's with its Client."""
    with socket.create_server(LOOPBACK) as listener, socket.create_connection(listener.getsockname()) as outer:
        request, address = listener.accept()
        with request:
            outer.settimeout(20)
            yield outer, make(request, address)
