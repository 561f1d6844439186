"""The handler that records what clients send, and replies from a script."""
from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import pytest

from threaded_echo import current_client
from threaded_echo.testing import HANG_UP, Recorder

from ..tools import ask, connect, receive, receive_all, together


class AnyMessage(defaultdict):
    """A mapping that has a reply for each message."""

    def __missing__(self, message: bytes) -> bytes:
        """Return the message."""
        return message


@pytest.mark.parametrize("script, answer", [
    (None, b""), (b"yes", b"yes\nyes\nyes\n"), (bytearray(b"yes"), b"yes\nyes\nyes\n"),
    ([b"1", None, memoryview(b"3")], b"1\n3\n"), ((b"1", b"", b"3", b"4"), b"1\n\n3\n"),
    ({b"a": b"1", b"b": None, b"c": b"3"}, b"1\n3\n"), (AnyMessage(a=b"1"), b"a\nb\nc\n"), (bytes.upper, b"A\nB\nC\n"),
])
def test_each_kind_of_script_has_the_replies(serve: Any, script: Any, answer: bytes) -> None:
    """The last message has no end but that of the stream."""
    recorder = Recorder(script)
    assert ask(serve(recorder), b"a\nb\r\nc") == answer
    assert recorder.messages == [b"a", b"b", b"c"]
    assert recorder.received == {1: [b"a", b"b", b"c"]}


def test_sequence_is_counted_over_all_clients(serve: Any) -> None:
    """So a script can have a connection fail, and the next one succeed."""
    recorder = Recorder([b"1", HANG_UP, b"3"])
    server = serve(recorder)
    with connect(server) as client:
        client.sendall(b"a\n")
        assert receive(client, 2) == b"1\n"
        client.sendall(b"b\nnot read\n")
        assert receive_all(client) == b""
    assert ask(server, b"c\n") == b"3\n"
    assert recorder.received == {1: [b"a", b"b"], 2: [b"c"]}
    assert server.stats().failed == 0


@pytest.mark.parametrize("script", [{b"a": b"1"}, [b"1"]])
def test_message_without_a_reply_is_a_failure(serve: Any, caplog: pytest.LogCaptureFixture, script: Any) -> None:
    """It is recorded all the same."""
    recorder = Recorder(script)
    with caplog.at_level(logging.ERROR):
        assert ask(serve(recorder), b"a\nb\n") == b"1\n"
    assert str(caplog.records[0].exc_info[1]) == "client 1 has sent b'b', for which the script has no reply"
    assert recorder.messages == [b"a", b"b"]


def test_reply_that_is_not_bytes_is_a_failure(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The error names the message and the reply."""
    with caplog.at_level(logging.ERROR):
        assert ask(serve(Recorder({b"a": "text"})), b"a\n") == b""
    assert str(caplog.records[0].exc_info[1]) == ("the script's reply to b'a' must be bytes, None or HANG_UP, "
                                                  "not 'text'")


@pytest.mark.parametrize("end, sent, messages, answer", [
    (b"\r\n", b"a\nb\r\nc\r\n", [b"a\nb", b"c"], b"A\nB\r\nC\r\n"),
    (b"\0", b"a\0\0", [b"a", b""], b"A\0\0"),
    (None, b"a\n", [b"a\n"], b"A\n"),
])
def test_end_of_messages_is_that_of_replies(serve: Any, end: Any, sent: bytes, messages: Any, answer: bytes) -> None:
    """``None``: there are chunks, without an end."""
    recorder = Recorder(bytes.upper, end=end)
    assert ask(serve(recorder), sent) == answer
    assert recorder.messages == messages


def test_message_in_pieces_is_one(serve: Any) -> None:
    """What comes after the end of the message before is kept."""
    recorder = Recorder([b"1", b"2"])
    with connect(serve(recorder)) as client:
        client.sendall(b"first\nsec")
        assert receive(client, 2) == b"1\n"
        client.sendall(b"ond\n")
        assert receive(client, 2) == b"2\n"
    assert recorder.messages == [b"first", b"second"]


def test_receive_and_greeting_are_for_other_protocols(serve: Any) -> None:
    """Here messages begin with their length, and replies are sent as they are."""
    recorder = Recorder(bytes.upper, greeting=b"hello ",
                        receive=lambda handler: handler.receive_exactly(handler.receive_exactly(1)[0]))
    server = serve(recorder)
    assert ask(server, b"\3one\0\5three\4en") == b"hello ONETHREE"
    assert recorder.messages == [b"one", b"", b"three"]
    assert server.stats().failed == 0


def test_unfinished_message_at_a_stop_is_not_recorded(serve: Any) -> None:
    """Its rest may be missing; the client is known all the same."""
    recorder = Recorder(b"yes")
    server = serve(recorder)
    with connect(server) as client:
        client.sendall(b"a\nb")
        assert receive(client, 4) == b"yes\n"
        server.stop()
    assert recorder.received == {1: [b"a"]}


def test_clients_at_once_are_all_recorded(serve: Any) -> None:
    """A function for a script runs in each client's thread, and may find the client."""
    recorder = Recorder(lambda message: b"%d" % current_client().number)
    server = serve(recorder)
    answers = together(8, lambda: ask(server, b"a\n" * 50))
    numbers = [answer.split(b"\n")[0] for answer in answers]
    assert sorted(map(int, numbers)) == list(range(1, 9))
    assert recorder.received == {number: [b"a"] * 50 for number in range(1, 9)}
    assert len(recorder.messages) == 400


def test_messages_without_a_reply_are_waited_for(serve: Any) -> None:
    """The error of a wait in vain has what has come."""
    recorder = Recorder()
    with connect(serve(recorder)) as client:
        client.sendall(b"a\nb\n")
        assert recorder.wait_for(2) == [b"a", b"b"]
        with pytest.raises(TimeoutError, match=r"2 of 3 messages have come within 0.001 seconds: \[b'a', b'b'\]"):
            recorder.wait_for(3, timeout=0.001)


@pytest.mark.parametrize("wrong", ["text", 5, {1, 2}])
def test_script_of_another_kind_is_an_error(wrong: Any) -> None:
    """It is raised at once, with the script."""
    with pytest.raises(TypeError, match="the script must be bytes, a sequence, a mapping or a callable, not "):
        Recorder(wrong)


@pytest.mark.parametrize("wrong", ["\n", b""])
def test_end_of_another_kind_is_an_error(wrong: Any) -> None:
    """So is an empty one."""
    with pytest.raises(ValueError, match="end must be bytes, and not empty, or None, not "):
        Recorder(end=wrong)
