"""The background thread of start(), and two threads that want to serve at once."""
from __future__ import annotations

import threading

import pytest

from threaded_echo import ThreadedTCPServer

from ..conftest import LOOPBACK
from ..tools import Echo, ask, running, wait_until


def test_start_returns_once_it_accepts():
    """And says so with the server itself."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert server.start() is server
        assert ask(server) == b"ping\n"


def test_start_twice_is_an_error(serve):
    """While it serves; the first goes on. serve_forever too."""
    server = serve(Echo)
    for serving_again in (server.start, server.serve_forever):
        with pytest.raises(RuntimeError, match="already serving"):
            serving_again()
    assert ask(server) == b"ping\n"


def test_start_while_starting_is_an_error():
    """Between start() and the first accept."""
    entered, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Takes its time to start."""

        def serve_forever(self, poll_interval=0.5):
            """Wait, then serve."""
            entered.set()
            wait_until(release)
            super().serve_forever(poll_interval)

    with Server(LOOPBACK, Echo) as server, running(server.start):
        wait_until(entered)
        with pytest.raises(RuntimeError, match="already serving"):
            server.start()
        release.set()
