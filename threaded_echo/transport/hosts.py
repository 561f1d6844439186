"""Which host an address belongs to: what limits and turns count as one."""
from __future__ import annotations

import socket
from collections.abc import Hashable
from typing import Any

_MAPPED = bytes(10) + b"\xff\xff"  # how an IPv6 address begins that stands for one of IPv4 (RFC 4291, 2.5.5.2)


def host_of(address: Any) -> Hashable | None:
    """Return what all clients of one host have in common; ``None`` if an address names no host, as a Unix socket's.

    It is an IPv4 address, also if it comes as a mapped one, or the first 64 bits of an IPv6 address, since a host
    chooses the others as it likes.
    """
    host = address[0] if isinstance(address, tuple) and address else None
    if not isinstance(host, str):
        return host if isinstance(host, (int, bytes)) else None  # of a family such as AF_VSOCK
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:  # whatever a program's get_request returns
        return host
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))}/64"
