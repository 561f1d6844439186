"""The example that counts primes, as whole programs: netcats, worker processes, and a Dask cluster on this machine."""
from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..tools import GUARD, ask, connect, receive, receive_all, together
from .dask_cluster import DASK, cluster
from .programs import CHECKOUT, last_lines, module, next_line, program, tell

Process = subprocess.Popen[str]

NETCAT = pytest.mark.skipif(shutil.which("nc") is None, reason="netcat-openbsd is not installed")

EXAMPLE = "threaded_echo.examples.primes"

QUESTION = b"100\n10000\n100 200\nwhat?\n900000000 900001000\n"
ANSWER = b"25\n1229\n21\nerror: send one whole number, or two: LOW HIGH\n48\n"


@contextmanager
def listening(*command: str) -> Iterator[tuple[Process, int]]:
    """Run a server of the example on a free port; yields its process and the port."""
    with program(*command, "--port", "0", stderr=subprocess.PIPE) as process:
        first = next_line(process)
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", first)
        assert found, first or process.communicate()
        yield process, int(found[1])


def ended(process: Process, number: signal.Signals = signal.SIGINT) -> list[str]:
    """End a server with a signal, and check that it ends well; return what it still wrote."""
    process.send_signal(number)
    lines = last_lines(process)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(GUARD) == 0
    return lines


def converse(port: int) -> None:
    """Have a netcat ask, be told of its mistake, ask again, and leave."""
    with program("nc", "-N", "127.0.0.1", str(port)) as client:  # -N: at the end of the input, end the stream too
        for question, answer in (("100", "25"), ("a hundred", "error: send one whole number, or two: LOW HIGH"),
                                 ("100 200", "21")):
            tell(client, question)
            assert next_line(client) == answer
        assert client.stdin is not None
        client.stdin.close()
        assert client.wait(GUARD) == 0


@NETCAT
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_a_netcat_is_answered_until_a_signal(options: tuple[str, ...], number: signal.Signals) -> None:
    """The program computes in threads, and in worker processes, which import it."""
    with listening(*module(EXAMPLE, *options)) as (process, port):
        converse(port)
        assert ended(process, number) == []


@NETCAT
def test_a_netcat_is_answered_by_the_command_line() -> None:
    """The handler serves under the package's own command as well, with workers."""
    command = module("threaded_echo", "--handler", f"{EXAMPLE}:PrimesHandler", "--workers", "2", "--quiet")
    with listening(*command) as (process, port):
        converse(port)
        stopping, stopped = ended(process)
    assert re.fullmatch(r"stopping: [01] clients? live", stopping)  # the netcat returned; its handler may be about to
    assert re.fullmatch(r"stopped in .* s: [01] drained, 0 forced, 0 still running", stopped)


def test_several_clients_at_once_are_answered_by_two_workers() -> None:
    """There are more clients than workers, and each gets its own answers, in order."""
    with listening(*module(EXAMPLE, "--workers", "2")) as (process, port):
        assert together(6, lambda: ask(("127.0.0.1", port), QUESTION)) == [ANSWER] * 6
        assert ended(process) == []


@DASK
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_several_clients_at_once_are_answered_by_a_dask_cluster(number: signal.Signals) -> None:
    """Two workers that know nothing of the program get the function from it; a client stays until the end."""
    # -P: not with the checkout's modules, which a cluster's workers do not have either.
    with cluster(2, "-P") as address, listening(*module(EXAMPLE, "--dask", address)) as (process, port):
        with connect(("127.0.0.1", port)) as stays:
            assert together(6, lambda: ask(("127.0.0.1", port), QUESTION)) == [ANSWER] * 6
            stays.sendall(b"100\n")
            assert receive(stays, 3) == b"25\n"
            assert ended(process, number) == []
            assert receive_all(stays) == b""


@DASK
def test_no_scheduler_at_the_address_is_told() -> None:
    """The program prints one clear line, and exits with the status of a failure."""
    command = module(EXAMPLE, "--port", "0", "--dask", "nowhere")
    result = subprocess.run(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            timeout=GUARD)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == ("primes: cannot reach the Dask scheduler 'nowhere': "
                             "missing port number in address 'nowhere'\n")
