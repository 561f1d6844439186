"""The example that keeps values: its commands, and what it says of wrong ones and of what is no command."""
from __future__ import annotations

from typing import Any

import pytest

from threaded_echo.examples import key_value
from threaded_echo.examples.key_value import MOST_BYTES, MOST_WORDS, Store, StoreHandler

from ..tools import ask, connect, receive, together
from .programs import operate


@pytest.fixture
def store(serve: Any) -> Any:
    """Serve."""
    return serve(StoreHandler, Store)


def encode(*words: bytes) -> bytes:
    """Encode a command as clients do."""
    return b"*%d\r\n%s" % (len(words), b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))


@pytest.mark.parametrize("lines, answer", [
    (b"PING", b"+PONG\r\n"), (b"ping hello\r\n", b"$5\r\nhello\r\n"), (b"\r\n \nPING\n", b"+PONG\r\n"),
    (b"GET a", b"$-1\r\n"), (b"SET a 1\nGET a", b"+OK\r\n$1\r\n1\r\n"),
    (b"SET a 1\nSET a 2\nGET a", b"+OK\r\n" * 2 + b"$1\r\n2\r\n"),
    (b"DEL a", b":0\r\n"), (b"SET a 1\nSET b 2\nDEL a b c\nEXISTS a", b"+OK\r\n+OK\r\n:2\r\n:0\r\n"),
    (b"SET a 1\nEXISTS a a b", b"+OK\r\n:2\r\n"), (b"INCR n\nINCR n\nGET n", b":1\r\n:2\r\n$1\r\n2\r\n"),
    (b"SET n -5\nINCR n", b"+OK\r\n:-4\r\n"), (b"INCRBY n 7\nINCRBY n -9", b":7\r\n:-2\r\n"),
    (b"INCRBY n x", b"-ERR value is not an integer or out of range\r\n"), (b"ECHO a", b"$1\r\na\r\n"),
    (b"SET key1 1\nSET other 2\nKEYS key?\nKEYS x", b"+OK\r\n+OK\r\n*1\r\n$4\r\nkey1\r\n*0\r\n"),
    (b"COMMAND\nCOMMAND DOCS", b"*0\r\n*0\r\n"), (b"QUIT\nPING", b"+OK\r\n"),
    (b"FLY", b"-ERR unknown command 'fly'\r\n"), (b"\xff\x1b", "-ERR unknown command '\ufffd'\r\n".encode()),
    (b"GET", b"-ERR wrong number of arguments for 'get' command\r\n"),
    (b"SET a b c\nPING", b"-ERR wrong number of arguments for 'set' command\r\n+PONG\r\n"),
    (b"SET n x\nINCR n\nGET n", b"+OK\r\n-ERR value is not an integer or out of range\r\n$1\r\nx\r\n"),
])
def test_command_is_answered(store: Any, lines: bytes, answer: bytes) -> None:
    """In a line each, as they are typed; a wrong one leaves the client connected."""
    assert ask(store, lines + b"\n") == answer


def test_commands_as_programs_send_them_may_have_any_bytes(store: Any) -> None:
    """And several may be sent at once."""
    value = bytes(range(256)) + b"\r\n$1\r\n"
    assert ask(store, encode(b"SET", b"", value) + encode(b"GET", b"") + encode() + encode(b"")) == (
        b"+OK\r\n$%d\r\n%s\r\n-ERR unknown command ''\r\n" % (len(value), value))


@pytest.mark.parametrize("sent, expected", [
    (b"*x\r\n", f"* and a number up to {MOST_WORDS}"), (b"*-1\r\n", f"* and a number up to {MOST_WORDS}"),
    (b"*%d\r\n" % (MOST_WORDS + 1), f"* and a number up to {MOST_WORDS}"),
    (b"*1\r\nPING\r\n", f"$ and a number up to {MOST_BYTES}"), (b"*1\r\n*4\r\n", f"$ and a number up to {MOST_BYTES}"),
    (b"*1\r\n$9999999999\r\n", f"$ and a number up to {MOST_BYTES}"),
    (b"*2\r\n$4\r\nPING\r\n$%d\r\n" % (MOST_BYTES - 3), f"$ and a number up to {MOST_BYTES - 4}"),
])
def test_client_that_sends_no_command_is_told_and_disconnected(store: Any, sent: bytes, expected: str) -> None:
    """No more is received than a command may have."""
    assert ask(store, sent) == f"-ERR Protocol error: expected {expected}\r\n".encode()
    assert store.stats().failed == 0


def test_line_that_is_too_long_is_told(store: Any) -> None:
    """It is not kept for ever."""
    assert ask(store, b"x" * 65_537).startswith(b"-ERR Protocol error: a message of more than 65536 bytes")


def test_values_are_shared_and_increments_not_lost(store: Any) -> None:
    """Each of eight clients counts."""
    with connect(store) as client:
        client.sendall(b"SET n 0\r\n")
        assert receive(client, 5) == b"+OK\r\n"
        together(8, lambda: ask(store, b"INCR n\r\n" * 50))
        client.sendall(b"GET n\r\n")
        assert receive(client, 9) == b"$3\r\n400\r\n"


def test_program_serves_until_a_signal() -> None:
    """It prints where it listens."""
    assert operate(key_value.main, lambda address: ask(address, b"PING\n")) == b"+PONG\r\n"
