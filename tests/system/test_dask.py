"""A Dask cluster whose scheduler and workers fail, one after the other: real processes on this machine."""
from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from ..tools import GUARD, LOOPBACK, connect, running
from .dask_cluster import DASK, Cluster
from .programs import module, next_line, program, tell

pytestmark = DASK


class Server:
    """The program that serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        line = next_line(process)
        assert line.isdigit(), process.communicate()
        self._address = "127.0.0.1", int(line)

    def order(self, *words: str) -> str:
        """Tell it to do something, if anything; return the next line that it prints."""
        if words:
            tell(self._process, " ".join(words))
        return next_line(self._process)

    def ask(self, *calls: list[Any], tell: Callable[[], object] = bool) -> list[str]:
        """Have calls made by one client, one after the other; return their results. ``tell`` is called for each."""
        answers = []
        with connect(self._address) as client, client.makefile("rw") as lines:
            for call in calls:
                lines.write(json.dumps(call) + "\n")
                lines.flush()
                answers.append(lines.readline().rstrip("\n"))
                tell()
        return answers

    @contextmanager
    def asking(self, *calls: list[Any]) -> Iterator[list[str]]:
        """Do as `ask` in a thread. The results are in the list when the context is left."""
        answers: list[str] = []
        with running(lambda: answers.extend(self.ask(*calls))):
            yield answers


@contextmanager
def serving(address: str, kind: str = "executor", seconds: float = GUARD) -> Iterator[Server]:
    """Run a server that computes at the scheduler with an address, for which its client looks so many seconds."""
    with program(*module("tests.system.dask_program", address, kind, f"{seconds}")) as process:
        yield Server(process)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Have a cluster that has no part yet."""
    # A scheduler looks so long, 30 s otherwise, for a dead worker that had a result.
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with Cluster() as made:
        yield made


SQUARE = [GUARD, "square", 7]


def test_thousand_calls_while_workers_are_killed_are_answered(cluster, monkeypatch):
    """Each answer is right. Dask calls a function again that was in a worker which died."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "9")  # what one and the same call may meet here
    scheduler = cluster.scheduler()
    workers = [cluster.worker(scheduler) for _ in range(2)]
    answered = threading.Semaphore(0)
    with serving(scheduler.address) as server, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(server.ask, *([GUARD, "square", number] for number in range(first, first + 25)),
                                tell=answered.release) for first in range(0, 1000, 25)]
        for _ in range(5):
            for _ in range(180):
                assert answered.acquire(timeout=GUARD)
            workers.pop(0).kill()
            workers.append(cluster.worker(scheduler))
        answers = [answer for each in asked for answer in each.result()]
    assert answers == [str(number * number) for number in range(1000)]


def test_worker_that_is_killed_in_a_call_costs_nothing(cluster, meeting):
    """The function is called again in another one; it waits until there is one."""
    scheduler = cluster.scheduler()
    worker = cluster.worker(scheduler)
    with serving(scheduler.address) as server, server.asking([GUARD, "meet", meeting.address]) as answers:
        assert meeting.welcome() == worker.process.pid
        worker.kill()
        meeting.dismiss()
        worker = cluster.worker(scheduler)
        assert meeting.welcome() == worker.process.pid
        meeting.dismiss(b"again")
    assert answers == ["b'again'"]


def test_call_that_kills_its_workers_is_an_error(cluster, monkeypatch):
    """When Dask gives it up. There is a deadline, too, if no worker comes back."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    scheduler = cluster.scheduler()
    cluster.worker(scheduler)
    with serving(scheduler.address) as server:
        died, late = server.ask([GUARD, "die", 5], [0.01, "square", 7])
        cluster.worker(scheduler)
        assert server.ask(SQUARE) == ["49"]
    assert died.startswith("WorkerDied RuntimeError Exception the executor's worker has died in a call: KilledWorker")
    assert late.startswith("TimeoutError") and "tests.calls.square has not returned within 0.01 s" in late


@pytest.mark.parametrize("kind", ["executor", "client"])
def test_scheduler_that_comes_back_is_used_again(cluster, meeting, kind):
    """The call that was running is told at once; one that is made meanwhile waits."""
    scheduler = cluster.scheduler()
    cluster.worker(scheduler)
    with serving(scheduler.address, kind) as server:
        with server.asking([GUARD, "meet", meeting.address], SQUARE) as answers:
            meeting.welcome()
            scheduler.kill()
            cluster.worker(cluster.scheduler(scheduler.port))
    lost, answered = answers
    assert lost.startswith("FutureCancelledError CancelledError") and "scheduler-connection-lost" in lost, lost
    assert "The function may have run" in lost
    assert answered == "49"


def test_scheduler_that_moves_needs_another_client(cluster, meeting):
    """The old one closes itself when its time is up. Nobody at the new address is told soon, too."""
    scheduler = cluster.scheduler()
    cluster.worker(scheduler)
    with serving(scheduler.address, seconds=1) as server, socket.socket() as place:
        with server.asking([GUARD, "meet", meeting.address], SQUARE, SQUARE, SQUARE) as answers:
            meeting.welcome()
            scheduler.kill()
        lost, waited, closing, closed = answers
        assert "scheduler-connection-lost" in lost, lost
        assert waited.startswith("FutureCancelledError"), waited
        assert "make another one" in closing, closing  # Dask tells it nothing, or what it tells the next one
        assert closed.startswith("ClosedClientError") and "make another one" in closed, closed
        place.bind(LOOPBACK)  # and nobody listens
        nobody = server.order("connect", f"tcp://127.0.0.1:{place.getsockname()[1]}", "0.1")
        assert nobody.startswith("OSError") and "imed out" in nobody, nobody
        scheduler = cluster.scheduler()
        cluster.worker(scheduler)
        assert server.order("connect", scheduler.address, f"{GUARD}") == "connected"
        assert server.ask(SQUARE) == ["49"]


@pytest.mark.parametrize("state", ["frozen", "dead"])
def test_deadline_and_stop_hold_whatever_the_cluster_does(cluster, meeting, state):
    """It may be stopped in the middle of everything, or gone."""
    scheduler = cluster.scheduler()
    worker = cluster.worker(scheduler)
    with serving(scheduler.address) as server:
        if state == "frozen":
            worker.freeze()
            scheduler.freeze()
        else:
            with server.asking([GUARD, "meet", meeting.address]):  # which is told that the scheduler is lost
                meeting.welcome()
                worker.kill()
                scheduler.kill()
        [late] = server.ask([0.01, "square", 7])
        assert late.startswith("TimeoutError") and "has not returned within 0.01 s" in late, late
        with server.asking(SQUARE) as answers:
            assert server.order("wait") == "running"
            assert server.order("stop") == "a call is given up"
        assert answers == [""]
        assert server.order().endswith("0 still running")


def test_result_that_cannot_be_unpickled_is_an_error(cluster):
    """Dask's own executor would never end such a call."""
    scheduler = cluster.scheduler()
    cluster.worker(scheduler)
    with serving(scheduler.address) as server:
        failed, answered = server.ask([GUARD, "return_a_lock"], SQUARE)
    assert failed.startswith("TypeError") and "lock" in failed
    assert answered == "49"
