"""The pytest plugin, in pytest runs of its own."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest

import threaded_echo.testing  # noqa: F401 - before the runs below, which forget what they import
from threaded_echo.examples import test_instrument

PACKAGE = Path(threaded_echo.__file__).parent
PLUGIN = "threaded_echo.pytest_plugin"


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest with the plugin."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return lambda *arguments: pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *arguments)


def test_tests_of_the_example_pass(run: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    """They are run where they are, as those of a user's own package."""
    run("-c", str(pytester.path / "tox.ini"), test_instrument.__file__).assert_outcomes(passed=6)


def test_test_whose_handler_fails_or_survives_is_an_error(run: Callable[..., pytest.RunResult],
                                                          pytester: pytest.Pytester) -> None:
    """The traceback of the one and the stack of the other are shown, and the tests after them pass."""
    pytester.makepyfile("""
        import socket
        import threading

        import pytest
        from threaded_echo import LineHandler

        entered, released, gone = threading.Event(), threading.Event(), threading.Event()

        class Failing(LineHandler):
            def process(self, line):
                raise ValueError("what it says")

        class Stuck(LineHandler):
            def process(self, line):
                entered.set()
                released.wait()     # the line at which it is stuck
                gone.set()

        def ask(server):
            with socket.create_connection(server.server_address) as client:
                client.sendall(b"hello\\n")
                client.shutdown(socket.SHUT_WR)
                return client.recv(100)

        def test_failing(threaded_server):
            assert ask(threaded_server(Failing)) == b""

        def test_failing_as_expected(threaded_server):
            assert ask(threaded_server(Failing, raises=ValueError)) == b""

        def test_stuck(threaded_server):
            server = threaded_server(Stuck, drain_timeout=0, force_timeout=0)
            with socket.create_connection(server.server_address) as client:
                client.sendall(b"hello\\n")
                entered.wait()
                thread = server.clients[1].thread
                released.thread = thread

        def test_echo(threaded_server):
            released.set()
            released.thread.join()
            assert ask(threaded_server()) == b"hello\\n"
        """)
    result = run()
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_failing*", "client 1: its handler has failed:",
                                 "*ValueError: what it says", "*ERROR at teardown of test_stuck*",
                                 "a handler does not end when the server is stopped: stopped in *",
                                 "*released.wait()     # the line at which it is stuck"])


@pytest.mark.parametrize("arguments", [[], ["-p", PLUGIN]], ids=["installed", "installed and named"])
def test_installed_plugin_imports_no_server_until_the_fixture_is_used(pytester: pytest.Pytester,
                                                                      arguments: list[str]) -> None:
    """The entry point has the name of the module, so that the plugin is not loaded twice."""
    settings = ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    installed = pytester.mkdir("threaded_echo-1.0.dist-info")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: threaded_echo\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{settings['options.entry_points']['pytest11']}\n")
    pytester.makepyfile(f"""
        import sys

        def loaded():
            return [name for name in sorted(sys.modules) if name.startswith(("threaded_echo", "socketserver"))]

        def test_nothing():
            assert loaded() == ["threaded_echo", "{PLUGIN}"]

        def test_server(threaded_server):
            assert "threaded_echo.server" in loaded()
        """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(pytester.path), str(PACKAGE.parent)])}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
                          capture_output=True, text=True, cwd=pytester.path, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_import_of_the_plugin_is_that_of_two_modules() -> None:
    """Pytest has imported all else that they need."""
    code = f"""
import pytest, sys
before = set(sys.modules)
import {PLUGIN}
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.stdout, done.stderr) == (f"['threaded_echo', '{PLUGIN}']\n", "")
