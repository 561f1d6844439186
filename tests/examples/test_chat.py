"""The example that is a chat room: what it says to whom, and the program, all of it in this process."""
from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from threaded_echo.examples import chat
from threaded_echo.examples.chat import LONGEST_NAME, ChatHandler

from ..tools import connect, receive, receive_all

QUESTION = b"what is your name?\n"


def enter(stack: ExitStack, server: Any, name: bytes, here: bytes) -> socket.socket:
    """Connect, and take a name."""
    client = stack.enter_context(connect(server))
    client.sendall(name + b"\n")
    expected = QUESTION + b"* here: " + here + b"\n"
    assert receive(client, len(expected)) == expected
    return client


def expect(client: socket.socket, text: bytes) -> None:
    """Receive exactly that."""
    assert receive(client, len(text)) == text


def test_the_others_read_what_one_says(serve: Callable[..., Any]) -> None:
    """Who comes and goes is told, too, and each may ask who is here."""
    server = serve(ChatHandler)
    with ExitStack() as stack:
        ann = enter(stack, server, b"ann", b"ann")
        bob = enter(stack, server, b"bob", b"ann, bob")
        expect(ann, b"* bob is here\n")
        ann.sendall(b"hello\n\n")
        expect(bob, b"ann: hello\n")
        bob.sendall(b"hi\n/who\n/what\n")
        expect(ann, b"bob: hi\n")
        expect(bob, b"* here: ann, bob\n* there are /who and /quit\n")
        bob.sendall(b"/quit\n")
        assert receive_all(bob) == b"* bye\n"
        expect(ann, b"* bob has left\n")
        ann.sendall(b"/who\n")
        expect(ann, b"* here: ann\n")


@pytest.mark.parametrize("name", [b"", b"ann", b"/who", b"x" * (LONGEST_NAME + 1), b"\x1b\x07"])
def test_name_that_is_taken_or_none_is_asked_for_again(serve: Callable[..., Any], name: bytes) -> None:
    """Until it is a good one, nobody is told, nor when the client leaves."""
    server = serve(ChatHandler)
    with ExitStack() as stack:
        ann = enter(stack, server, b"ann", b"ann")
        with connect(server) as client:
            client.sendall(name + b"\n/quit\n")
            assert receive_all(client) == QUESTION + b"* that name is taken, or is none\n* bye\n"
        enter(stack, server, b"bob", b"ann, bob")
        expect(ann, b"* bob is here\n")


def test_no_client_can_drive_the_terminal_of_another(serve: Callable[..., Any]) -> None:
    """Control characters are left out, and what is no UTF-8 is replaced."""
    server = serve(ChatHandler)
    with ExitStack() as stack:
        ann = enter(stack, server, b"ann", b"ann")
        bob = enter(stack, server, b"b\x1bob", b"ann, bob")
        expect(ann, b"* bob is here\n")
        bob.sendall(b"\x1b[2J\xff!\r\n")
        expect(ann, "bob: [2J\N{REPLACEMENT CHARACTER}!\n".encode())


def test_the_program_serves_until_a_signal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It tells where it listens; here the signal is there before the first client."""
    monkeypatch.setattr(chat.ThreadedTCPServer, "run", lambda server: os.write(1, b""))
    chat.main(["--port", "0"])
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+\n", capsys.readouterr().out)


def test_port_that_cannot_be_is_told() -> None:
    """The exit message has the system's reason."""
    with pytest.raises(SystemExit, match="^chat: cannot serve: "):
        chat.main(["--port", "70000"])
