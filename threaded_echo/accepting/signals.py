"""The signals that end a server, or have it reload its certificate: obeyed while it runs, and restored afterwards."""
from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
RELOAD: Any = getattr(signal, "SIGHUP", None)  # Windows has none


@contextmanager
def handled(obey: Callable[[int], object], numbers: Iterable[int] = STOPS) -> Iterator[None]:
    """Call ``obey`` with the number of each of these signals, unless the process ignores that one.

    Only the main thread can set signal handlers: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        # A process that a handler has forked ignores SIGINT: the terminal's key sends it to all processes, and it is
        # the server's to obey.
        if os.getpid() == owner:
            obey(number)

    _watch_forks()
    _replaced.append(before)
    try:
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: it belongs to a library in C
                before[number] = signal.getsignal(number)
                signal.signal(number, handle)
        yield
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)
        _replaced.remove(before)


_replaced: list[dict[int, Any]] = []
"""The signal handlers that each `handled` has replaced, the outermost first."""


@cache
def _watch_forks() -> None:
    """Have forked processes restore what SIGTERM and SIGHUP did before."""
    getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_restore_in_child)


def _restore_in_child() -> None:
    """Let SIGTERM end a process that a handler has forked, and others do what they did before the server ran.

    Not left to our handler in that process: it runs late or never there, if another thread than the main one has forked
    (seen on 3.13 to 3.15).
    """
    first: dict[int, Any] = {}
    for before in reversed(_replaced):
        first.update(before)
    first.pop(signal.SIGINT, None)
    for number, handler in first.items():
        signal.signal(number, handler)
