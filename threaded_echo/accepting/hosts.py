"""How many clients each host has."""
from __future__ import annotations

import socket
from collections.abc import Hashable
from typing import Any

from ..clients.client import Client
from ..clients.registry import HandlerRegistry

_MAPPED = bytes(10) + b"\xff\xff"  # what an IPv4 address begins with on an IPv6 socket: ::ffff:127.0.0.1


def host_of(address: Any) -> Hashable | None:
    """Return what stands for the host of an address; ``None`` if it has none, as on a Unix socket.

    An IPv6 host is its /64, since a host may take any address of that. An IPv4 host is the same on an IPv6 socket.
    """
    if not isinstance(address, tuple) or not address:
        return None
    host = address[0]
    if isinstance(host, str):
        try:
            if ":" not in host:
                return socket.inet_pton(socket.AF_INET, host)
            full = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, ValueError):  # a name that the program's get_request has made
            return host
        return full[12:] if full.startswith(_MAPPED) else full[:8]
    return host if isinstance(host, (int, bytes)) else None  # of a family that has other addresses, such as AF_VSOCK


class HostCounts:
    """The live clients of each host. All of it is guarded by the registry's lock."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self.is_counting = False
        self._registry = registry
        self._hosts: dict[Client, Hashable] = {}  # under which a client is counted, whatever its address is by now
        self._counts: dict[Hashable | None, int] = {}

    def begin_locked(self) -> None:
        """Begin anew: count the clients that are there already, if clients are to be counted."""
        self._hosts.clear()
        self._counts.clear()
        if self.is_counting:
            for client in self._registry.clients():
                self.count_locked(client, host_of(client.address))

    def count_of(self, host: Hashable | None) -> int:
        """Return how many clients a host has."""
        return self._counts.get(host, 0)

    def count_locked(self, client: Client, host: Hashable | None) -> None:
        """Count a client, if it has a host."""
        if host is not None:
            self._counts[host] = self._counts.get(host, 0) + 1
            self._hosts[client] = host

    def uncount_locked(self, client: Client) -> None:
        """Forget a client, if it is counted."""
        host = self._hosts.pop(client, None)
        if host is not None:
            count = self._counts.pop(host) - 1
            if count:
                self._counts[host] = count
