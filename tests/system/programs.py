"""Programs that tests run beside themselves: started in the checkout, spoken to by lines, never left behind."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


@contextmanager
def program(*command: str, stderr: int = subprocess.STDOUT) -> Iterator[subprocess.Popen[str]]:
    """Run a program with the checkout as its folder, and text pipes to it; the end kills it if it still runs."""
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                          text=True, bufsize=1) as process:
        try:
            yield process
        finally:
            process.kill()


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Name the command that runs a module with the interpreter of the tests."""
    return (sys.executable, "-m", name, *arguments)


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to a program."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")


def next_line(process: subprocess.Popen[str]) -> str:
    """Read a line that a program writes; empty at the end of its output."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def last_lines(process: subprocess.Popen[str]) -> list[str]:
    """Read what a program still writes, until the end of its output."""
    assert process.stdout is not None
    return process.stdout.read().splitlines()
