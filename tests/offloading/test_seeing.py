"""What a server tells of its calls: who runs what, for how long, and which are slow."""
from __future__ import annotations

import functools
import logging
import math
import threading
from contextlib import nullcontext

import pytest

from threaded_echo import ClientHandler, LineHandler
from threaded_echo.clients.period import Period
from threaded_echo.offloading.call import Call, Terms, name_of

from .. import calls
from ..tools import Gate, connect, receive, running, wait_until
from .tools import occupied, wait_for


class Compute:
    """Has a method."""

    def run(self) -> None:
        """Compute."""

    def __call__(self) -> None:
        """Compute."""


@pytest.mark.parametrize(("function", "name"), [
    (calls.square, "tests.calls.square"),
    (functools.partial(functools.partial(calls.square, 3)), "tests.calls.square"),
    (Compute().run, f"{__name__}.Compute.run"),
    (functools.partial(Compute().run), f"{__name__}.Compute.run"),
    (Compute(), f"{__name__}.Compute"),
    (len, "builtins.len"),
    ("".join, "str.join"),
])
def test_name_of_a_function_is_for_people(function, name):
    """A partial has that of what it calls."""
    assert name_of(function) == name


def test_calls_that_run_and_wait_are_shown(meet, meeting):
    """With their clients, in the order in which they came."""
    server = meet(executor=1)
    assert server.offloads() == ()
    with connect(server) as one, connect(server) as other:
        one.sendall(b"\n")
        meeting.welcome()
        other.sendall(b"\n")
        wait_for(server, lambda stats: stats.offloads_waiting == 1)
        with running(server.offload, functools.partial(calls.square, 3)):
            wait_for(server, lambda stats: stats.offloads_waiting == 2)
            first, second, third = found = server.offloads()
            assert [call.function for call in found] == ["tests.calls.meet", "tests.calls.meet", "tests.calls.square"]
            assert [call.client and call.client.number for call in found] == [1, 2, None]
            assert [call.state for call in found] == ["running", "waiting", "waiting"]
            assert first.seconds >= second.seconds >= third.seconds >= 0
            assert str(first).startswith("client 1: tests.calls.meet running, ")
            assert str(third).startswith("a call of the program's own: tests.calls.square waiting, ")
            for client in (one, other):
                meeting.dismiss()
                if client is one:
                    meeting.welcome()
                assert receive(client, 3) == b"go\n"
    assert server.offloads() == ()


def test_call_within_a_call_is_shown_as_running(serve):
    """It uses the slot of the outer one."""
    server = serve(ClientHandler)
    inner, outer = server.offload(lambda: server.offload(server.offloads)), server.offload(server.offloads)
    assert [call.state for call in inner] == ["running", "running"]
    assert [call.state for call in outer] == ["running"]


def test_durations_are_in_the_statistics(serve):
    """How long calls have waited, also those that were given up, and how long they have run."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    stats = server.stats()
    assert (stats.offload_wait.count, stats.offload_run.count) == (0, 0)
    with occupied(server, gate):
        with pytest.raises(TimeoutError):
            server.offload_within(0, calls.square, 2)
    with pytest.raises(LookupError):
        server.offload(calls.fail, "it")
    assert server.offload(server.offload, calls.square, 3) == 9
    stats = server.stats()
    assert (stats.offload_wait.count, stats.offload_run.count) == (4, 3), "the inner call is in neither"
    for durations in (stats.offload_wait, stats.offload_run):
        assert durations.sum >= 0 and durations.buckets[-1] == (math.inf, durations.count)


def test_slow_function_in_the_handlers_thread_is_logged_at_its_end(serve, caplog):
    """Nobody waits meanwhile who could log it."""
    server = serve(ClientHandler, slow_offload=0)
    assert server.offload(calls.square, 3) == 9
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("a call of the program's own: tests.calls.square has taken ")


def test_slow_wait_for_a_turn_is_logged(serve, caplog):
    """The call has taken long, whatever for."""
    gate = Gate()
    server = serve(ClientHandler, max_offloads=1)
    with occupied(server, gate):
        server.slow_offload = 0
        with running(server.offload, calls.square, 2):
            wait_for(server, lambda stats: stats.offloads_waiting == 1)
            gate.release.set()
    assert caplog.text.count("tests.calls.square has not ended after") == 1
    server.slow_offload = 1000
    server.offload(calls.square, 2)
    assert len(caplog.records) == 1


def test_slow_calls_are_logged_within_bounds(serve, caplog):
    """The rest is counted."""
    server = serve(ClientHandler, slow_offload=0, logs_per_client=2)
    for _ in range(5):
        server.offload(calls.square, 3)
    assert len(caplog.records) == 2
    server.stop()
    assert "3 more slow calls were not logged" in caplog.text


def test_wait_ends_at_the_next_moment_at_which_there_is_something_to_do():
    """To log a slow call, then to give it up; ``None``: there is none."""
    def left(slow: float | None, timeout: float | None, is_told: bool = False) -> float | None:
        """Round it."""
        call = Call(Period(), None, calls.square, (), {}, nullcontext, Terms(timeout, slow), is_told=is_told)
        seconds = call.seconds_left()
        return None if seconds is None else math.ceil(seconds / 1000)

    assert left(None, None) is None
    assert (left(2000, None), left(None, 3000), left(2000, 3000), left(3000, 2000)) == (2, 3, 2, 2)
    assert (left(2000, 3000, True), left(2000, None, True)) == (3, None)


def test_slow_call_without_a_server_is_logged_without_a_bound(caplog):
    """It goes to the package's logger."""
    call = Call(Period(), None, calls.square, (), {}, nullcontext, Terms(slow=0))
    call.tell_if_slow("has taken")
    call.tell_if_slow("has taken")
    assert len(caplog.records) == 1 and caplog.records[0].name == "threaded_echo"


def test_time_left_of_a_call_is_never_negative():
    """It is a time to wait."""
    def left(timeout: float | None) -> float | None:
        """Make a call."""
        return Call(Period(), None, calls.square, (), {}, nullcontext, Terms(timeout)).time_left()

    assert left(None) is None and left(0) == 0 and 0 < left(100) <= 100


def test_handler_that_asks_sees_its_own_client(serve):
    """Handlers may use what the server tells."""
    seen = threading.Event()

    class Handler(LineHandler):
        """Looks at the calls from within one."""

        def process(self, line):
            """Offload a look."""
            [call] = self.offload(self.server.offloads)
            if call.client is self.client:
                seen.set()

    with connect(serve(Handler)) as client:
        client.sendall(b"\n")
        wait_until(seen)


def test_function_that_stands_for_another_one_is_named_by_its_class():
    """Its attributes are asked for elsewhere, which may fail, or give more of its kind."""
    class Remote:
        """Has every attribute."""

        def __getattr__(self, name: str) -> Remote:
            """Return the next one."""
            return self

    class Unreachable(Remote):
        """Has none, and says so in its own way."""

        def __getattr__(self, name: str) -> Remote:
            """Fail."""
            raise ConnectionError(name)

    for function in (Remote(), Unreachable()):
        assert name_of(function) == f"{__name__}.{type(function).__qualname__}"
