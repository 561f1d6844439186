"""Servers that override socketserver's hooks, above and below the mix-in: they work, and a stop leaves nothing."""
from __future__ import annotations

import queue
import socketserver
import sys
import threading
from typing import Any

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, current_client

from .conftest import LOOPBACK
from .tools import GUARD, ask, connect, receive, receive_all, running, wait_until
from .overrides import ABOVE_ONLY, EITHER_SIDE, OwnVerify, Told


class NumberedEcho(socketserver.StreamRequestHandler):
    """Echoes each line behind its client's number; fails at ``fail``."""

    def handle(self) -> None:
        """Echo lines until end of stream."""
        client = current_client()
        assert client is not None
        for line in self.rfile:
            if line == b"fail\n":
                raise ValueError("asked to fail")
            self.wfile.write(b"%d %s" % (client.number, line))


def above(hook: type) -> Any:
    """Make a class that overrides a hook of this package's server."""
    return type("Server", (hook, ThreadedTCPServer), tells_who_has_gone())


def below(hook: type) -> Any:
    """Make a class that puts the mix-in ahead of a program's server."""
    return type("Server", (ThreadedMixIn, hook, socketserver.ThreadingTCPServer), tells_who_has_gone())


def tells_who_has_gone() -> dict[str, object]:
    """Make the body of a class that puts the numbers of clients that have gone in a queue."""
    gone: queue.SimpleQueue[int] = queue.SimpleQueue()
    return {"gone": gone, "client_disconnected": lambda server, client: gone.put(client.number)}


def settled(server: Any) -> bool:
    """Tell whether a stopped server's counts add up, and it has neither clients nor threads."""
    stats = server.stats()
    assert stats.accepted == stats.finished + stats.refused
    return not (server.clients or stats.live or stats.threads_busy or stats.threads_idle)


@pytest.mark.parametrize(("make", "hook"), [*((above, hook) for hook in ABOVE_ONLY),
                                            *((make, hook) for make in (above, below) for hook in EITHER_SIDE)])
def test_server_with_a_hook_of_its_own_numbers_serves_and_ends_its_clients(make: Any, hook: type) -> None:
    """Whichever hook a program overrides: clients are numbered and served, an idle one is ended, nothing is left."""
    server = make(hook)(LOOPBACK, NumberedEcho)
    with server.start():
        assert ask(server, b"one\n") == b"1 one\n"
        assert server.gone.get(timeout=GUARD) == 1
        with connect(server) as idle:
            idle.sendall(b"two\n")
            assert receive(idle, 6) == b"2 two\n"
            assert ask(server, b"three\n") == b"3 three\n"
            assert server.gone.get(timeout=GUARD) == 3
            assert list(server.clients) == [2]
            report = server.stop()
            assert (report.drained, report.forced, report.clean) == (1, 0, True)
            assert receive_all(idle) == b""
    assert server.gone.get_nowait() == 2
    assert server.gone.empty()
    assert all(calls > 0 for calls in server.told.values())
    assert len(server.told) == 1
    assert settled(server)


@pytest.mark.parametrize("make", [above, below])
def test_server_that_refuses_by_verify_request_counts_and_closes(make: Any) -> None:
    """A client that verify_request turns away has a number, gets no handler and an end of stream."""
    class TakesTheSecond(OwnVerify):
        """Takes every second client."""

        def verify_request(self, request: Any, client_address: Any) -> bool:
            """Count them."""
            super().verify_request(request, client_address)
            return self.told["verify_request"] % 2 == 0

    with make(TakesTheSecond)(LOOPBACK, NumberedEcho).start() as server:
        with connect(server) as refused:
            assert receive_all(refused) == b""
        assert ask(server, b"hello\n") == b"2 hello\n"
        assert (server.stats().refused, server.stats().finished) == (1, 1)
    assert settled(server)


@pytest.mark.parametrize("make", [above, below])
def test_server_with_service_actions_is_called_back_without_a_connection(make: Any) -> None:
    """service_actions is called at every poll, which only a server with its own has."""
    acted = threading.Event()

    class Acts(Told):
        """Says so the third time."""

        def service_actions(self) -> None:
            """Count."""
            self.tell("service_actions")
            if self.told["service_actions"] == 3:
                acted.set()

    server = make(Acts)(LOOPBACK, NumberedEcho)
    with running(server.serve_forever, 0.01):
        wait_until(acted)
        server.stop()
    assert settled(server)


@pytest.mark.parametrize("make", [above, below])
def test_server_with_its_own_handle_error_sees_the_exception_and_goes_on(make: Any) -> None:
    """handle_error runs inside the except block, and the handler's failure costs its client only."""
    seen: list[BaseException | None] = []

    class Sees(Told):
        """Keeps the exceptions."""

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Keep what is being handled."""
            seen.append(sys.exc_info()[1])

    with make(Sees)(LOOPBACK, NumberedEcho).start() as server:
        assert ask(server, b"fail\n") == b""
        assert ask(server, b"hello\n") == b"2 hello\n"
        assert server.stats().failed == 1
    assert [str(error) for error in seen] == ["asked to fail"]
    assert settled(server)
