"""What the kernel knows of a TCP connection: its bytes and its idle time.

The kernel keeps these counts anyway, so that numbers for people cost the read-write loop nothing. The layout is that of
``struct tcp_info`` in Linux's ``include/uapi/linux/tcp.h``; fields are only ever added at its end.
"""
from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

# The state byte, last_data_sent, last_data_recv and last_ack_recv (ms), bytes_acked, bytes_received, notsent_bytes,
# bytes_sent and bytes_retrans.
_LAYOUT = struct.Struct("=B 43x I 4x II 60x QQ 8x I 52x QQ")

# States in which the peer's end of stream has arrived, which the kernel counts as one more byte received
# (include/net/tcp_states.h): TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
_PEER_HAS_FINISHED = frozenset((6, 8, 9, 11))
_CLOSE_WAIT = 8


class Traffic(NamedTuple):
    """What has passed over one connection."""

    received: int
    """Bytes that the peer sent; with TLS, those of its records."""
    sent: int
    """Bytes handed to the kernel for the peer, whether they have arrived yet or not."""
    idle: float
    """Seconds since a byte passed in either direction."""


def read_traffic(connection: object) -> Traffic | None:
    """Read a connection's traffic from the kernel.

    Returns ``None`` if it is no TCP socket, or is closed already, or if the platform does not have this structure.
    """
    if sys.platform != "linux" or not isinstance(connection, socket.socket):
        return None
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
        # The kernel reads the state ahead of the counts, and does not lock the connection for it: an end of stream that
        # arrives in between is counted as a byte. So read again until the state is the same twice.
        while raw[0] not in _PEER_HAS_FINISHED:
            before = raw
            raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
            if raw[0] == before[0]:
                raw = before
                break
    except OSError:  # not TCP, or closed in the meantime
        return None
    if len(raw) < _LAYOUT.size:  # a kernel before 4.19
        return None
    state, sent_ago, received_ago, _, _, received, unsent, sent, resent = _LAYOUT.unpack(raw)
    if state in _PEER_HAS_FINISHED and received:
        received -= 1
    return Traffic(received, sent - resent + unsent, min(sent_ago, received_ago) / 1000)


def has_ended_its_stream(connection: object) -> bool:
    """Return whether the peer has ended its stream, and this side has not; False if the platform cannot tell."""
    if sys.platform != "linux" or not isinstance(connection, socket.socket):
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT
    except OSError:  # not TCP, or closed in the meantime
        return False


def read_stall(connection: socket.socket) -> float | None:
    """Return for how many seconds the peer has taken nothing, at least; also after the end of the connection.

    Returns ``None`` if it has taken all that was sent to it, or if the platform cannot tell. Raises OSError if it is no
    TCP socket, or is closed already.
    """
    if sys.platform != "linux":
        return None
    raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
    if len(raw) < _LAYOUT.size:  # a kernel before 4.19
        return None
    _, sent_ago, _, acknowledged_ago, taken, _, unsent, sent, resent = _LAYOUT.unpack(raw)
    if not unsent and sent - resent <= taken:
        return None
    # To a peer that has no room nothing is sent, and one that has vanished acknowledges nothing.
    return float(max(sent_ago, acknowledged_ago) / 1000)
