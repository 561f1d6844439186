"""What the tests of the command line are held to, and handlers that it finds by name."""
from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import types
from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def ignored_signals():
    """Let signals that come late do nothing; and check that the command gives them back."""

    def ignore(number, frame):
        """Do nothing."""

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ignore) for number in numbers]
    yield
    after = [signal.signal(number, handler) for number, handler in zip(numbers, before, strict=True)]
    assert after == [ignore, ignore]


@pytest.fixture(autouse=True)
def logger_is_left_alone():
    """Check that the command leaves the package's logger as it was."""
    def state():
        return logger.level, logger.propagate, logger.disabled, logger.handlers[:]

    logger = logging.getLogger("threaded_echo")
    before = state()
    yield
    assert state() == before


@pytest.fixture
def named(monkeypatch) -> Callable[[type], str]:
    """Make a handler class importable; returns its MODULE:CLASS."""
    def name(handler: type) -> str:
        module = types.ModuleType("its_handlers")
        vars(module)["Handler"] = handler
        monkeypatch.setitem(sys.modules, "its_handlers", module)
        return "its_handlers:Handler"

    return name


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Be in a folder of its own, where its modules are imported from, and forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    modules = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]
