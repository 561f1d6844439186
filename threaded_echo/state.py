"""What a server keeps, and how the mix-in comes by it without an ``__init__``."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .accepting.failures import AcceptFailures
from .accepting.farewells import Farewells
from .accepting.limits import Limits
from .accepting.loop import Loops
from .accepting.one_cpu import OneCpu
from .clients.broadcast import Broadcasts
from .clients.client import Client
from .clients.deadlines import Deadlines
from .clients.period import Period
from .clients.registry import HandlerRegistry
from .clients.threads import HandlerThreads, current_client
from .observe.logs import BoundedLog
from .observe.stats import Counts, ServerStats
from .offloading.call import Terms
from .offloading.calls import Offloads
from .options import Network, check_seconds, networks_of
from .stopping import Stopping
from .transport import proxy_protocol
from .transport.acceptor import Acceptor
from .transport.certificates import Certificates
from .transport.kernel_timeouts import KernelTimeouts


class ServerState:
    """The parts of one server."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.registry = HandlerRegistry()
        self.threads = HandlerThreads(self.registry)
        self.limits = Limits(self.registry)
        self.farewells = Farewells(self.threads)
        self.loops = Loops(self.registry)
        self.loops.when_stopped = self.farewells.end_locked
        self.one_cpu = OneCpu()
        self.offloads = Offloads(self.registry.lock, self.registry.notify_if_awaited)
        self.deadlines = Deadlines(self.registry)
        self.kernel_timeouts = KernelTimeouts()
        self.broadcasts = Broadcasts(self.threads, self.kernel_timeouts)
        self.stopping = Stopping(self.registry, self.threads, self.loops, self.offloads, self.deadlines)
        self.stopping.when_forced = self.broadcasts.end
        self.failures = AcceptFailures()
        self.acceptor: Acceptor | None = None  # for the listener, if a quick one will do
        self.certificates = Certificates()
        self.networks: tuple[Network, ...] = ()  # of the proxies that are believed
        self.logs = BoundedLog(logging.getLogger("threaded_echo"))

    @classmethod
    def of(cls, server: object) -> ServerState:
        """Find a server's state, or make it; afterwards the server's own attribute is found first.

        The methods that a program calls come here first. This also notices if the process was forked: the child's copy
        of a server knows no clients and no threads, as they are its parent's, and has fresh locks.
        """
        found: ServerState | None = vars(server).get("_threaded_state")
        if found is None:
            found = vars(server).setdefault("_threaded_state", cls())  # atomic, also without the GIL
        assert found is not None
        if found.process != os.getpid():
            found = vars(server)["_threaded_state"] = cls()
        return found

    def believe_proxies(self, server: Any) -> None:
        """Believe the proxies that the option ``proxy_protocol`` names.

        Raises TypeError or ValueError if it names no networks, and ImportError if the package for them is missing.
        """
        self.networks = networks_of("proxy_protocol", server.proxy_protocol)
        if self.networks:
            proxy_protocol.require()
        self.registry.behind_proxy = bool(self.networks)

    def offload(self, server: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``function`` in a server's executor: see ``ThreadedMixIn.offload``, whose name a program may have."""
        return self.offload_within(server, server.offload_timeout, function, args, kwargs)

    def offload_within(self, server: Any, seconds: float | None, function: Callable[..., Any], args: tuple[Any, ...],
                       kwargs: dict[str, Any]) -> Any:
        """The same with a deadline; ``None``: without one."""
        if seconds is not None:
            check_seconds("seconds", seconds)
        return self.offloads.call(*self._caller(server), function, args, kwargs, self.one_cpu.lifted,
                                  self._terms(server, seconds))

    def offload_iter(self, server: Any, function: Callable[..., Any], args: tuple[Any, ...],
                     kwargs: dict[str, Any]) -> Iterator[Any]:
        """Iterate over what ``function`` yields in a server's executor: see ``ThreadedMixIn.offload_iter``."""
        return self.offloads.iterate(*self._caller(server), function, args, kwargs, self.one_cpu.lifted,
                                     self._terms(server, server.offload_timeout))

    def _terms(self, server: Any, seconds: float | None) -> Terms:
        """Say what the options of a server mean for one call."""
        return Terms(seconds, server.slow_offload, server.max_offloads_per_host,
                     partial(self.logs.log, server.logs_per_client))

    def _caller(self, server: Any) -> tuple[Period, Client | None, Any, int | None, bool]:
        """Find who calls, where that is to run, and the limit."""
        client = current_client()
        if not self.registry.owns(client):
            client = None  # of another server, in whose handler this one is called
        period = self.stopping.period if client is None else client._period
        return period, client, server.executor, server.max_offloads, server.at_offload_limit == "refuse"

    def stats(self) -> ServerStats:
        """Take a snapshot, which is consistent but for the bytes of live clients: those are read one by one."""
        accepted, peak, live, totals = self.registry.totals()
        for client in live:
            totals.add_live(client)
        known = totals.bytes_known or not accepted
        return ServerStats(accepted, totals.refused, len(live), peak, totals.finished, totals.failed,
                           self.failures.count, totals.bytes_received if known else None,
                           totals.bytes_sent if known else None, *self.threads.count(), *self.offloads.count(),
                           *self.offloads.durations(), self.loops.seconds_up(), Counts(totals.disconnected),
                           Counts(totals.refused_by), totals.durations)
