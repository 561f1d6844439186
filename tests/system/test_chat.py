"""The example that is a chat room, as a whole program, with netcats."""
from __future__ import annotations

import re
import shutil
import signal
from contextlib import ExitStack

import pytest

from ..tools import GUARD
from .programs import last_lines, module, next_line, program, tell


@pytest.mark.skipif(shutil.which("nc") is None, reason="netcat-openbsd is not installed")
def test_three_netcats_talk_until_a_signal_ends_the_program() -> None:
    """The server runs as a program of its own, and returns well."""
    with ExitStack() as stack:
        server = stack.enter_context(program(*module("threaded_echo.examples.chat", "--port", "0")))
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", next_line(server))
        assert found
        netcats = []
        for name in ("ann", "bob", "eve"):
            netcat = stack.enter_context(program("nc", "-N", "127.0.0.1", found[1]))
            tell(netcat, name)
            assert next_line(netcat) == "what is your name?" and next_line(netcat).startswith("* here: ann")
            for other in netcats:
                assert next_line(other) == f"* {name} is here"
            netcats.append(netcat)
        ann, bob, eve = netcats
        tell(ann, "hello")
        assert next_line(bob) == next_line(eve) == "ann: hello"
        tell(eve, "/quit")
        assert next_line(eve) == "* bye"
        assert next_line(ann) == next_line(bob) == "* eve has left"
        server.send_signal(signal.SIGTERM)
        assert last_lines(server) == [] and server.wait(GUARD) == 0
        for netcat in netcats:  # which still waits for its own input
            assert netcat.stdin is not None
            netcat.stdin.close()
            assert netcat.wait(GUARD) == 0
