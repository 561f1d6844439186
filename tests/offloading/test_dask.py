"""Calls in a Dask cluster, with a stand-in for Dask's client; `tests.system.test_dask` has real processes."""
from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from threaded_echo import ServerStopping, ThreadedTCPServer, WorkerDied
from threaded_echo.offloading import executors

from .. import calls
from ..tools import GUARD, LOOPBACK, running, until
from .tools import calling


class Remote:
    """What a client's ``submit`` returns."""

    def __init__(self, outcomes: list[Any]) -> None:
        self.status = "pending"
        self.outcomes = outcomes
        self.released = threading.Event()

    def release(self) -> None:
        """Give the call up."""
        self.released.set()


class Client:
    """Dask's client: an event loop in a thread, and calls whose outcomes the test decides on."""

    def __init__(self) -> None:
        self.status = "running"
        self.loop = self
        self.submitted: list[tuple[Any, ...]] = []
        self.outcomes: list[Any] = []  # of the next call: for each attempt to fetch it, a result or an exception
        self.remotes: list[Remote] = []
        self.answers = threading.Event()
        self.answers.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def add_callback(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a coroutine, as the event loop of Dask's client does."""
        asyncio.run_coroutine_threadsafe(function(*args), self._loop)

    def submit(self, function: Callable[..., Any], *args: Any, **options: Any) -> Remote:
        """Take a call."""
        if self.status == "closed":
            raise LookupError("Client is closed.")
        self.submitted.append((function, args, options))
        self.remotes.append(Remote([*self.outcomes] or [function]))
        return self.remotes[-1]

    async def gather(self, remote: Remote, asynchronous: bool) -> Any:
        """Return or raise the next outcome, when it is time."""
        assert asynchronous
        while not self.answers.is_set():
            await asyncio.sleep(0.001)
        outcome = remote.outcomes.pop(0)  # and go on to the end of the call without a pause
        if isinstance(outcome, tuple):
            remote.status, outcome = outcome
            raise outcome
        return outcome() if callable(outcome) else outcome

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class ClientExecutor:
    """What a client's ``get_executor`` returns."""

    def __init__(self, client: Client, **options: Any) -> None:
        self._client, self._kwargs, self._shutdown = client, options, False

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Fail, as after a ``shutdown``."""
        raise RuntimeError("cannot schedule new futures after shutdown")


class KilledWorker(Exception):
    """Has the name of Dask's exception."""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Have a client of a package with the name of Dask's."""
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(KilledWorker=KilledWorker, Client=Client))
    made = Client()
    yield made
    made.close()


@pytest.fixture
def server(client: Client) -> Iterator[ThreadedTCPServer]:
    """Have a server that offloads to it."""
    with ThreadedTCPServer(LOOPBACK, executor=client) as made:
        yield made


def nine() -> int:
    """Return 9."""
    return 9


def test_call_has_its_result_and_is_no_other_ones(client, server):
    """Dask would take equal calls for one. Keywords are the function's, though they may have names that Dask uses."""
    assert server.offload(nine) == 9
    [(function, args, options)] = client.submitted
    assert (function, args, options) == (nine, (), {"pure": False})
    assert client.remotes[0].released.is_set()
    assert server.offload(calls.keywords, pure=1, key=2) == {"pure": 1, "key": 2}
    assert client.submitted[1][2] == {"pure": False}


@pytest.mark.parametrize("options", [{}, {"pure": True, "retries": 3}])
def test_executor_of_a_client_keeps_its_options(client, server, options):
    """They are said to each submission."""
    server.executor = ClientExecutor(client, **options)
    assert server.offload(nine) == 9
    assert client.submitted[0][2] == {"pure": False, **options}


def test_executor_that_is_shut_down_says_so_itself(client, server):
    """Its client may be open."""
    server.executor = ClientExecutor(client)
    server.executor._shutdown = True
    with pytest.raises(RuntimeError, match="after shutdown"):
        server.offload(nine)
    assert not client.submitted


def test_other_executor_with_a_client_is_none_of_dasks(client, server):
    """Whatever it calls by that name."""
    with ThreadPoolExecutor(1) as threads:
        threads._client = self = object()
        server.executor = threads
        assert server.offload(nine) == 9 and self is threads._client


def test_exception_of_the_function_is_raised_as_it_is(client, server):
    """Though it is of a kind that Dask raises, too."""
    client.outcomes = [("error", CancelledError("the function's"))]
    with pytest.raises(CancelledError, match="the function's") as caught:
        server.offload(nine)
    assert not hasattr(caught.value, "__notes__")
    assert server.stats().offloads_failed == 1


def test_death_of_several_workers_is_reported(client, server):
    """Dask has an exception of its own for it, whose text names the last worker."""
    client.outcomes = [("error", KilledWorker("on 4 different workers"))]
    with pytest.raises(WorkerDied, match="KilledWorker: on 4 different workers"):
        server.offload(nine)


@pytest.mark.parametrize("outcome", [("cancelled", CancelledError("scheduler-connection-lost")),
                                     ("finished", ConnectionResetError("in the middle of the result"))])
def test_loss_of_the_scheduler_says_that_the_function_may_have_run(client, server, outcome):
    """Dask says what it has lost, and no more."""
    client.outcomes = [outcome]
    with pytest.raises(type(outcome[1])) as caught:
        server.offload(nine)
    assert "may have run" in caught.value.__notes__[0]


def test_result_that_was_fetched_together_with_a_broken_one_is_fetched_again(client, server):
    """Dask fails all of them."""
    client.outcomes = [("finished", TypeError("another call's cannot be unpickled")), 9]
    assert server.offload(nine) == 9


def test_result_that_cannot_be_unpickled_is_an_error(client, server):
    """Dask's own executor would never end such a call."""
    client.outcomes = [("finished", TypeError("cannot be unpickled"))] * 2
    with pytest.raises(TypeError, match="cannot be unpickled") as caught:
        server.offload(nine)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("outcome", [9, ("cancelled", CancelledError())])
def test_call_whose_client_is_closed_ends(client, server, monkeypatch, outcome):
    """Its event loop may run nothing any more. If it does, all the same, that counts for nothing."""
    monkeypatch.setattr(executors, "CHECK_INTERVAL", 0.001)
    client.outcomes = [outcome]
    client.answers.clear()
    with calling(server.offload, nine) as caught:
        until(lambda: client.remotes)
        client.status = "closed"
    assert isinstance(caught[0], CancelledError) and "is closed" in str(caught[0])
    assert "may have run" in caught[0].__notes__[0]
    client.answers.set()
    until(lambda: not client.remotes[0].outcomes)


def test_call_to_a_closed_client_says_what_to_do(client, server):
    """Dask's client does not come back."""
    client.status = "closed"
    with pytest.raises(LookupError, match="Client is closed") as caught:
        server.offload(nine)
    assert "make another one" in caught.value.__notes__[0]


def test_call_that_cannot_be_pickled_is_an_error_of_dasks(client, server, monkeypatch):
    """It says nothing of the client."""
    def fail(*_: object, **__: object) -> None:
        """Fail as Dask does."""
        raise TypeError("Could not serialize object")

    monkeypatch.setattr(client, "submit", fail)
    with pytest.raises(TypeError, match="Could not serialize") as caught:
        server.offload(nine)
    assert not hasattr(caught.value, "__notes__")


def test_call_whose_time_is_up_is_released(client, server):
    """Dask does not begin it any more. What comes of it all the same is dropped."""
    client.answers.clear()
    with pytest.raises(TimeoutError, match="nine has not returned within 0.01 s"):
        server.offload_within(0.01, nine)
    assert client.remotes[0].released.wait(GUARD)
    client.answers.set()
    until(lambda: not client.remotes[0].outcomes)
    assert server.stats().offloads_running == 0


def test_stop_gives_a_call_up(client, server):
    """Whatever the cluster does."""
    client.answers.clear()

    def call() -> None:
        """Call until the stop."""
        with pytest.raises(ServerStopping):
            server.offload(nine)

    with running(call):
        until(lambda: client.remotes)
        assert server.stop(0).clean
    assert client.remotes[0].released.is_set()
    client.answers.set()
    until(lambda: not client.remotes[0].outcomes)
