"""The command's output as JSON, an object a line."""
from __future__ import annotations

import errno
import io
import json
import logging
import socketserver
import sys
from contextlib import redirect_stdout
from datetime import datetime, timezone
from typing import Any

import pytest

from threaded_echo.command import run as cli
from threaded_echo.command.json_lines import JsonFormatter
from threaded_echo.command.output import Output

from ..tools import ask, connect, receive
from .operating import port_of, reset, run


def strictly(constant: str) -> None:
    """Refuse what Python reads and JSON does not have, such as NaN."""
    raise AssertionError(constant)


def read(line: str) -> dict[str, Any]:
    """Read a line as a strict reader does."""
    assert line.isascii() and line.isprintable()
    found: dict[str, Any] = json.loads(line, parse_constant=strictly)
    json.dumps(found, ensure_ascii=False).encode()  # all of it is Unicode text
    return found


def record_of(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    """Make a record."""
    record = logging.LogRecord("threaded_echo", logging.INFO, __file__, 1, message, arguments, None)
    vars(record).update(fields)
    return record


def test_record_has_its_members_in_their_order():
    """The time has a zone, and the address is as people write it."""
    record = record_of("client %d: %s", 3, "hello", client=3, address=("::1", 9, 0, 0), event="message", created=1.5)
    line = JsonFormatter().format(record)
    assert list(read(line).items()) == [
        ("time", "1970-01-01T00:00:01.500000+00:00"), ("level", "INFO"), ("event", "message"), ("client", 3),
        ("address", "[::1]:9"), ("message", "client 3: hello")]
    assert datetime.fromisoformat(read(line)["time"]) == datetime.fromtimestamp(1.5, timezone.utc)


def test_record_of_no_client_has_null():
    """The members are always there, also if a program has logged by itself."""
    found = read(JsonFormatter().format(record_of("no arguments: %d")))
    assert (found["event"], found["client"], found["address"], found["message"]) == (None,) * 3 + ("no arguments: %d",)


@pytest.mark.parametrize("text", ["\0\a\b\t\n\x1b[2J\x7f\x85\x9b", "\u2028\u2029\u202e", "gr\u00fc\u00df \U0001f600",
                                  '"\\'])
def test_text_of_every_kind_is_escaped_and_comes_back(text):
    """Nothing in a line can end it or drive a terminal."""
    assert read(JsonFormatter().format(record_of("%s", text)))["message"] == text


def test_what_is_no_text_or_no_json_is_shown():
    """Such as a file's name that is not UTF-8, and what a program puts into a record."""
    found = read(JsonFormatter().format(record_of("\udcff", client=float("nan"), address="\0\udcff", event=b"x")))
    assert found["message"] == found["address"][1:] == "\\udcff"
    assert (found["client"], found["event"]) == ("nan", "b'x'")


def test_exception_and_stack_are_strings():
    """The traceback is in one member, its line ends escaped."""
    try:
        raise LookupError("\udcff\n")
    except LookupError:
        record = record_of("failed", exc_info=sys.exc_info(), stack_info="Stack:\n  here")
    found = read(JsonFormatter().format(record))
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("LookupError: \\udcff\n")
    assert found["stack"] == "Stack:\n  here"


def test_session_is_a_json_object_a_line():
    """The lines of the contract, each with its event, its client and its address."""
    ports: list[int] = []

    def script(operator):
        """Say hello in bad manners, and leave."""
        address = ("127.0.0.1", int(read(operator.line())["message"].rpartition(":")[2]))
        with connect(address) as client:
            ports.append(port_of(client))
            client.sendall(b"\x1b[2J\xff\0\n")
            assert receive(client, 7) == b"\x1b[2J\xff\0\n"
        while read(operator.line())["event"] != "disconnected":
            pass
        operator.interrupt()

    status, lines = run(["--port", "0", "--log-json"], script, encoding="ascii")
    found = [read(line) for line in lines]
    client = (1, f"127.0.0.1:{ports[0]}")
    assert status == cli.OK
    assert [(each["level"], each["event"], each["client"], each["address"]) for each in found] == [
        ("NOTICE", "listening", None, None), ("INFO", "connected", *client), ("INFO", "message", *client),
        ("INFO", "disconnected", *client), ("NOTICE", "stopping", None, None), ("NOTICE", "stopped", None, None)]
    assert found[2]["message"] == r"client 1: \x1b[2J\xff\x00"


def test_failures_are_on_standard_output_with_their_traceback(named, capsys):
    """Standard error stays empty, so that one reader gets all; --quiet leaves out the rest."""
    class Failing(socketserver.BaseRequestHandler):
        """Fails."""

        def handle(self):
            """Raise."""
            raise LookupError("by a handler")

    def script(operator):
        """Be one client."""
        ask(("127.0.0.1", int(read(operator.line())["message"].rpartition(":")[2])), b"")
        assert read(operator.line())["event"] == "failed"
        operator.interrupt()

    status, lines = run(["--port", "0", "--log-json", "--quiet", "--handler", named(Failing)], script)
    found = [read(line) for line in lines]
    assert (status, capsys.readouterr().err) == (cli.OK, "")
    assert [each["event"] for each in found] == ["listening", "failed", "stopping", "stopped"]
    assert (found[1]["level"], found[1]["client"], found[1]["message"]) == (
        "ERROR", 1, "client 1: its handler has failed")
    assert found[1]["exception"].endswith("LookupError: by a handler")


def test_verbose_shows_a_client_that_breaks_off():
    """At DEBUG, as in plain lines."""
    def script(operator):
        """Reset a connection."""
        client = connect(("127.0.0.1", int(read(operator.line())["message"].rpartition(":")[2])))
        client.sendall(b"x")
        receive(client, 1)
        reset(client)
        while read(operator.line())["event"] != "gone":
            pass
        operator.interrupt()

    lines = run(["--port", "0", "--log-json", "--verbose"], script)[1]
    assert ("DEBUG", 1) in [(read(line)["level"], read(line)["client"]) for line in lines]


@pytest.mark.parametrize("arguments, message", [
    (["--handler", "no_such_module:H"], "cannot import the handler's module 'no_such_module': "
                                        "ModuleNotFoundError: No module named 'no_such_module'"),
    (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
])
def test_start_that_fails_is_one_object(arguments, message, capsys):
    """Whatever keeps it from serving."""
    status, lines = run(["--port", "0", "--log-json", *arguments])
    assert (status, len(lines), capsys.readouterr().err) == (cli.FAILED, 1, "")
    assert (read(lines[0])["level"], read(lines[0])["message"]) == ("ERROR", message)


def test_output_that_takes_no_more_has_its_error_on_standard_error(capsys):
    """There is no other place left for it."""
    error = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.StringIO):
        """Takes nothing."""

        def write(self, text):
            """Fail."""
            raise error

    with redirect_stdout(Full()):
        assert cli.main(["--port", "0", "--log-json"]) == cli.FAILED
    assert capsys.readouterr().err == f"threaded_echo: stopped by an error: {error}\n"


def test_count_of_lines_that_were_not_printed_is_an_object():
    """It is no record of the logger."""
    found = read(Output(logging.INFO, as_json=True)._show_count(1234))
    assert (found["level"], found["event"], found["message"]) == (
        "WARNING", "omitted", "1,234 lines were not printed")
