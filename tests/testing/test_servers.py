"""The servers of a test: how they are started, stopped and checked."""
from __future__ import annotations

import http.server
import socketserver
from collections.abc import Callable
from typing import Any

import pytest

from threaded_echo import LineHandler, ServerStopping, ThreadedMixIn, ThreadedTCPServer
from threaded_echo.testing import HANG_UP, Recorder, ServerFactory

from ..tools import Echo, Gate, ask, connect, receive_all, wait_until


def failing(error: BaseException) -> type[LineHandler]:
    """Make a handler that raises an error at its first line."""
    class Failing(LineHandler):
        """Fails."""

        def process(self, line: bytes) -> bytes:
            """Raise the error."""
            raise error

    return Failing


def problems(factory: ServerFactory) -> str:
    """Close, and return why the test would fail; empty if it would not."""
    try:
        factory.close()
    except pytest.fail.Exception as failure:
        return str(failure)
    return ""


def test_servers_echo_by_default_and_are_stopped() -> None:
    """Each has a port of its own; the clients that are left are ended."""
    with ServerFactory() as threaded_server:
        first, second = threaded_server(), threaded_server()
        assert type(first).__name__ == "ThreadedTCPServer" and isinstance(first, ThreadedTCPServer)
        assert first.server_address[1] != second.server_address[1]
        assert [ask(server, b"hello") for server in (first, second)] == [b"hello", b"hello"]
        with connect(first) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            threaded_server.close()
            assert receive_all(client) == b""
    assert first.fileno() == second.fileno() == -1


def test_options_address_and_server_class_are_the_programs(tmp_path: Any) -> None:
    """A handler of the program's, and a class that has its own start and stop."""
    class Server(ThreadedTCPServer):
        """Has names of its own."""

        def start(self) -> Any:
            """Return something else."""
            return "not called"

        stop: Any = None

    with ServerFactory() as threaded_server:
        server = threaded_server(Echo, ("127.0.0.2", 0), server_class=Server, max_clients=7)
        assert (server.server_address[0], server.max_clients) == ("127.0.0.2", 7)
        assert isinstance(server, Server) and type(server).__module__ == __name__
        assert ask(server, b"hello") == b"hello"


@pytest.mark.parametrize("base", [http.server.HTTPServer, socketserver.TCPServer])
def test_server_class_without_the_mixin_gets_it(base: Any) -> None:
    """Any server that is built on socketserver is started and stopped."""
    with ServerFactory() as threaded_server:
        server = threaded_server(Echo, server_class=base)
        assert isinstance(server, ThreadedMixIn) and isinstance(server, base)
        assert ask(server, b"hello") == b"hello"


def test_error_in_making_or_starting_a_server_is_raised() -> None:
    """A server that does not start is closed in the end, the others are stopped."""
    class Server(ThreadedTCPServer):
        """Does not serve."""

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            """Fail."""
            raise ValueError("it does not serve")

    with ServerFactory() as threaded_server:
        threaded_server()
        with pytest.raises(TypeError, match="nothing_known"):
            threaded_server(Echo, nothing_known=1)
        with pytest.raises(ValueError, match="it does not serve"):
            threaded_server(Echo, server_class=Server)


def test_handler_that_has_raised_fails_the_test() -> None:
    """The message has the client's number and the traceback, from the handler's own lines on."""
    threaded_server = ServerFactory()
    server = threaded_server(failing(KeyError("no such key")))
    assert ask(server, b"a\n") == b""
    assert [str(error) for error in threaded_server.errors] == ["'no such key'"]
    first, second, third, *rest = problems(threaded_server).splitlines()
    assert (first, second) == ("client 1: its handler has failed:", "Traceback (most recent call last):")
    assert third.startswith(f'  File "{__file__}", line ') and third.endswith(", in process")
    assert rest[-1] == "KeyError: 'no such key'"
    assert problems(threaded_server) == ""


@pytest.mark.parametrize("outcome", [pytest.fail, pytest.skip])
def test_outcome_of_pytests_in_a_handler_fails_the_test(outcome: Callable[[str], None]) -> None:
    """It is no Exception, which a server would handle."""
    class Handler(LineHandler):
        """Calls pytest.fail()."""

        def process(self, line: bytes) -> None:
            """Call it."""
            outcome("not this line")

    threaded_server = ServerFactory()
    assert ask(threaded_server(Handler), b"a\n") == b""
    assert problems(threaded_server).endswith(": not this line")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("two", [SystemExit(3)])])
def test_what_is_no_exception_fails_the_test_unless_it_is_expected(error: BaseException) -> None:
    """No server handles it, and the end of a thread by SystemExit is told to nobody."""
    threaded_server = ServerFactory()
    for raises in ((), type(error)):
        assert ask(threaded_server(failing(error), raises=raises), b"a\n") == b""
    text = problems(threaded_server)
    assert text.count("client 1: its handler has failed:") == 1 and type(error).__name__ in text


@pytest.mark.parametrize("wrong", [[ValueError], "ValueError", ValueError("text"), None, int, (ValueError, int)])
def test_wrong_raises_is_an_error_at_the_call(wrong: Any) -> None:
    """Nothing has been started."""
    with ServerFactory() as threaded_server, pytest.raises(TypeError, match="^raises must be an exception class, or "):
        threaded_server(raises=wrong)


def test_client_that_goes_away_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Nor is what a stop raises in a handler."""
    gate = Gate(lambda handler: handler.request.sendall(b"x" * 10_000_000))
    with ServerFactory() as threaded_server:
        server = threaded_server(gate.handler)
        connect(server).close()
        wait_until(gate.entered)
        gate.release.set()
        assert ask(threaded_server(failing(ServerStopping("now"))), b"a\n") == b""
    assert threaded_server.errors == []
    assert server.stats().failed == 0


@pytest.mark.parametrize("raises", [ValueError, Exception, (KeyError, ValueError)])
def test_error_that_is_expected_does_not_fail_the_test(raises: Any) -> None:
    """One class, or several; of two clients, too."""
    with ServerFactory() as threaded_server:
        server = threaded_server(failing(ValueError("expected")), raises=raises)
        ask(server, b"a\n")
        ask(server, b"a\n")
        assert len(threaded_server.errors) == 2


def test_error_that_is_expected_of_another_server_fails_the_test() -> None:
    """What is expected belongs to a server; the message has only what was not expected."""
    threaded_server = ServerFactory()
    ask(threaded_server(failing(ValueError("expected")), raises=ValueError), b"a\n")
    ask(threaded_server(failing(ValueError("not expected"))), b"a\n")
    text = problems(threaded_server)
    assert "ValueError: not expected" in text and "ValueError: expected" not in text


@pytest.mark.parametrize("raises, names", [(ValueError, "ValueError"),
                                           ((ValueError, OSError), "ValueError or OSError")])
def test_expected_error_that_is_not_raised_fails_the_test(raises: Any, names: str) -> None:
    """And so does the other error that is."""
    threaded_server = ServerFactory()
    threaded_server(raises=raises)
    ask(threaded_server(failing(KeyError("other")), raises=raises), b"a\n")
    text = problems(threaded_server)
    assert text.count(f"no handler has raised {names}") == 2
    assert "KeyError: 'other'" in text


@pytest.mark.parametrize("hook", ["client_connected", "client_disconnected"])
def test_hook_that_has_raised_fails_the_test(hook: str) -> None:
    """The server only logs that."""
    def fail(self: Any, client: Any) -> None:
        raise ValueError("wrong hook")

    threaded_server = ServerFactory()
    ask(threaded_server(server_class=type("Server", (ThreadedTCPServer,), {hook: fail})))
    text = problems(threaded_server)
    assert text.startswith(f"client 1: {hook} has failed:\n") and text.endswith("\nValueError: wrong hook")


def test_connection_that_verify_request_fails_at_fails_the_test() -> None:
    """It has no handler yet."""
    class Server(ThreadedTCPServer):
        """Verifies wrongly."""

        def verify_request(self, request: Any, client_address: Any) -> bool:
            """Fail."""
            raise ValueError("wrong verify_request")

    threaded_server = ServerFactory()
    assert ask(threaded_server(server_class=Server), b"") == b""
    assert problems(threaded_server).endswith("\nValueError: wrong verify_request")


@pytest.mark.parametrize("stops_itself", [False, True])
def test_survivor_fails_the_test(stops_itself: bool) -> None:
    """The message has its lines, also if the test has stopped the server itself."""
    gate = Gate()
    threaded_server = ServerFactory()
    server = threaded_server(gate.handler, drain_timeout=0, force_timeout=0)
    with connect(server):
        wait_until(gate.entered)
        [thread] = [client.thread for client in server.clients.values()]
        if stops_itself:
            server.stop()
        text = problems(threaded_server)
        gate.release.set()
        thread.join()
    assert text.startswith("a handler does not end when the server is stopped: stopped in ")
    assert "wait_until(gate.release)" in text


def test_all_servers_are_stopped_and_all_problems_told() -> None:
    """A server that cannot be closed does not keep the others from being stopped."""
    class Server(ThreadedTCPServer):
        """Fails at its end."""

        def server_close(self) -> None:
            """Close, and fail."""
            super().server_close()
            raise ValueError("wrong server_close")

    threaded_server = ServerFactory()
    classes = (ThreadedTCPServer, Server, ThreadedTCPServer)
    servers = [threaded_server(failing(KeyError(str(number))), server_class=classes[number]) for number in range(3)]
    for server in servers:
        ask(server, b"a\n")
    text = problems(threaded_server)
    assert all(f"\nKeyError: '{number}'" in text for number in range(3))
    assert "a server cannot be stopped:\n" in text and "\nValueError: wrong server_close" in text
    assert all(server.fileno() == -1 for server in servers)


def test_records_are_made_by_the_fixture() -> None:
    """So that a test need import nothing."""
    assert ServerFactory.record is Recorder
    assert ServerFactory().HANG_UP is HANG_UP
