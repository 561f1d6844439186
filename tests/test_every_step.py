"""A signal at every step of a start, of serving, and of a stop: each line that the main thread runs in the package."""
from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import threaded_echo
from threaded_echo import EchoHandler, ThreadedTCPServer

from .tools import LOOPBACK, ask, running, until

PACKAGE = str(Path(threaded_echo.__file__).parent)


class Steps:
    """Counts the lines of the package that this thread runs; at the line number ``at`` it calls ``act``."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.count = 0
        self._at = at
        self._act = act

    def __enter__(self) -> Steps:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
            if self.count == self._at:
                self._act()
        return self._line


@contextmanager
def obeyed(number: int, handler: Callable[..., object]) -> Iterator[None]:
    """Handle a signal."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def each_step(one: Callable[[int], int], stride: int = 1) -> int:
    """Call ``one`` with the number of each step, until there are no more; return how many there were."""
    at = 1
    while one(at) >= at:
        at += stride
    return at


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_signal_at_every_step_of_run_ends_it_and_leaves_nothing(signals):
    """Start, wait and stop; the second signal comes with the first, so that the stop cuts at once."""
    def once(at: int) -> int:
        server = ThreadedTCPServer(LOOPBACK, EchoHandler)
        # What the process does with them before and after run() is the program's own.
        with obeyed(signal.SIGTERM, lambda *_: None), obeyed(signal.SIGINT, lambda *_: None):
            with Steps(at, lambda: [signal.raise_signal(number) for number in signals]) as steps:
                report = server.run(0)
        assert report.clean
        assert server.fileno() < 0
        assert server.stop().clean
        return steps.count

    assert each_step(once) > 100


def test_stop_in_a_signal_handler_at_every_step_of_serving_ends_the_loop():
    """The program serves in its main thread, and its handler of SIGTERM calls ``stop``."""
    def once(at: int) -> int:
        server = ThreadedTCPServer(LOOPBACK, EchoHandler)
        address = server.server_address
        reports = []

        def client() -> None:
            try:
                for _ in range(2):
                    assert ask(address) in (b"ping\n", b"")
            except OSError:
                pass  # the stop was faster
            until(stopped_by_a_signal)  # if no step has raised one

        def stopped_by_a_signal() -> bool:
            # Again and again: one that comes just before the main thread waits does not end that wait.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            return bool(reports)

        with obeyed(signal.SIGTERM, lambda *_: reports.append(server.stop(1, 1))), running(client):
            with Steps(at, lambda: signal.raise_signal(signal.SIGTERM)) as steps:
                try:
                    server.serve_forever()
                except RuntimeError as error:  # the stop came ahead of the first accept
                    assert "closed" in str(error) or "stopping" in str(error)
            report = server.stop()
        assert report.clean, f'{at} {report} {reports}'
        assert server.fileno() < 0
        assert not server.clients
        return steps.count

    assert each_step(once) > 50
