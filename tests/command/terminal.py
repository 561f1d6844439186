"""A terminal for the command: a pseudo-terminal whose other end a test reads."""
from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout

from threaded_echo.command import run as cli

from ..tools import GUARD, running
from .operating import Operator


class Terminal(Operator):
    """Who runs the command, and looks at its terminal."""

    def __init__(self, columns: int = 100, lines: int = 30) -> None:
        self._ours, self.theirs = os.openpty()
        self.resize(columns, lines)
        self.seen = ""
        self.error = None

    def resize(self, columns: int, lines: int) -> None:
        """Change the size."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until a pattern has been written since the last one that was found; styles are left out."""
        deadline = time.monotonic() + GUARD / 2  # frames come without end
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            assert select.select([self._ours], [], [], GUARD)[0] and time.monotonic() < deadline, self.seen
            self.seen += re.sub(r"\x1b\[[\d;]*m|\r", "", os.read(self._ours, 65536).decode(errors="replace"))
        self.seen = self.seen[found.end():]
        return found

    def close(self) -> None:
        """Close our end, once."""
        if self._ours >= 0:
            ours, self._ours = self._ours, -1
            os.close(ours)


def run_on(terminal: Terminal, arguments: list[str], script: Callable[[Terminal], object],
           with_errors: bool = False) -> int:
    """Run the command on a terminal in this thread, and a script in another; return the status.

    ``with_errors``: standard error is the terminal, too.
    """
    with ExitStack() as stack:
        stack.callback(terminal.close)
        stdout = stack.enter_context(open(terminal.theirs, "w", encoding="utf-8"))
        stack.enter_context(redirect_stdout(stdout))
        if with_errors:
            stderr = stack.enter_context(open(os.dup(terminal.theirs), "w", encoding="utf-8"))
            stack.enter_context(redirect_stderr(stderr))
        stack.enter_context(running(terminal.operate, script))
        status = cli.main(["--live", "--port", "0", *arguments])
    if terminal.error is not None:
        raise terminal.error
    return status
