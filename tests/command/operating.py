"""Who runs the command: reads its standard output, line by line, and sends signals."""
from __future__ import annotations

import os
import re
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, TextIO

from threaded_echo.command import run as cli

from ..tools import running


STOPPED = r"stopped in \d+\.\d\d\d s: {} drained, {} forced, {} still running"


class Operator:
    """Who runs the command, in a thread of its own: reads its standard output, line by line, and sends signals."""

    def __init__(self, output: TextIO) -> None:
        self.output = output
        self.lines: list[str] = []
        self.error: BaseException | None = None

    def line(self) -> str:
        """Wait for the next line, and return it; empty at the end."""
        line = self.output.readline().rstrip("\n")
        if line:
            self.lines.append(line)
        return line

    def address(self) -> Any:
        """Read where it listens."""
        found = re.fullmatch(r"listening on (?:\[?([\da-f.:]+?)\]?:(\d+)|(.*))", self.line())
        assert found, self.lines
        return found[3] or (found[1], int(found[2]))

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal to the process."""
        os.kill(os.getpid(), number)

    def operate(self, script: Callable[[Operator], object]) -> None:
        """Run the script of a test; where it fails, end the command."""
        try:
            script(self)
        except BaseException as error:
            self.error = error
            self.interrupt()


def run(arguments: list[str], script: Callable[[Operator], object] = lambda operator: None,
        encoding: str = "utf-8") -> tuple[int, list[str]]:
    """Run the command in this thread and an operator's script in another; return the status and all the lines."""
    receiving, sending = os.pipe()
    with open(receiving, encoding=encoding) as output:
        operator = Operator(output)
        with (running(operator.operate, script), open(sending, "w", encoding=encoding) as stdout,
              redirect_stdout(stdout)):
            status = cli.main(arguments)
        if operator.error is not None:
            raise operator.error
        while not output.closed and operator.line():
            pass
    return status, operator.lines


def run_until(number: signal.Signals, *arguments: str) -> tuple[int, list[str]]:
    """Run the command on a free port until a signal, which comes at once."""
    def script(operator: Operator) -> None:
        """Wait until it listens."""
        operator.address()
        operator.interrupt(number)

    return run(["--port", "0", *arguments], script)


def reset(client: socket.socket) -> None:
    """Close a connection with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def port_of(client: socket.socket) -> int:
    """Tell the port that a client calls from."""
    return int(client.getsockname()[1])
