"""A server's counts, at one moment."""
from __future__ import annotations

import time
from dataclasses import dataclass

from ..offloading.calls import Offloads
from ..clients.registry import HandlerRegistry
from ..accepting.loop import AcceptErrors, Serving
from ..clients.threads import HandlerThreads


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server has done so far, and what it is doing. ``accepted == live + finished + refused``."""

    accepted: int
    """Connections accepted, which is also the last number given."""
    refused: int
    """Of these, turned away before a handler."""
    live: int
    """Clients now."""
    peak: int
    """The most clients at once."""
    finished: int
    """Clients that have come and gone."""
    failed: int
    """Of the finished, those whose handler raised an exception, or could not start."""
    accept_errors: int
    """Failed accepts, whether tried again or not."""
    bytes_received: int | None
    """Bytes received from all clients so far; ``None`` where the platform cannot tell."""
    bytes_sent: int | None
    """Bytes sent to all clients so far; ``None`` where the platform cannot tell."""
    threads_busy: int
    """Handler threads that serve a client."""
    threads_idle: int
    """Handler threads that wait for one."""
    offloads_running: int
    """Offloaded calls that have begun; in an executor of the program's: that it has been given."""
    offloads_waiting: int
    """Offloaded calls that wait for a worker, or because of ``max_offloads``."""
    offloads_done: int
    """Offloaded calls that have returned."""
    offloads_failed: int
    """Offloaded calls that have raised, were refused, or were given up."""
    seconds_up: float
    """Seconds since it first served; 0.0 before."""


def take_stats(registry: HandlerRegistry, threads: HandlerThreads, serving: Serving,
               accept_errors: AcceptErrors, offloads: Offloads) -> ServerStats:
    """Take a snapshot, which is consistent but for the bytes of live clients: those are read one by one."""
    with registry.lock:
        clients = list(registry.live.values())
        accepted, refused, peak = registry.accepted, registry.refused, registry.peak
        finished, failed, errors = registry.finished, registry.failed, accept_errors.count
        known, received, sent = registry.bytes_known, registry.bytes_received, registry.bytes_sent
        busy, idle = threads.count()
        calls = offloads.count()
        since = serving.since
    for client in clients:
        traffic = client.traffic()
        if traffic is not None:
            known = True
            received += traffic.received
            sent += traffic.sent
    return ServerStats(accepted, refused, len(clients), peak, finished, failed, errors,
                       received if known or not accepted else None, sent if known or not accepted else None,
                       busy, idle, *calls, 0.0 if since is None else time.monotonic() - since)
