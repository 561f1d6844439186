"""The echo handler: what it sends back, and what it logs."""
from __future__ import annotations

import logging

import pytest

from threaded_echo import EchoHandler
from threaded_echo.handlers import printable
from threaded_echo.transport.listeners import show_address

from .tools import ask


def test_echo_sends_back_and_logs_each_message(serve, caplog):
    """Each line is logged once, escaped, under the client's number, and every byte comes back."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    message = b"hello\nyou \x1b[31m\xff\r\nno end"
    server = serve(EchoHandler)
    assert ask(server, message) == message
    server.stop()
    assert [record.getMessage() for record in caplog.records] == [
        f"client 1 connected from {show_address(caplog.records[0].address)}", "client 1: hello",
        "client 1: you \\x1b[31m\\xff", "client 1: no end", "client 1 disconnected"]


def test_echo_logs_nothing_where_nobody_listens(serve, caplog):
    """If the logger's level is above info, there is no record."""
    caplog.set_level(logging.WARNING, logger="threaded_echo")
    assert ask(serve(EchoHandler), b"hello") == b"hello"
    assert not caplog.records


@pytest.mark.parametrize("message, shown", [
    (b"plain", "plain"), ("grüß".encode(), "grüß"), (b"\x00\x07\x7f", "\\x00\\x07\\x7f"), (b"a\tb", "a\\tb"),
    (b"\xc2\x9b31m", "\\x9b31m"), ("\u202egpj.exe".encode(), "\\u202egpj.exe"), (b"\xff\xfe", "\\xff\\xfe"),
])
def test_message_cannot_drive_a_terminal(message, shown):
    """Control characters of every kind are escaped."""
    assert printable(message) == shown
