"""The fields of the records: each that is about a client has them, and its event is one that the README names."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import threaded_echo
from threaded_echo.observe.logs import EVENTS, about

PACKAGE = Path(threaded_echo.__file__).parent
REASONS = {"idle", "lifetime", "send", "stop", "disconnect", "thread"}
"""The reasons of a client, which are events, too."""

LOGS = ("debug", "info", "warning", "error", "log", "_log", "_threaded_log")
"""The names of what logs."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Find each call in the package, and the name by which it is made."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "examples":
            continue  # they are programs, and log what they like
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def test_each_record_about_a_client_has_the_fields():
    """In this package, such a message begins with the client."""
    found = 0
    for name, call in calls():
        texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        if name in LOGS and any(str(text).startswith(("client ", "%s: ", "%s went")) for text in texts):
            assert "extra" in [keyword.arg for keyword in call.keywords], ast.unparse(call)
            found += 1
    assert found >= 20


def test_events_are_those_that_are_listed():
    """A new one is added to the list, and none is listed that never occurs."""
    words = {node.value for name, call in calls() if name in ("about", "line", "_log") for argument in call.args
             for node in ast.walk(argument) if isinstance(node, ast.Constant) and node.value in EVENTS}
    assert words | REASONS == set(EVENTS)
    events = [call.args[1] for name, call in calls() if name == "about"]
    assert {event.value for event in events if isinstance(event, ast.Constant)} <= set(EVENTS)


def test_fields_of_no_client_are_there_all_the_same():
    """So that a format with ``%(client)s`` works for all records that have an event."""
    assert about(None, "stopped") == {"client": None, "address": None, "event": "stopped"}
