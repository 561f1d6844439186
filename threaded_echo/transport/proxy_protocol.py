"""The PROXY protocol, versions 1 and 2: by a header ahead of everything else, a proxy tells whom it stands for.

The specification is HAProxy's ``doc/proxy-protocol.txt``. The header is parsed by the package ``proxy-protocol`` (the
extra ``proxy``), which is imported when a server with the option ``proxy_protocol`` begins to serve.

Guarantees:

- A header is believed only if the kernel says that it comes from one of the networks that the program trusts. A peer in
  them that sends none, or a broken one, is refused; so is a peer elsewhere that sends one.
- Not a byte more than the header is received, since TLS or the client's own data follows. From a peer elsewhere none
  is: what it sends first is only looked at.
- Every wait ends with the deadline, or with the end of the stream, as a stop makes it.
"""
from __future__ import annotations

import errno
import re
import select
import socket
import time
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from .deadline import Deadline, wait_for

if TYPE_CHECKING:
    from ..options import Network

MOST_BYTES = 4096
"""The longest header of version 2 that is taken, which may have certificates' names and the like in it."""

_V1, _V2 = b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n"
_SHORTEST = len(b"PROXY UNKNOWN\r\n")  # of both versions
_V2_START = 16  # bytes, the length of the rest among them
_V1_LONGEST = 107

# Stricter than Python's int(), by which the package reads ports: that takes "+1" and "1_0".
_V1_LINE = re.compile(rb"PROXY (UNKNOWN|UNKNOWN [^\r\n]*|TCP[46] [\da-fA-F:.]+ [\da-fA-F:.]+ \d{1,5} \d{1,5})\r\n")
# Unspecified, and TCP and UDP over IPv4 and IPv6, and both kinds of Unix sockets: others are to be rejected.
_V2_FAMILIES = frozenset((0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32))
_V2_LOCAL = 0x20  # the proxy speaks for itself, for instance to see whether the server is alive

_LONGEST_PAUSE = 0.1  # seconds between two looks at a peer that has sent a part of what may become a header


class RefusedHeader(ConnectionAbortedError):
    """What is wrong with a header, in words for the log."""


def require() -> None:
    """Import the package. Raises ImportError, which says how to install it."""
    try:
        import proxyprotocol.detect  # noqa: F401
    except ImportError as error:
        raise ImportError("the option proxy_protocol needs the package proxy-protocol: "
                          "python3 -m pip install proxy-protocol") from error


def read_address(connection: Any, networks: Sequence[Network], deadline: Deadline) -> Any:
    """Receive the header of a connection, and return the address for which its proxy stands.

    ``None`` if the proxy tells none, or if the peer is no proxy. Waits for the first bytes in either case. Raises
    RefusedHeader, or TimeoutError, if the connection is to be refused; another OSError, with an ``errno``, if the peer
    went away.
    """
    if not isinstance(connection, socket.socket):
        raise RefusedHeader(f"{connection!r} is no socket")
    if is_trusted(connection.getpeername(), networks):
        return parse(_receive_header(connection, deadline))
    _look_for_header(connection, deadline)
    return None


def is_trusted(peer: Any, networks: Sequence[Network]) -> bool:
    """Return whether a peer's address, as the kernel tells it, is in one of the networks."""
    if isinstance(peer, (str, bytes)):  # of a Unix socket
        return "unix" in networks
    try:
        address = ip_address(str(peer[0]).partition("%")[0])  # without the scope of fe80::1%eth0
    except ValueError:  # of another family
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(not isinstance(network, str) and address in network for network in networks)


def parse(header: bytes) -> Any:
    """Return the client's address in a whole header, in the form that sockets have; ``None`` if it tells none.

    Raises RefusedHeader if it is broken.
    """
    from proxyprotocol.detect import ProxyProtocolDetect

    if header.startswith(_V1):
        if not _V1_LINE.fullmatch(header):
            raise RefusedHeader(f"a broken header: {header!r}")
    elif header[12] == _V2_LOCAL:
        return None
    elif header[13] not in _V2_FAMILIES:
        raise RefusedHeader(f"a header with an unknown family: {header[:_V2_START]!r}")
    try:
        return _plain(ProxyProtocolDetect().unpack(header).peername)
    except Exception as error:  # ValueError, struct.error and others: whatever the package makes of wrong bytes
        raise RefusedHeader(f"a broken header: {header[:_V1_LONGEST]!r}: {error}") from error


def _plain(address: Any) -> Any:
    """Return an IPv4 address as such, if the proxy has met it on a socket for IPv6: ``::ffff:192.0.2.1``."""
    if isinstance(address, tuple) and len(address) == 4:
        mapped = IPv6Address(address[0]).ipv4_mapped  # whose text depends on the version of Python
        if mapped is not None:
            return str(mapped), address[1]
    return address


def _receive_header(connection: socket.socket, deadline: Deadline) -> bytes:
    """Receive a header, and nothing of what follows it."""
    header = b""
    while len(header) < _SHORTEST:
        try:
            header += _receive(connection, _SHORTEST - len(header), deadline)
        except RefusedHeader as error:
            if not header:  # it looked whether the server is alive, or was scanning ports
                raise ConnectionResetError(errno.ECONNRESET, str(error)) from None
            raise
        if not _may_become_header(header):
            raise RefusedHeader(f"no header, but {header!r}")
    if header.startswith(_V1):
        while not header.endswith(b"\n"):
            header += _receive_line(connection, _V1_LONGEST - len(header), deadline)
        return header
    header += _receive_exactly(connection, _V2_START - len(header), deadline)
    length = int.from_bytes(header[14:16], "big")
    if length > MOST_BYTES:
        raise RefusedHeader(f"a header of {length:,} bytes")
    return header + _receive_exactly(connection, length, deadline)


def _may_become_header(start: bytes) -> bool:
    """Return whether bytes are the start of a header, as far as they go."""
    return any(start.startswith(signature[:len(start)]) for signature in (_V1, _V2))


# The methods are socket.socket's own: those of an SSLSocket would shake hands.

def _wait(connection: socket.socket, deadline: Deadline) -> None:
    if not wait_for(connection, deadline.remaining()):
        raise TimeoutError("it did not come in time")


def _receive(connection: socket.socket, size: int, deadline: Deadline) -> bytes:
    """Receive at least one byte, and at most ``size``."""
    _wait(connection, deadline)
    data = socket.socket.recv(connection, size)
    if not data:
        raise RefusedHeader("the stream has ended before it")
    return data


def _receive_exactly(connection: socket.socket, size: int, deadline: Deadline) -> bytes:
    data = b""
    while len(data) < size:
        data += _receive(connection, size - len(data), deadline)
    return data


def _receive_line(connection: socket.socket, most: int, deadline: Deadline) -> bytes:
    """Receive what there is of a line, at most up to its end."""
    if most <= 0:
        raise RefusedHeader(f"a header of more than {_V1_LONGEST} bytes")
    _wait(connection, deadline)
    start = socket.socket.recv(connection, most, socket.MSG_PEEK)
    return _receive(connection, start.find(b"\n") + 1 or max(1, len(start)), deadline)


def _look_for_header(connection: socket.socket, deadline: Deadline) -> None:
    """Wait for the first bytes, and leave them there; raise RefusedHeader if they are a header.

    Returns if the deadline passes before: the peer may be one that waits for the server's first bytes.
    """
    seconds = 0.001
    while wait_for(connection, deadline.remaining()):
        start = socket.socket.recv(connection, len(_V2), socket.MSG_PEEK)
        if not start or not _may_become_header(start):
            return
        if len(start) >= len(_V1 if start.startswith(_V1[:1]) else _V2):
            raise RefusedHeader("a header from an address that is not in proxy_protocol")
        if deadline.remaining() == 0.0 or _ends_within(connection, seconds):
            return
        seconds = min(2 * seconds, _LONGEST_PAUSE)


def _ends_within(connection: socket.socket, seconds: float) -> bool:
    """Pause, as what has come would make every wait for more return at once; True if the stream ends meanwhile."""
    if not hasattr(select, "poll"):  # Windows
        time.sleep(seconds)
        return False
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(seconds * 1000))
