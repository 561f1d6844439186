"""CPython's own tests of its servers, with the mix-in in the place of socketserver's."""
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .programs import CHECKOUT
from .programs import module as command

GUARD = 50.0


def is_there(module: str) -> bool:
    """Tell whether the interpreter comes with one of CPython's test modules: many distributions leave them out."""
    try:
        return importlib.util.find_spec(f"test.{module}") is not None
    except ModuleNotFoundError:
        return False


def run(module: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run one of CPython's test modules in a process and a folder of its own, and return the outcome."""
    process = subprocess.run(command("tests.system.cpython_runner", module, *options), cwd=folder, timeout=GUARD,
                             env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, stdin=subprocess.DEVNULL,
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    outcome: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    print(module, *options, outcome)
    return {**outcome, "told": process.stderr}


@pytest.mark.parametrize(("module", "kinds"), [
    ("test_socketserver", {"stream", "datagram"}),
    ("test_httpservers", {"stream"}),
    ("test_xmlrpc", {"stream"}),
])
def test_cpython_module_on_the_mixin_fails_only_where_stock_does(module: str, kinds: set[str], tmp_path: Path) -> None:
    """CPython's test module has no failure that it does not have on stock, and handler threads served its clients."""
    if not is_there(module):
        pytest.skip("this interpreter comes without its test package")
    outcome = run(module, tmp_path)
    assert outcome["run"] > outcome["skipped"]
    assert set(outcome["served"]) == kinds
    assert all(count > 0 for count in outcome["served"].values())
    if outcome["failed"]:
        stock = run(module, tmp_path, "--stock")
        assert not stock["served"]
        assert not set(outcome["failed"]) - set(stock["failed"]), outcome["told"]
