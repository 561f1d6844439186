"""The processes of a Dask cluster on this machine, which tests start and kill."""
from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from .programs import next_line, program

DASK = pytest.mark.skipif(find_spec("distributed") is None,  # looked for, not imported: that would start threads here
                          reason="distributed is not installed")


class Part:
    """A scheduler or a worker."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address

    @property
    def port(self) -> str:
        """Where a scheduler listens."""
        return self.address.rpartition(":")[2]

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        self.process.send_signal(signal.SIGSTOP)


class Cluster:
    """What belongs to one cluster. Leaving it kills all of it."""

    def __init__(self, *flags: str) -> None:
        """``flags``: of the interpreter; without ``-P``, workers can import the checkout's modules."""
        self._flags = flags
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _start(self, *arguments: str, ready: str) -> Part:
        """Start a program of Dask's, on the loopback network alone, and wait until it tells its address."""
        command = (sys.executable, *self._flags, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard")
        process = self._stack.enter_context(program(*command))
        log = [""]
        while not (found := re.search(ready, log[-1])):
            log.append(next_line(process))
            assert log[-1] or process.poll() is None, log
        return Part(process, found[1])

    def scheduler(self, port: str = "0") -> Part:
        """Start a scheduler."""
        return self._start("scheduler", "--port", port, ready=r"Scheduler at: +(tcp://\S+)")

    def worker(self, scheduler: Part) -> Part:
        """Start a worker of one thread, which the scheduler knows."""
        folder = tempfile.mkdtemp(prefix="dask-")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # No nanny: it would start a process of its own, which outlives it for a moment when it is killed.
        return self._start("worker", scheduler.address, "--nworkers", "1", "--nthreads", "1", "--no-nanny",
                           "--local-directory", folder, ready=r"Registered to: +(tcp://\S+)")


@contextmanager
def cluster(workers: int, *flags: str) -> Iterator[str]:
    """Run a scheduler and workers that it knows; yields its address."""
    with Cluster(*flags) as made:
        scheduler = made.scheduler()
        for _ in range(workers):
            made.worker(scheduler)
        yield scheduler.address
