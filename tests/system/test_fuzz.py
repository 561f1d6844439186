"""Whatever comes, in whatever pieces: lines and messages, by hypothesis."""
from __future__ import annotations

import ipaddress
import socket
import threading
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from threaded_echo import LineHandler, LineTooLong
from threaded_echo.clients.receiving import Receiver
from threaded_echo.transport import proxy_protocol
from threaded_echo.transport.deadline import Deadline

from ..transport.test_proxy_protocol import v2

FUZZ = settings(deadline=None, max_examples=300, derandomize=True, database=None)

# Line ends and separators are frequent, the rest is anything.
TEXT = st.lists(st.one_of(st.sampled_from([b"\n", b"\r\n", b"\r", b"--", b"-", b"x" * 9]), st.binary(max_size=6)),
                max_size=30).map(b"".join)


@st.composite
def pieces(draw):
    """Cut a text into the pieces in which it arrives."""
    text = draw(TEXT)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=20)))
    return text, [piece for piece in (text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)) if piece]


class Stream:
    """A connection from which the pieces are received, and then the end of the stream."""

    def __init__(self, arriving):
        self.arriving = list(arriving)

    def recv(self, size):
        """Return at most ``size`` bytes of the next piece."""
        if not self.arriving:
            return b""
        piece = self.arriving.pop(0)
        if len(piece) > size:
            self.arriving.insert(0, piece[size:])
        return piece[:size]


def lines_of(text, limit):
    """Split a text in the plain way; return the lines, and whether one is too long."""
    *lines, last = text.split(b"\n")
    found = []
    for line in [line.removesuffix(b"\r") for line in lines] + [last] * bool(last):
        if len(line) > limit:
            return found, True
        found.append(line)
    return found, False


@FUZZ
@given(pieces(), st.integers(1, 40), st.booleans())
def test_lines_are_those_of_the_text_however_it_is_cut(text_and_pieces, limit, ended_by_client):
    """A last line without an end counts if the client has ended the stream; a line above the limit ends it."""
    text, arriving = text_and_pieces
    handler = object.__new__(LineHandler)
    handler.max_line = limit
    handler.request = Stream(arriving)
    handler.server = SimpleNamespace(idle_timeout=None)
    sent, seen = [], []
    handler.send = sent.append
    handler.client = SimpleNamespace(reason=None, _has_ended_its_stream=lambda: ended_by_client)
    handler.process = lambda line: seen.append(line) or b"<" + line + b">"
    expected, too_long = lines_of(text, limit)
    try:
        handler.handle()
    except LineTooLong:
        assert too_long
    else:
        if not ended_by_client and not text.endswith(b"\n"):
            last = text.rpartition(b"\n")[2]
            expected = expected[:len(expected) - bool(last)] if not too_long else expected
            assert not too_long or len(last) <= limit + 1  # nobody has seen that it is longer
        else:
            assert not too_long
    assert seen == expected
    assert b"".join(sent) == b"".join(b"<%s>\n" % line for line in expected)


@FUZZ
@given(pieces(), st.lists(st.one_of(st.integers(0, 20), st.sampled_from([b"\n", b"\r\n", b"--", b"x--"])), max_size=20))
def test_messages_follow_each_other_without_a_byte_lost(text_and_pieces, wanted):
    """Of a length or up to a separator, in any order, they are what slicing the text gives."""
    text, arriving = text_and_pieces
    receiver, stream = Receiver(threading.Lock()), Stream(arriving)
    for what in wanted:
        try:
            if isinstance(what, int):
                message = receiver.exactly(stream, what, None)
                assert len(message) == what
            else:
                message = receiver.until(stream, what, 30, None)
                assert message.find(what) == len(message) - len(what) <= 30
        except EOFError:
            assert len(text) < what if isinstance(what, int) else what not in text
            return
        except LineTooLong:
            assert not 0 <= text.find(what) <= 30
            return
        assert text.startswith(message)
        text = text[len(message):]


def header_of(version, source, port):
    """Make the header that a proxy sends for a client."""
    four = source.version == 4
    if version == 1:
        return b"PROXY TCP%d %s %s %d 80\r\n" % (source.version, str(source).encode(), str(source).encode(), port)
    return v2(0x21, 0x11 if four else 0x21, source.packed * 2 + port.to_bytes(2, "big") + b"\0P")


@st.composite
def beginnings(draw):
    """Make what a connection begins with: headers, some with bytes changed or cut off, and what is none at all."""
    kind = draw(st.sampled_from(["whole", "changed", "cut", "none"]))
    source = draw(st.ip_addresses())
    port = draw(st.integers(0, 65535))
    header = header_of(draw(st.sampled_from([1, 2])), source, port)
    if kind == "none":
        header = draw(st.sampled_from([b"PROXY ", header[:16], b""])) + draw(st.binary(max_size=60))
    elif kind == "changed":
        place = draw(st.integers(0, len(header) - 1))
        header = header[:place] + draw(st.binary(min_size=1, max_size=2)) + header[place + 1:]
    elif kind == "cut":
        header = header[:draw(st.integers(0, len(header) - 1))]
    return kind == "whole", header, source, port


@FUZZ
@given(beginnings(), st.binary(max_size=40))
def test_proxy_header_is_believed_or_refused_and_nothing_beyond_it_is_taken(beginning, rest):
    """Whatever it is, it ends by an address or by an error of its own, without a wait."""
    is_whole, header, source, port = beginning
    proxy, server = socket.socketpair()
    with proxy, server:
        proxy.sendall(header + rest)
        proxy.shutdown(socket.SHUT_WR)
        try:
            address = proxy_protocol.read_address(server, ("unix",), Deadline(10))
        except OSError:
            assert not is_whole
            return
        left = b"".join(iter(lambda: server.recv(4096), b""))
    if is_whole:
        mapped = source.version == 6 and source.ipv4_mapped
        assert (ipaddress.ip_address(address[0]), address[1]) == (mapped or source, port) and left == rest
    elif address is not None:
        assert isinstance(address, str) or 0 <= address[1] <= 65535 and ipaddress.ip_address(address[0])
        assert (header + rest).endswith(left)
