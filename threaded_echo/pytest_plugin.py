"""The pytest plugin: the fixture ``threaded_server``, which runs servers for a test.

It is found once the package is installed; from a checkout, ``pytest -p threaded_echo.pytest_plugin`` loads it. Every
run of pytest imports it; so it imports nothing else of the package until a test uses the fixture.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import ServerFactory


@pytest.fixture
def threaded_server() -> Iterator[ServerFactory]:
    """Start servers for a test, and stop them after it: ``server = threaded_server(Handler, **options)``.

    It serves at ``server.server_address``, a free port of 127.0.0.1. A test may start several. The test fails, with an
    error at its teardown, if a handler is still running after the stop, or has raised an exception;
    ``threaded_server(Handler, raises=ValueError)`` expects one, and ``threaded_server.errors`` has all of them.

    ``device = threaded_server.record({b"PING": b"PONG"})`` makes a handler that replies from a script: a reply for all
    messages, a list of replies, a mapping, or a function. ``device.messages`` has what clients have sent, and
    ``device.received`` the same by client number. ``help("threaded_echo.testing")`` says more.
    """
    from .testing import ServerFactory
    with ServerFactory() as factory:
        yield factory
