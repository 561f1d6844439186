"""How many clients each host has."""
from __future__ import annotations

from collections.abc import Hashable

from ..clients.client import Client
from ..clients.registry import HandlerRegistry
from ..transport.hosts import host_of


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
