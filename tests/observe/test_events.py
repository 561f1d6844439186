"""The fields of the records: each that is about a client has them, and its event is one that the README names."""
from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import threaded_echo
from threaded_echo.observe.logs import EVENTS, about

from ..tools import Echo, connect, receive_all, subclass, until

PACKAGE = Path(threaded_echo.__file__).parent
REASONS = {"idle", "lifetime", "send", "stop", "disconnect", "thread"}
"""The reasons of a client, which are events, too."""

LOGS = ("debug", "info", "warning", "error", "log", "_log", "_threaded_log")
"""The names of what logs."""

NO_LOGS = ("isEnabledFor", "addHandler", "removeHandler", "setLevel")
"""The names of a logger's other methods."""

_HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Find each call in the package, and the name by which it is made."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "examples":
            continue  # they are programs, and log what they like
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def test_each_record_has_the_fields():
    """A format with ``%(client)s`` needs them in all, or logging prints an error in place of the record."""
    found = 0
    for name, call in calls():
        texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        is_about_client = name in LOGS and any(str(text).startswith(("client ", "%s: ", "%s went")) for text in texts)
        if is_about_client or isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value).endswith("logger"):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if None not in keywords and name not in NO_LOGS:
                assert "about(" in keywords.get("extra", ""), ast.unparse(call)
                found += 1
    assert found >= 45


def test_events_are_those_that_are_listed():
    """A new one is added to the list, and none is listed that never occurs."""
    words = {node.value for name, call in calls() if name in ("about", "line", "_log") for argument in call.args
             for node in ast.walk(argument) if isinstance(node, ast.Constant) and node.value in EVENTS}
    assert words | REASONS == set(EVENTS)
    events = [call.args[1] for name, call in calls() if name == "about"]
    assert {event.value for event in events if isinstance(event, ast.Constant)} <= set(EVENTS)


@pytest.mark.parametrize("hook, options", [(lambda *_: False, {}), (lambda *_: True, {"max_clients_per_host": 1})])
def test_client_that_is_refused_in_its_thread_is_an_event_of_the_list(serve, caplog, hook, options):
    """Not all reasons for that are words that stand for an event."""
    caplog.set_level(logging.DEBUG, "threaded_echo")
    server = serve(Echo, subclass(verify_request=hook, proxy_protocol=["127.0.0.1"], **options))
    with connect(server) as first, connect(server) as second:
        first.sendall(_HEADER)
        until(lambda: [client for client in server.clients.values() if client.state == "serving"]
              or server.stats().refused)
        second.sendall(_HEADER)
        assert receive_all(second) == b""
    until(lambda: "refused" in [record.event for record in caplog.records])
    assert server.stop().clean
    assert {record.event for record in caplog.records} <= set(EVENTS)


def test_fields_of_no_client_are_there_all_the_same():
    """So that a format with ``%(client)s`` works for all records that have an event."""
    assert about(None, "stopped") == {"client": None, "address": None, "event": "stopped"}
