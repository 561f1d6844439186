"""The package as a whole: its names, its imports."""
from __future__ import annotations

import ast
from pathlib import Path

import threaded_echo

PACKAGE = Path(threaded_echo.__file__).parent


def test_public_names_are_those_of_the_contract():
    """No more, no fewer, and each of them there."""
    assert sorted(threaded_echo.__all__) == threaded_echo.__all__ == [
        "Client", "ClientHandler", "EchoHandler", "LineHandler", "LineTooLong", "OffloadRefused", "ServerStats",
        "ServerStopping", "StopReport", "Survivor", "ThreadedMixIn", "ThreadedTCPServer", "ThreadedUnixStreamServer",
        "WorkerDied", "current_client"]
    assert all(hasattr(threaded_echo, name) for name in threaded_echo.__all__)


def imports() -> dict[str, set[str]]:
    """Map each module of the package to those of the package that it imports."""
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for path, name in names.items():
        found[name] = targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = name.split(".")[:-node.level] + (node.module.split(".") if node.module else [])
                targets.update({".".join(base), *(".".join([*base, alias.name]) for alias in node.names)})
    return {name: targets & set(names.values()) for name, targets in found.items()}


def test_imports_run_one_way():
    """No module imports one that, by whatever way, imports it."""
    graph = imports()
    assert "threaded_echo.clients.registry" in graph["threaded_echo.clients.threads"]
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}


def test_core_imports_the_standard_library_only():
    """And does not load ssl, which costs more than all the rest."""
    import subprocess
    import sys
    code = "import sys, threaded_echo; print('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=PACKAGE.parent).stdout == "False\n"
