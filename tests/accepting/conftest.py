"""What the tests of ``server.run`` share."""
from __future__ import annotations

import signal

import pytest

from .operating import SIGNALS


@pytest.fixture
def handlers_are_restored():
    """Let signals that come late do nothing, and check that the handlers are there again."""
    def ignore(number, frame):
        """Do nothing."""

    before = [signal.signal(number, ignore) for number in SIGNALS]
    yield
    after = [signal.signal(number, handler) for number, handler in zip(SIGNALS, before, strict=True)]
    assert after == [ignore, ignore]
