"""Where a server listens: addresses as people write them, and what they mean."""
from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..observe.logs import printable


def show_address(address: Any) -> str:
    """Show an address as people write it: ``127.0.0.1:9999``, ``[::1]:9999``, a path, or ``@name`` for an abstract one.

    A peer chooses the name of its Unix socket: what is not printable in it is escaped.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return printable(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}")
    if isinstance(address, (str, bytes)):
        text = os.fsdecode(address)
        return printable(f"@{text[1:]}" if text.startswith("\0") else text)
    return printable(str(address))


def resolve_ipv6(address: Any) -> Any:
    """Return the full address, for a socket of the family AF_INET6, if the host is an IPv6 address; otherwise ``None``.

    Host names are not looked up.
    """
    if not (isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str) and ":" in address[0]):
        return None
    try:
        found = socket.getaddrinfo(address[0], address[1], family=socket.AF_INET6, type=socket.SOCK_STREAM,
                                   flags=socket.AI_NUMERICHOST)
    except (OSError, OverflowError, TypeError, UnicodeError):  # whatever is wrong with it, binding raises the error
        return None
    # The scope of fe80::1%eth0 is the fourth item, which bind takes from nowhere else.
    return found[0][4] if len(address) == 2 else address


def check_address(address: Any) -> None:
    """Raise TypeError unless an address is ``(host, port)``: the error of `bind` would not say what is wrong."""
    if not (isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], (str, bytes, bytearray))
            and hasattr(address[1], "__index__")):
        raise TypeError("server_address must be (host, port), a str and an int, or a list of such addresses: "
                        f"not {address!r}")


class Place(NamedTuple):
    """One address to listen on, as a socket is to be made for it."""

    address: Any
    family: int
    v6only: bool | None = None
    """Whether IPv4 is kept out; ``None``: as the system has it."""
    is_short: bool = False
    """Whether addresses are ``(host, port)`` there, also those of IPv6: programs that give ``""`` expect two items."""

    def prepare(self, listener: socket.socket) -> None:
        """Set what has to be set before binding."""
        if self.v6only is not None:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.v6only)

    def short(self, address: Any) -> Any:
        """Leave out what programs do not expect of an address."""
        return address[:2] if self.is_short else address


def place_of(address: Any) -> Place:
    """Say how to listen on an address: ``""`` and ``"::"`` are both IPv4 and IPv6, if the system can do that."""
    if isinstance(address, tuple) and len(address) == 2 and address[0] == "" and socket.has_dualstack_ipv6():
        return Place(("::", address[1]), socket.AF_INET6, v6only=False, is_short=True)
    resolved = resolve_ipv6(address)
    if resolved is None:
        return Place(address, socket.AF_INET)
    is_any = resolved[0] == "::" and socket.has_dualstack_ipv6()
    return Place(resolved, socket.AF_INET6, v6only=False if is_any else None)


def places_of(addresses: list[Any]) -> list[Place]:
    """Say how to listen on several addresses. IPv4 is not IPv6's where the same port is listed for IPv4, too."""
    places = [place_of(address) for address in addresses]
    ports = {place.address[1] for place in places
             if place.family == socket.AF_INET and isinstance(place.address, tuple) and len(place.address) > 1}
    return [place._replace(v6only=True) if place.v6only is False and place.address[1] in ports - {0} else place
            for place in places]


def resolve_name(host: str, port: int) -> list[Any]:
    """Return the addresses of a host to listen on: all that a name has. Raises OSError or UnicodeError.

    Of several, those are left out that this machine does not have, such as that of IPv6 in ``localhost`` without IPv6.
    """
    if host in ("", "::"):
        return [(host, port)]
    found = list(dict.fromkeys(item[4] for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    return found if len(found) == 1 else [address for address in found if _is_ours(address)] or found


def _is_ours(address: Any) -> bool:
    """Return whether this machine has an address."""
    try:
        with socket.socket(socket.AF_INET6 if len(address) == 4 else socket.AF_INET) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def plain_address(address: Any) -> Any:
    """Return an IPv4 address as such if it is one that an IPv6 socket shows as ``::ffff:192.0.2.1``."""
    if isinstance(address, tuple) and len(address) == 4:
        host = str(address[0])
        if host.startswith("::ffff:") and "." in host:
            return (host.removeprefix("::ffff:"), address[1])
    return address


def is_same_peer(one: Any, other: Any) -> bool:
    """Return whether two addresses are those of one peer, in whatever form each was given to programs."""
    one, other = plain_address(one), plain_address(other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one[:2] == other[:2]  # a scope is in the host, too
    return bool(one == other)


@contextmanager
def errors_name(address: Any) -> Iterator[None]:
    """Add the address to an OSError: "[Errno 98] Address already in use: 127.0.0.1:9999".

    The address itself is its attribute ``listener``.
    """
    try:
        yield
    except OSError as error:
        if error.strerror:
            error.strerror = f"{error.strerror}: {show_address(address)}"
        vars(error).setdefault("listener", address)
        raise
