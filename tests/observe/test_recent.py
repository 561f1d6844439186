"""The last message of each client, and how many there were, as the log's records have them."""
from __future__ import annotations

import logging

import pytest

from threaded_echo import EchoHandler
from threaded_echo.observe import recent
from threaded_echo.observe.recent import RecentMessages

from ..tools import ask, connect, receive


@pytest.fixture
def messages(monkeypatch):
    """Collect what the package logs at INFO."""
    logger, handler = logging.getLogger("threaded_echo"), RecentMessages()
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger._cache.clear()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger._cache.clear()


def log(handler, text, *arguments, **extra):
    """Have a handler handle a record."""
    record = logging.makeLogRecord({"msg": text, "args": arguments, **extra})
    handler.handle(record)


def test_last_message_of_each_client_is_kept(serve, messages):
    """It is what EchoHandler logs, without the client's number; each line is a message."""
    server = serve(EchoHandler)
    with connect(server) as one, connect(server) as other:
        for client, text in ((one, b"first\nsecond\n"), (other, b"client 1: \xff\n")):
            client.sendall(text)
            assert receive(client, len(text)) == text
        assert [messages.last_of(number) for number in (1, 2, 3)] == ["second", "client 1: \\xff", ""]
        assert messages.counts() == (3, 0)
        assert messages.numbers() == [1, 2]
        messages.forget(1)
        messages.forget(1)
        assert messages.numbers() == [2]


def test_messages_that_were_not_logged_are_counted(serve, messages):
    """At the latest when the client has gone."""
    server = serve(EchoHandler, logs_per_client=2)
    ask(server, b"a\nb\nc\nd\ne\n")
    server.stop()
    assert messages.counts() == (2, 3) and messages.last_of(1) == "b"


def test_records_of_other_kinds_are_left_alone():
    """So are those of a program that names no client, or names it differently."""
    handler = RecentMessages()
    log(handler, "client 1 connected", client=1, event="connected")
    log(handler, "hello", event="message")
    log(handler, "hello", event="message", client="one")
    log(handler, "many more", event="omitted")
    log(handler, "hello")
    assert handler.counts() == (0, 0) and handler.numbers() == []


def test_what_is_kept_is_bounded(monkeypatch):
    """The client that has been silent the longest loses its message; a long message loses its end."""
    monkeypatch.setattr(recent, "MOST_CLIENTS", 2)
    handler = RecentMessages()
    for number in (1, 2, 1, 3):
        log(handler, "x" * 1000, client=number, event="message")
    assert handler.numbers() == [1, 3]
    assert handler.last_of(3) == "x" * recent.MOST_CHARACTERS


def test_record_that_cannot_be_formatted_is_reported_as_logging_does(monkeypatch):
    """It is a mistake in a program's own handler, and harms nothing."""
    handled = []
    handler = RecentMessages()
    monkeypatch.setattr(handler, "handleError", handled.append)
    log(handler, "%d", "text", client=1, event="message")
    assert len(handled) == 1 and handler.counts() == (0, 0)


def test_client_is_forgotten_with_the_lock_held():
    """Else the thread that logs another one's message could find its oldest one gone."""
    class Watched(dict):
        """Notes whether the calling thread holds the lock."""

        def pop(self, *arguments):
            """Note it."""
            held.append(handler.lock._is_owned())
            return super().pop(*arguments)

    held, handler = [], RecentMessages()
    handler._last = Watched()
    log(handler, "hello", client=1, event="message")
    handler.forget(1)
    assert held == [True, True] and handler.numbers() == []
