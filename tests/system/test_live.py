"""``--live`` in a real terminal: tmux."""
from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..tools import connect, receive, until
from .programs import CHECKOUT, last_lines, module, next_line, program

MORE_DESCRIPTORS = "ulimit -n $(($(ulimit -Hn) < 4096 ? $(ulimit -Hn) : 4096))"


class Tmux:
    """A window of tmux, whose server is the test's own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["tmux", "-S", str(folder / "tmux"), "-f", os.devnull]
        self._environment = {name: value for name, value in os.environ.items() if name not in ("TMUX", "NO_COLOR")}
        self._environment.update(LC_ALL="C.UTF-8", PYTHONPATH=str(CHECKOUT))

    def tell(self, *arguments: str) -> str:
        """Run a command of tmux, and return what it prints."""
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, encoding="utf-8",
                              env=self._environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pane(self) -> str:
        """Return what is seen."""
        return self.tell("capture-pane", "-p")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a pattern is seen."""
        found: list[re.Match[str]] = []

        def is_seen() -> bool:
            found.extend(filter(None, [re.search(pattern, self.pane(), re.DOTALL | re.MULTILINE)]))
            return bool(found)

        until(is_seen)
        return found[0]


@pytest.fixture
def tmux(tmp_path):
    """A window of 100 columns and 30 lines, in which a shell command can be run."""
    made = Tmux(tmp_path)
    yield made
    made.tell("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_thousand_clients_in_a_terminal_that_is_resized_and_interrupted(tmux):
    """Those that say something are seen, in both sizes; then the terminal is as it was before, with the last lines."""
    command = shlex.join([sys.executable, "-m", "threaded_echo", "--live", "--port", "0"])
    tmux.tell("new-session", "-d", "-x", "100", "-y", "30",
              f"{MORE_DESCRIPTORS}; echo before; {command}; echo status $?; cat")
    port = int(tmux.wait_for(r"\A threaded_echo on 127\.0\.0\.1:(\d+) .*^no clients$")[1])
    idle = shlex.join([*module("tests.system.idle_clients"), str(port), "1000"])
    with program("sh", "-c", f"{MORE_DESCRIPTORS}; exec {idle}") as clients:
        assert next_line(clients) == "connected"
        tmux.wait_for(r"^clients  1,000 live .*^and 9\d\d more, silent for longer$")
        with connect(("127.0.0.1", port)) as client:
            client.sendall(b"[red]hello\x1b[2J\n")
            assert receive(client, 15) == b"[red]hello\x1b[2J\n"
            tmux.wait_for(r"^clients  1,001 live .*^1001  127\.0\.0\.1:\d+  serving .*  \[red\]hello\\x1b\[2J$")
            tmux.tell("resize-window", "-x", "50", "-y", "12")
            tmux.wait_for(r"\A threaded_echo on [^\n]{31}\n.*^ *no  address          [^\n]*last mes.*^and 99\d more, s")
            assert len(tmux.pane().splitlines()) == 12
            assert tmux.tell("display-message", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}") == "1 0 0\n"
            tmux.tell("send-keys", "C-c")
            pane = tmux.wait_for(r"\Abefore\nlistening on 127.*^status 0$")[0]
        assert last_lines(clients) == ["1000"]
    assert re.fullmatch(rf"before\nlistening on 127\.0\.0\.1:{port}\nstopping: 1001 clients live\n"
                        r"stopped in [\d.]+ s: 1001 drained, 0 for.*\nstatus 0", pane, re.DOTALL)
    assert tmux.tell("display-message", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}") == "0 1 1\n"
