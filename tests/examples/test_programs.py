"""The examples as programs: each can be run, and says what it cannot do."""
from __future__ import annotations

import importlib
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import threaded_echo.examples

from ..tools import LOOPBACK, run_as_program
from ..transport.test_tls import CERTIFICATE

FOLDER = Path(threaded_echo.examples.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py") if not path.stem.startswith("test_"))
SERVERS = sorted(set(NAMES) - {"instrument"})
NEEDED = {"tls_echo": ["--cert", str(CERTIFICATE), "--key", str(CERTIFICATE), "--ca", str(CERTIFICATE)]}


@pytest.mark.parametrize("name", NAMES)
def test_module_that_is_run_is_the_program(monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str) -> None:
    """`python -m threaded_echo.examples.NAME` has its own name in its help."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        run_as_program(f"threaded_echo.examples.{name}")
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize("name", SERVERS)
def test_port_that_is_taken_is_told(name: str) -> None:
    """The exit message has the program's name and the system's reason."""
    main: Any = importlib.import_module(f"threaded_echo.examples.{name}").main
    with socket.create_server(LOOPBACK) as listener, pytest.raises(SystemExit, match=f"^{name}: cannot serve: "):
        main(["--port", str(listener.getsockname()[1]), *NEEDED.get(name, [])])


def test_examples_are_those_that_the_readme_lists() -> None:
    """Each has a line in its table."""
    readme = (FOLDER.parents[1] / "README.rst").read_text(encoding="utf-8")
    table = readme.partition("\nExamples\n--------\n")[2].split("\n===")[1]
    assert re.findall(r"^``(\w+)`` ", table, re.MULTILINE) == NAMES
