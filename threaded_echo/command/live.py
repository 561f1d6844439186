"""``--live``: a table of the clients, in a thread of its own.

The threads that serve the clients do nothing for it except that they log a record for each message, as they do when the
command prints lines. The table's thread takes at most one part in `_SHARE` of a processor.
"""
from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

from ..accepting.signals import handled
from ..observe.live import Table, require
from ..observe.logs import NOTICE, about
from ..observe.recent import RecentMessages
from ..observe.watching import Watcher
from ..transport.listeners import show_address
from ..transport.several import addresses_of
from .output import LogLineHandler, Output
from .screen import Screen

logger = logging.getLogger("threaded_echo")

INTERVAL = 0.5
"""Seconds between two frames, at least."""

_SHARE = 30  # a pause is at least so many times as long as the frame before it has taken: 3 % of a processor at most
_FIRST = 0.1  # seconds until the first look whether the server accepts
_JOIN = 1.0  # seconds for the thread to end, which waits for nothing
_PAUSE: int | None = getattr(signal, "SIGTSTP", None)  # of Ctrl-Z; Windows has none


class LiveTable:
    """Shows the table from when the server accepts until the end of the ``with`` block."""

    def __init__(self, server: Any, recent: RecentMessages, screen: Screen) -> None:
        self._server = server
        self._screen = screen
        self._watcher = Watcher(server, recent, show_address)
        title = ", ".join(show_address(address) for address in addresses_of(server))
        self._table = Table(f"threaded_echo on {title}", screen.encoding)
        self._ended = threading.Event()
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._run, name="threaded_echo live", daemon=True)

    def __enter__(self) -> LiveTable:
        self._thread.start()
        if _PAUSE is not None and signal.getsignal(_PAUSE) is signal.SIG_DFL:  # neither ignored nor the program's
            self._stack.enter_context(handled(self._pause, [_PAUSE]))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        with self._stack, handled(lambda number: None):  # a signal must not leave the terminal in disorder
            self._ended.set()
            self._thread.join(_JOIN)
            self._screen.leave()

    def _pause(self, number: int) -> None:
        """Stop the process, as the signal does by itself, with the table out of the way. In the main thread."""
        self._screen.step_aside()
        handler = signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when the process goes on
        signal.signal(number, handler)
        self._screen.step_back()

    def _run(self) -> None:
        pause, size = _FIRST, (80, 24)
        try:
            while not self._ended.wait(pause):
                began = time.monotonic()
                if self._server.stats().seconds_up:
                    size = self._screen.size() or size  # if the terminal has gone, the frame finds that out
                    self._draw(*size)
                    pause = max(INTERVAL, _SHARE * (time.monotonic() - began))
        except Exception:  # a mistake in what only shows must not harm what serves
            self._screen.leave()
            logger.exception("the table has failed, and is shown no more", extra=about(None, "table"))

    def _draw(self, width: int, height: int) -> None:
        notes = self._screen.notes()
        look = self._watcher.look(self._table.most_rows(height, notes))
        self._screen.draw(self._table.frame(look, notes, width, height))


class LiveOutput(Output):
    """Shows the table; and after its end the lines about the server itself, warnings and errors."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._recent = RecentMessages()
        self._screen = Screen(self._output, self._errors)

    def can_show(self) -> bool:
        """Return whether standard output is a terminal that a table can be drawn on."""
        terminal = os.environ.get("TERM", "" if os.name == "posix" else "windows")
        return self._screen.size() is not None and terminal not in ("", "dumb", "unknown") and not _is_legacy_windows()

    def showing(self, server: Any) -> LiveTable:
        """Return a context in which the table of a server is shown."""
        return LiveTable(server, self._recent, self._screen)

    def _handlers(self) -> tuple[logging.Handler, ...]:
        lines = LogLineHandler(partial(self._screen.write, self._output))
        lines.setLevel(NOTICE)
        return lines, LogLineHandler(partial(self._screen.write, self._errors)), self._recent


def make_output(level: int, live: bool, as_json: bool) -> Output:
    """Return the output of the command: ``live`` if the table is wanted, and standard output can show it.

    Raises ImportError if it is wanted, and rich is missing.
    """
    if live:
        require()
        output = LiveOutput(level)
        if output.can_show():
            return output
    return Output(level, as_json)


def _is_legacy_windows() -> bool:
    """Return whether this is a console of Windows that does not know a terminal's control sequences."""
    from rich.console import detect_legacy_windows
    return detect_legacy_windows()
