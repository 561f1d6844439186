"""The example that counts primes: its arithmetic, its answers, and the program, all of it in this process."""
from __future__ import annotations

import os
import queue
import re
import signal
import socket
import sys
import types
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest

from threaded_echo.examples import primes
from threaded_echo.examples.primes import HIGHEST, MOST, PrimesHandler, count_primes, parse_range

from ..conftest import LOOPBACK
from ..tools import GUARD, ask, connect, receive, run_as_program, running

SIGNALS = (signal.SIGINT, signal.SIGTERM)

NO_NUMBERS = b"error: send one whole number, or two: LOW HIGH\n"
TOO_MUCH = b"error: the range may end at 1000000000, and hold 10000000 numbers, but no more\n"


class Told(StringIO):
    """A standard output that hands over what it has got, whenever it is flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: queue.SimpleQueue[str] = queue.SimpleQueue()

    def flush(self) -> None:
        """Hand over all the text so far."""
        self.texts.put(self.getvalue())


def run(*arguments: str, script: Callable[[Any], object], number: signal.Signals = signal.SIGINT) -> Any:
    """Run the program in this thread, and a script with its address in another; a signal ends it.

    Returns what the script does, and checks that the program gives the signals back.
    """
    told, outcome = Told(), []

    def operate() -> None:
        try:
            found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", told.texts.get(timeout=GUARD))
            assert found
            outcome.append(script(("127.0.0.1", int(found[1]))))
        finally:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(each) for each in SIGNALS]
    with running(operate), redirect_stdout(told):
        primes.main(["--port", "0", *arguments])
    assert [signal.getsignal(each) for each in SIGNALS] == before
    return outcome.pop()


def failure(*arguments: str) -> str:
    """Run the program, which cannot serve; return its message."""
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit) as raised:
        primes.main(arguments)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert isinstance(raised.value.code, str)
    return raised.value.code


class HeldExecutor(Executor):
    """Runs nothing: its futures are the test's to answer."""

    def __init__(self) -> None:
        self.futures: queue.SimpleQueue[Future[int]] = queue.SimpleQueue()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a future to the test."""
        assert function is count_primes
        future: Future[int] = Future()
        self.futures.put(future)
        return future


class Distributed:
    """Stands in for the package: a client with an executor of threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.addresses: list[str] = []
        self.comm = types.SimpleNamespace(get_address_host_port=self.addresses.append)
        self.error = error
        monkeypatch.setitem(sys.modules, "distributed", self)  # type: ignore[misc]

    def Client(self, address: str, timeout: float, set_as_default: bool) -> Distributed:  # noqa: N802 - its name
        """Connect, or fail as the test says."""
        if self.error is not None:
            raise self.error
        assert [address] == self.addresses
        assert timeout > 0 and not set_as_default
        return self

    def __enter__(self) -> Distributed:
        self.executor = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Compute."""
        return self.executor.submit(function, *args)


@pytest.mark.parametrize("low, high, count", [
    (0, 10, 4), (0, 100, 25), (0, 10_000, 1229), (100, 200, 21), (10**9 - 1000, 10**9, 45),
    (2, 3, 1), (3, 4, 1), (7, 8, 1), (4, 5, 0), (24, 29, 0), (25, 30, 1), (9, 10, 0),
    (0, 0, 0), (0, 2, 0), (-10, 3, 1), (-10, -5, 0), (10, 10, 0), (100, 10, 0), (10**30, 10, 0),
])
def test_the_primes_of_a_range_are_counted(low: int, high: int, count: int) -> None:
    """The ranges have known counts, are one number, begin below 2, end at squares, or are empty."""
    assert count_primes(low, high) == count


def test_every_small_range_agrees_with_trial_division() -> None:
    """Each range with ends below 60 is compared."""
    is_prime = [number > 1 and all(number % divisor for divisor in range(2, number)) for number in range(60)]
    for low in range(60):
        for high in range(60):
            assert count_primes(low, high) == sum(is_prime[low:high])


@pytest.mark.parametrize("line, expected", [
    (b"100", (0, 100)), (b"10 20", (10, 20)), (b"  10\t20 ", (10, 20)), (b"-5 20", (-5, 20)), (b"20 10", (20, 10)),
    (b"%d" % MOST, (0, MOST)), (b"%d %d" % (HIGHEST - MOST, HIGHEST), (HIGHEST - MOST, HIGHEST)),
])
def test_a_range_within_the_limits_is_read(line: bytes, expected: tuple[int, int]) -> None:
    """A line has one number or two, up to the largest ranges that may be asked for."""
    assert parse_range(line) == expected


@pytest.mark.parametrize("question, answer", [
    (b"10\n", b"4\n"), (b"100\r\n", b"25\n"), (b"10000\n", b"1229\n"), (b"100 200", b"21\n"), (b"200 100\n", b"0\n"),
    (b"0\n-7\n10\n", b"0\n0\n4\n"),
    (b"\n", NO_NUMBERS), (b"ten\n", NO_NUMBERS), (b"1 2 3\n", NO_NUMBERS), (b"1.5\n", NO_NUMBERS),
    (b"\xff\0 1\n", NO_NUMBERS), (b"9" * 5000 + b"\n", NO_NUMBERS),
    (b"%d\n" % (MOST + 1), TOO_MUCH), (b"-1 %d\n" % MOST, TOO_MUCH), (b"%d %d\n" % (HIGHEST, HIGHEST + 1), TOO_MUCH),
    (b"what?\n10\n", NO_NUMBERS + b"4\n"),
])
def test_a_line_is_answered_with_a_count_or_an_error(serve, question: bytes, answer: bytes) -> None:
    """Each line gets one answer, in order, and an error leaves the client connected."""
    assert ask(serve(PrimesHandler), question) == answer


def test_a_call_whose_worker_dies_is_answered_with_an_error(serve) -> None:
    """The client stays, and its next question is answered."""
    executor = HeldExecutor()
    with connect(serve(PrimesHandler, executor=executor)) as client:
        client.sendall(b"10\n")
        executor.futures.get(timeout=GUARD).set_exception(BrokenExecutor("out of memory"))
        expected = b"error: the executor's worker has died in a call: BrokenExecutor: out of memory\n"
        assert receive(client, len(expected)) == expected
        client.sendall(b"10\n")
        executor.futures.get(timeout=GUARD).set_result(4)
        assert receive(client, 2) == b"4\n"


def test_a_call_above_the_limit_is_answered_with_an_error(serve) -> None:
    """The client that is refused stays, and may ask again once the other has an answer."""
    executor = HeldExecutor()
    server = serve(PrimesHandler, executor=executor, max_offloads=1, at_offload_limit="refuse")
    with connect(server) as first, connect(server) as second:
        first.sendall(b"10\n")
        held = executor.futures.get(timeout=GUARD)
        second.sendall(b"10\n")
        expected = b"error: no more than 1 offloaded calls may run or wait at once\n"
        assert receive(second, len(expected)) == expected
        held.set_result(4)
        assert receive(first, 2) == b"4\n"
        second.sendall(b"100\n")
        executor.futures.get(timeout=GUARD).set_result(25)
        assert receive(second, 3) == b"25\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_program_counts_until_a_signal(number: signal.Signals) -> None:
    """It prints where it listens, answers, and returns on the signal."""
    assert run(script=lambda address: ask(address, b"100\n"), number=number) == b"25\n"


def test_a_client_that_is_there_at_the_signal_gets_the_end_of_its_stream() -> None:
    """The signal stops the server, which leaves no client connected."""
    def stay(address: Any) -> Any:
        """Get an answer, and stay connected."""
        client = connect(address)
        client.sendall(b"10\n")
        assert receive(client, 2) == b"4\n"
        return client

    with run(script=stay) as client:
        assert client.recv(1) == b""


def test_the_program_counts_on_a_dask_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """It connects to the scheduler that it is told of, computes there, and disconnects."""
    distributed = Distributed(monkeypatch)
    assert run("--dask", "127.0.0.1:8786", script=lambda address: ask(address, b"100\n")) == b"25\n"
    assert distributed.addresses == ["127.0.0.1:8786"]
    with pytest.raises(RuntimeError):
        distributed.executor.submit(count_primes, 0, 10)


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError("timed out"), ValueError("timed out")])
def test_a_scheduler_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The exit message is one line with the reason."""
    Distributed(monkeypatch, error)
    assert failure("--dask", "127.0.0.1:1") == "primes: cannot reach the Dask scheduler '127.0.0.1:1': timed out"


def test_dask_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit message names what to install."""
    monkeypatch.setitem(sys.modules, "distributed", None)  # type: ignore[arg-type]
    assert failure("--dask", "127.0.0.1:1").startswith("primes: --dask needs the package distributed: ")


def test_a_port_that_is_taken_is_told() -> None:
    """The exit message has the address and the system's reason."""
    with socket.create_server(LOOPBACK) as listener:
        assert failure("--port", str(listener.getsockname()[1])).startswith("primes: cannot serve: ")


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--workers", "0")])
def test_a_number_out_of_range_is_told(arguments: tuple[str, str]) -> None:
    """The exit message has the reason, and no server is left."""
    assert failure("--port", "0", *arguments).startswith("primes: cannot serve: ")


def test_the_module_that_is_run_is_the_program(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`python -m threaded_echo.examples.primes` offers one place to compute, not two."""
    monkeypatch.setattr(sys, "argv", ["primes", "--workers", "2", "--dask", "127.0.0.1:8786"])
    with pytest.raises(SystemExit) as raised:
        run_as_program("threaded_echo.examples.primes")
    assert raised.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
