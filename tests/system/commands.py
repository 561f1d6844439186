"""The command as a process of its own, and how tests read what it prints."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..tools import GUARD
from .programs import CHECKOUT

STOPPED = r"stopped in \d+\.\d\d\d s: {} drained, {} forced, {} still running"


class Command:
    """A running `python -m threaded_echo`, and what it writes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        # Read by these alone: Popen.communicate would miss what they hold already.
        self.output: Any = process.stdout
        self.errors: Any = process.stderr

    def line(self) -> str:
        """Wait for its next line, and return it; empty at the end."""
        line: str = self.output.readline()
        return line.rstrip("\n")

    def address(self) -> Any:
        """Read where it listens."""
        found = re.fullmatch(r"listening on (?:(127\.0\.0\.1):(\d+)|(.*))", self.line())
        assert found, self.end()
        return found[3] or (found[1], int(found[2]))

    def lines_to(self, last: str) -> list[str]:
        """Read up to a line."""
        lines = [self.line()]
        while lines[-1] != last:
            assert lines[-1], f"{last!r} does not come after {lines}"
            lines.append(self.line())
        return lines

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Wait for its end; return the exit status, the lines that were not read yet, and its standard error."""
        lines = [] if self.output is None or self.output.closed else self.output.read().splitlines()
        errors = self.errors.read()
        return self.process.wait(GUARD), lines, errors


@contextmanager
def command(*arguments: str, folder: Path = CHECKOUT, **keywords: Any) -> Iterator[Command]:
    """Run the command on a free port, where no other place is given; the end kills it if it still runs.

    In another folder than the checkout, it is found by PYTHONPATH. Warnings are errors.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONUNBUFFERED")}
    environment["PYTHONIOENCODING"] = "utf-8"
    if folder != CHECKOUT:
        environment["PYTHONPATH"] = str(CHECKOUT)
    place = () if {"--port", "--unix"}.intersection(arguments) else ("--port", "0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **keywords}
    with subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-m", "threaded_echo", *place, *arguments],
                          cwd=folder, env=environment, encoding="utf-8", **pipes) as process:
        try:
            yield Command(process)
        finally:
            process.kill()


def handlers(folder: Path, source: str) -> Path:
    """Write the module `handlers` into a folder."""
    (folder / "handlers.py").write_text("import concurrent.futures, logging.config, threading\n"
                                        "from threaded_echo import ClientHandler, LineHandler\n" + source)
    return folder
