"""Keeps values under keys, in memory, for clients of Redis: some of its commands, in its protocol (RESP).

Run ``python3 -m threaded_echo.examples.key_value``, then ``redis-cli``, and type ``SET greeting hello`` and ``GET
greeting``. ``nc 127.0.0.1 6379`` works, too, with one command in each line. The server speaks version 2 of the
protocol, for which the client redis-py has to be asked: ``redis.Redis(protocol=2)``.
"""
from __future__ import annotations

import argparse
import re
import threading
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from threaded_echo import ClientHandler, ThreadedTCPServer

MOST_WORDS, MOST_BYTES = 1024, 1 << 20  # of one command


class Store(ThreadedTCPServer):
    """The server, and what it keeps."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.values: dict[bytes, bytes] = {}
        self.lock = threading.Lock()  # guards the values; held while a command uses them
        super().__init__(*arguments, **options)


class StoreHandler(ClientHandler):
    """Reads commands, and answers each."""

    server: Store

    def handle(self) -> None:
        """Serve until QUIT, the end of the stream, or input that is no command."""
        words = [b""]
        while not words or words[0].upper() != b"QUIT":
            try:
                words = self.receive_command()
            except ValueError as error:  # LineTooLong is one
                return self.send(encode(ValueError(f"Protocol error: {error}")))
            if words:
                self.send(encode(self.answer(words)))

    def receive_command(self) -> list[bytes]:
        """Receive an array of strings, or a line of words. Raises ValueError for anything else."""
        line = self.receive_until(b"\n").rstrip()
        if not line.startswith(b"*"):
            return line.split()
        words, room = [], MOST_BYTES
        for _ in range(number(line, "*", MOST_WORDS)):
            size = number(self.receive_until(b"\n", 32).rstrip(), "$", room)
            words.append(self.receive_exactly(size + 2)[:size])
            room -= size
        return words

    def answer(self, words: list[bytes]) -> Any:
        """Obey a command, and return its answer."""
        name, arguments = words[0].decode("ascii", "replace").lower(), words[1:]
        command, fewest, most = COMMANDS.get(name, (None, 0, 0))
        if command is None:
            return ValueError(f"unknown command '{name}'")
        if not fewest <= len(arguments) <= most:
            return ValueError(f"wrong number of arguments for '{name}' command")
        try:
            with self.server.lock:
                return command(self.server.values, *arguments)
        except ValueError as error:
            return error


def number(line: bytes, mark: str, most: int) -> int:
    """Read a number after its mark. Raises ValueError."""
    if not re.fullmatch(rb"[*$]\d{1,9}", line) or line[0] != ord(mark) or int(line[1:]) > most:
        raise ValueError(f"expected {mark} and a number up to {most}")
    return int(line[1:])


def encode(answer: Any) -> bytes:
    """Encode an answer: a str is a status, bytes are a value, and ``None`` is the null value."""
    if isinstance(answer, Exception):
        return b"-ERR %s\r\n" % "".join(filter(str.isprintable, str(answer))).encode()
    if isinstance(answer, str):
        return b"+%s\r\n" % answer.encode()
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, list):
        return b"*%d\r\n%s" % (len(answer), b"".join(map(encode, answer)))
    return b"$-1\r\n" if answer is None else b"$%d\r\n%s\r\n" % (len(answer), answer)


def put(values: dict[bytes, bytes], key: bytes, value: bytes) -> str:
    """Set a value."""
    values[key] = value
    return "OK"


def increment(values: dict[bytes, bytes], key: bytes, by: bytes = b"1") -> int:
    """Add to a number. Raises ValueError if it is none."""
    value = values.get(key, b"0")
    if not all(re.fullmatch(rb"-?\d{1,18}", each) for each in (value, by)):
        raise ValueError("value is not an integer or out of range")
    count = int(value) + int(by)
    values[key] = b"%d" % count
    return count


COMMANDS: dict[str, tuple[Callable[..., Any], int, int]] = {  # and the fewest and the most arguments of each
    "command": (lambda values, *_: [], 0, MOST_WORDS),  # redis-cli asks for what there is
    "del": (lambda values, *keys: sum(values.pop(key, None) is not None for key in keys), 1, MOST_WORDS),
    "echo": (lambda values, message: message, 1, 1),  # with which redis-cli --pipe ends
    "exists": (lambda values, *keys: sum(key in values for key in keys), 1, MOST_WORDS),
    "get": (lambda values, key: values.get(key), 1, 1),
    "incr": (increment, 1, 1),
    "incrby": (increment, 2, 2),
    "keys": (lambda values, pattern: [key for key in values if fnmatchcase(key, pattern)], 1, 1),
    "ping": (lambda values, *message: message[0] if message else "PONG", 0, 1),
    "quit": (lambda values: "OK", 0, 0),
    "set": (put, 2, 2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="key_value", description="Keep values under keys, for clients of Redis.")
    parser.add_argument("--port", type=int, default=6379, help="0 picks a free one (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with Store(("127.0.0.1", options.port), StoreHandler) as server:
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
    except (OSError, OverflowError) as error:
        raise SystemExit(f"key_value: cannot serve: {error}") from None


if __name__ == "__main__":
    main()
