"""The PROXY header: who may send one, how it is received and parsed, and that nothing wrong gets through."""
from __future__ import annotations

import ipaddress
import random
import select
import socket
import struct
import sys
import threading
import time

import pytest

from threaded_echo.options import networks_of
from threaded_echo.transport import proxy_protocol
from threaded_echo.transport.deadline import Deadline
from threaded_echo.transport.proxy_protocol import RefusedHeader, is_trusted, parse, read_address

from ..tools import GUARD, running, until

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TRUSTED = networks_of("proxy_protocol", "127.0.0.1")
ELSEWHERE = networks_of("proxy_protocol", "192.0.2.0/24")


def v2(command: int, family: int, rest: bytes = b"", length: int | None = None) -> bytes:
    """Make a header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


IPV4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 1234, 80)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(16) + struct.pack("!HH", 1234, 80)
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")

LONGEST = b"ffff:" * 7 + b"ffff"

HEADERS = [
    (b"PROXY TCP4 192.0.2.1 127.0.0.1 1234 80\r\n", ("192.0.2.1", 1234)),
    (b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n", ("2001:db8::1", 65535, 0, 0)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    (b"PROXY TCP6 " + LONGEST + b" " + LONGEST + b" 65535 65535\r\n", (LONGEST.decode(), 65535, 0, 0)),
    (v2(0x21, 0x11, IPV4), ("192.0.2.1", 1234)),
    (v2(0x21, 0x21, IPV6), ("2001:db8::1", 1234, 0, 0)),
    (v2(0x21, 0x31, UNIX), "/run/client"),
    (v2(0x21, 0x11, IPV4 + b"\x01\0\x02h2" + b"\x04\x10\0" + bytes(4000)), ("192.0.2.1", 1234)),
    (v2(0x21, 0x11, IPV4 + b"\x01\xff\xff"), ("192.0.2.1", 1234)),  # what is more than the address is not looked at
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1234 80\r\n", ("192.0.2.1", 1234)),
    (v2(0x21, 0x21, bytes(10) + b"\xff\xff" + IPV4[:4] + IPV6[16:]), ("192.0.2.1", 1234)),
    (v2(0x21, 0x00), None),
    (v2(0x21, 0x00, b"whatever"), None),
    (v2(0x20, 0x00), None),
    (v2(0x20, 0x11, IPV4), None),
    (v2(0x20, 0xff, b"garbage"), None),
]

BROKEN = [
    b"PROXY \r\n and more than that",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 1234\r\n",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 1234 80\n",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 +1 80\r\n",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 1_0 80\r\n",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 65536 80\r\n",
    b"PROXY TCP4 192.0.2.256 127.0.0.1 1 80\r\n",
    b"PROXY TCP4 2001:db8::1 ::1 1 80\r\n",
    b"PROXY TCP6 192.0.2.1 127.0.0.1 1 80\r\n",
    b"PROXY TCP9 192.0.2.1 127.0.0.1 1 80\r\n",
    b"PROXY  TCP4 192.0.2.1 127.0.0.1 1 80\r\n",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 1 80 \r\n",
    b"PROXY TCP4 \xd9\xa1.0.0.1 127.0.0.1 1 80\r\n",
    b"PROXY UNKNOWN " + bytes(100),
    b"PROXY UNKNOWNS\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    v2(0x11, 0x11, IPV4),
    v2(0x22, 0x11, IPV4),
    v2(0x21, 0x41, IPV4),
    v2(0x21, 0x13, IPV4),
    v2(0x21, 0x11, IPV4[:-1]),
    v2(0x21, 0x21, IPV4),
    v2(0x21, 0x31, UNIX[:-1]),
    v2(0x21, 0x31, b"\xff".ljust(216, b"\0")),
    v2(0x21, 0x11, IPV4, length=4097) + bytes(4097),
    SIGNATURE[:11] + b"x" + bytes(4),
]


@pytest.fixture
def ends():
    """Two ends of a TCP connection: the peer's, and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        ours, _ = listener.accept()
        with ours:
            yield peer, ours


def read(connection, networks=TRUSTED, seconds: float | None = GUARD):
    """Read a header."""
    return read_address(connection, networks, Deadline(seconds))


@pytest.mark.parametrize(("header", "address"), HEADERS)
def test_header_is_received_alone_and_tells_the_address(ends, header, address):
    """What follows it is left for TLS, or for the handler."""
    peer, ours = ends
    peer.sendall(header + b"PROXY data\n")
    assert read(ours) == address
    assert ours.recv(100) == b"PROXY data\n"


@pytest.mark.parametrize("header", [HEADERS[0][0], HEADERS[5][0]])
def test_header_may_come_byte_by_byte(ends, header):
    """Each byte is awaited, and only as many are received as there are."""
    peer, ours = ends
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def trickle():
        for number in range(len(header)):
            peer.sendall(header[number:number + 1])
            until(lambda: not select.select([ours], [], [], 0)[0])  # it has been received
        peer.sendall(b"data")

    with running(trickle):
        assert read(ours) == ("192.0.2.1", 1234)
    assert ours.recv(100) == b"data"


@pytest.mark.parametrize("header", BROKEN)
def test_broken_header_is_refused(ends, header):
    """Also a header that is too long, and other data."""
    peer, ours = ends
    peer.sendall(header)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(RefusedHeader):
        read(ours)


STARTS = [b"PROX", b"PROXY TCP4 192.0.2.1", v2(0x21, 0x11, IPV4)[:14], v2(0x21, 0x11, IPV4)[:20]]


@pytest.mark.parametrize("start", [b"", *STARTS])
def test_header_that_does_not_come_in_time_is_refused(ends, start):
    """So is one whose end does not come."""
    peer, ours = ends
    peer.sendall(start)
    with pytest.raises(TimeoutError):
        read(ours, seconds=0.01)


@pytest.mark.parametrize("start", STARTS)
def test_header_that_the_end_of_the_stream_cuts_short_is_refused(ends, start):
    """It was meant to become one."""
    peer, ours = ends
    peer.sendall(start)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(RefusedHeader, match="ended"):
        read(ours)


def test_proxy_that_sends_nothing_has_gone(ends):
    """An end of stream alone is no attempt at a header."""
    peer, ours = ends
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match="ended"):
        read(ours)


@pytest.mark.parametrize("header", [HEADERS[0][0], HEADERS[5][0], HEADERS[2][0], b"PROXY ", SIGNATURE])
def test_header_from_elsewhere_is_refused(ends, header):
    """It is not received, only looked at."""
    peer, ours = ends
    peer.sendall(header)
    with pytest.raises(RefusedHeader, match="not in proxy_protocol"):
        read(ours, ELSEWHERE)
    assert ours.recv(1000) == header


@pytest.mark.parametrize("data", [b"G", b"PROXIES", b"\r\n\r\n", b"\r\nhello", b"PR", b"\x16\x03\x01"])
def test_other_data_from_elsewhere_is_left_for_the_handler(ends, data):
    """That it might have become a header is waited for only until the stream ends."""
    peer, ours = ends
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    assert read(ours, ELSEWHERE) is None
    assert ours.recv(100) == data


@pytest.mark.parametrize("data", [b"", b"PROX", SIGNATURE[:5]])
def test_peer_elsewhere_that_sends_no_more_is_served_when_the_time_is_up(ends, data):
    """It may wait for the server to begin."""
    peer, ours = ends
    peer.sendall(data)
    if data:
        assert select.select([ours], [], [], GUARD)[0]
    assert read(ours, ELSEWHERE, 0.02) is None and read(ours, ELSEWHERE, 0.0) is None
    peer.sendall(b"!")
    assert ours.recv(len(data) or 1) == data or b"!"


def test_header_from_elsewhere_that_comes_in_pieces_is_refused(ends, monkeypatch):
    """The first piece alone tells nothing; the pause after it is cut short by the next look."""
    peer, ours = ends
    looked = threading.Event()
    pause = proxy_protocol._ends_within

    def note(*arguments):
        looked.set()
        return pause(*arguments)

    monkeypatch.setattr(proxy_protocol, "_ends_within", note)
    peer.sendall(b"PRO")

    def go_on():
        assert looked.wait(GUARD)
        peer.sendall(b"XY ")

    with running(go_on), pytest.raises(RefusedHeader):
        read(ours, ELSEWHERE)


def test_stop_ends_the_waits(ends):
    """It ends the receiving direction; half of what may become a header does not keep it waiting."""
    peer, ours = ends
    peer.sendall(b"PRO")
    assert select.select([ours], [], [], GUARD)[0]
    ours.shutdown(socket.SHUT_RD)
    assert read(ours, ELSEWHERE, None) is None
    with pytest.raises(RefusedHeader):
        read(ours, TRUSTED, None)


def test_platform_without_poll_pauses_by_sleeping(ends, monkeypatch):
    """As on Windows."""
    peer, ours = ends
    peer.sendall(b"PRO")
    slept = []
    monkeypatch.delattr(select, "poll")
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), peer.sendall(b"x")))
    assert read(ours, ELSEWHERE) is None and slept == [0.001]


def test_random_bytes_are_refused_or_parsed_and_never_more_than_the_header_is_received():
    """Three thousand random headers, most of them near to valid ones; a wrong one raises nothing but a refusal."""
    random_ = random.Random(2026)
    outcomes = {True: 0, False: 0}
    for _ in range(3_000):
        header = bytearray(random_.choice(HEADERS)[0][:300])
        for _ in range(random_.randrange(4)):
            header[random_.randrange(len(header))] = random_.randrange(256)
        if random_.random() < 0.2:
            del header[random_.randrange(len(header)):]
        ours, peer = socket.socketpair()
        with ours, peer:
            peer.sendall(bytes(header) + b"data")
            peer.shutdown(socket.SHUT_WR)
            try:
                address = read_address(ours, ("unix",), Deadline(GUARD))
            except RefusedHeader:
                outcomes[False] += 1
            else:
                assert address is None or isinstance(address, (tuple, str))
                rest = ours.recv(1 << 16)
                assert (bytes(header) + b"data").endswith(rest)
                outcomes[True] += 1
    assert min(outcomes.values()) > 300


@pytest.mark.parametrize(("networks", "peer", "trusted"), [
    ("10.0.0.0/8", ("10.1.2.3", 1), True),
    ("10.0.0.0/8", ("11.1.2.3", 1), False),
    ("10.0.0.0/8", ("::ffff:10.1.2.3", 1, 0, 0), True),
    ("::ffff:10.0.0.0/104", ("10.1.2.3", 1), True),
    ("::/0", ("10.1.2.3", 1), False),
    ("fe80::/10", ("fe80::1%eth0", 1, 0, 2), True),
    ("unix", ("10.1.2.3", 1), False),
    ("unix", "", True),
    ("unix", b"\0abstract", True),
    ("10.0.0.0/8", "", False),
    ("0.0.0.0/0", (2, 1), False),  # a virtual machine's socket
    (["::1", "10.0.0.0/8"], ("10.0.0.1", 1), True),
    (ipaddress.ip_network("10.0.0.0/8"), ("10.0.0.1", 1), True),
    ((ipaddress.ip_address("10.0.0.1"),), ("10.0.0.1", 1), True),
    ((), ("10.0.0.1", 1), False),
])
def test_peer_is_trusted_if_a_network_has_it(networks, peer, trusted):
    """IPv4 is the same inside of IPv6; a Unix socket's peers are trusted by a word."""
    assert is_trusted(peer, networks_of("proxy_protocol", networks)) is trusted


def test_request_that_is_no_socket_is_refused():
    """A program's get_request may return anything."""
    with pytest.raises(RefusedHeader, match="no socket"):
        read("a request")


def test_package_that_is_missing_is_named(monkeypatch):
    """The error says how to install it."""
    monkeypatch.setitem(sys.modules, "proxyprotocol.detect", None)
    with pytest.raises(ImportError, match="pip install proxy-protocol$"):
        proxy_protocol.require()


def test_what_the_package_raises_is_a_refusal(monkeypatch):
    """Whatever that is: a bug in it costs one client."""
    import proxyprotocol.detect

    class Broken:
        """Fails."""

        def unpack(self, data):
            """Fail."""
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(proxyprotocol.detect, "ProxyProtocolDetect", Broken)
    with pytest.raises(RefusedHeader, match="a bug"):
        parse(HEADERS[0][0])
