"""The package as a whole: its names, its imports."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import threaded_echo

PACKAGE = Path(threaded_echo.__file__).parent


def test_public_names_are_those_of_the_contract() -> None:
    """The package has no more of them, no fewer, and each one is there."""
    assert sorted(threaded_echo.__all__) == threaded_echo.__all__ == [
        "Client", "ClientHandler", "EchoHandler", "LineHandler", "LineTooLong", "OffloadRefused", "ServerStats",
        "ServerStopping", "StopReport", "Survivor", "ThreadedMixIn", "ThreadedTCPServer", "ThreadedUnixStreamServer",
        "WorkerDied", "WorkerProcesses", "WorkerThreads", "current_client"]
    assert all(hasattr(threaded_echo, name) for name in threaded_echo.__all__)


def run(code: str) -> str:
    """Run a program in a fresh interpreter, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stderr == ""
    return done.stdout


def test_import_of_the_package_imports_none_of_its_modules_until_a_name_is_used() -> None:
    """What is imported for one name is what that needs."""
    code = """
import sys, threaded_echo
def loaded():
    return [name for name in sorted(sys.modules) if name.startswith(("threaded_echo.", "socketserver"))]
print(loaded())
threaded_echo.WorkerDied
print(loaded())
"""
    assert run(code) == "[]\n['threaded_echo.errors']\n"


def test_names_that_are_imported_late_are_those_that_a_type_checker_is_told() -> None:
    """A type checker sees imports in place of the table, from the same modules."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [checked] = [node.body for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name: node.module for node in checked if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == threaded_echo._MODULES
    assert sorted(imported) == threaded_echo.__all__


def test_names_are_listed_documented_and_imported_by_a_star_before_they_are_used() -> None:
    """It is not to be seen that they are imported late."""
    assert set(threaded_echo.__all__) <= set(dir(threaded_echo))
    assert run("import threaded_echo; print(set(threaded_echo.__all__) - set(dir(threaded_echo)))") == "set()\n"
    assert run("from threaded_echo import *; import threaded_echo; print(set(threaded_echo.__all__) - set(globals()))"
               ) == "set()\n"
    text = run("import pydoc, threaded_echo; print(pydoc.plain(pydoc.render_doc(threaded_echo)))")
    assert "class ThreadedTCPServer(" in text and "current_client() -> " in text


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    """It names the module and the name, as ever."""
    with pytest.raises(AttributeError, match="^module 'threaded_echo' has no attribute 'Nothing'$"):
        threaded_echo.Nothing  # type: ignore[attr-defined]


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


def test_imports_run_one_way() -> None:
    """No module imports one that, by whatever way, imports it."""
    graph = imports()
    assert "threaded_echo.clients.registry" in graph["threaded_echo.clients.threads"]
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}


FOLDERS = [["observe"], ["transport"], ["clients"], ["accepting", "offloading"], [""],
           ["command", "examples", "testing"]]
"""The folders, lowest first; "" is the top level, and the programs are above that. Those that stand side by side do not
know each other."""

OPEN_TO_ALL = {"threaded_echo", "threaded_echo.errors", "threaded_echo.options"}
"""What each folder may import of the top level: the name of the package itself, its exceptions and its options."""


def folder_of(name: str) -> str:
    """Return the folder of a module, "" for the top level."""
    path = name.split(".")
    return path[1] if PACKAGE.joinpath(*path[1:2]).is_dir() and len(path) > 1 else ""


def test_imports_between_folders_run_one_way() -> None:
    """A module imports its own folder, lower ones, and of the top level what is open to all."""
    heights = {folder: height for height, folders in enumerate(FOLDERS) for folder in folders}
    graph = imports()
    for program in ("threaded_echo.__main__", "threaded_echo.pytest_plugin"):  # they start what is above
        del graph[program]
    assert {folder_of(name) for name in graph} == set(heights), "a folder is missing here"
    wrong = [f"{name} imports {target}" for name, targets in graph.items() for target in targets
             if folder_of(target) != folder_of(name) and target not in OPEN_TO_ALL
             and heights[folder_of(target)] >= heights[folder_of(name)]]
    assert not wrong, "\n".join(wrong)


def test_what_is_open_to_all_imports_nothing_of_the_package() -> None:
    """Otherwise a folder would import through it what is above."""
    graph = imports()
    assert [graph[name] for name in sorted(OPEN_TO_ALL - {"threaded_echo"})] == [set(), set()]


def test_import_loads_nothing_that_is_heavy_and_registers_nothing() -> None:
    """They cost more than all the rest, and what is registered for the interpreter's end or a fork is for ever."""
    code = """
import atexit, os, sys
registered = []
os.register_at_fork = lambda **hooks: registered.append(hooks)
import concurrent.futures, logging, socketserver  # the standard library's own hooks
before = atexit._ncallbacks(), len(registered)
from threaded_echo import *
assert (atexit._ncallbacks(), len(registered)) == before, registered
print([name for name in sys.modules if name.partition(".")[0] in
       ("multiprocessing", "ssl", "_ssl", "prometheus_client")])
"""
    assert run(code) == "[]\n"
