"""A server's counts for Prometheus. Needs the package ``prometheus-client`` (the extra ``metrics``).

A scrape takes one snapshot of each server, so that the counts of its clients in it are of the same moment; those of
threads and of offloaded calls, and the bytes of live clients, are read right after that. The server does nothing for it
between two scrapes, except that it records how long each client was connected.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from .durations import Durations
from .stats import ServerStats

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as error:
    raise ImportError("threaded_echo.observe.metrics needs the package prometheus-client (the extra \"metrics\"): "
                      "python3 -m pip install prometheus-client") from error

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_Family = TypeVar("_Family", GaugeMetricFamily, CounterMetricFamily, HistogramMetricFamily)

# The reasons that a server gives by itself. They are there from the first scrape on, with 0: a series that begins with
# 1 shows no increase. Others are added as they occur.
_DISCONNECTED = ("disconnect", "idle", "lifetime", "send", "stop", "thread")
_REFUSED = ("handshake", "host limit", "limit", "verify")


class ServerCollector:
    """Collects the counts of a server for ``prometheus_client``: ``REGISTRY.register(ServerCollector(server))``.

    ``servers``: a server that is built on `threaded_echo.ThreadedMixIn`; or, for several in one registry, a mapping of
    names to servers, and each sample then has its server's name in the label ``server``. The mapping is read at each
    scrape, so that servers may be added to it, and removed. ``namespace``: what the names of the metrics begin with.
    Raises TypeError for another kind of server, and ValueError for a namespace that no metric's name can begin with.

    A server may serve, stop and serve again, before and after this is made; its counters never go down. A registry
    keeps the server alive, until ``REGISTRY.unregister(collector)``. *Thread safety*: any thread, several scrapes at
    once included. A scrape blocks nobody, and costs what ``stats()`` does: about 2 µs for each live client.
    """

    def __init__(self, servers: Any, namespace: str = "threaded_echo") -> None:
        if not re.fullmatch("[a-zA-Z_:][a-zA-Z0-9_:]*", namespace):
            raise ValueError(f"namespace must be letters, digits and underscores, not {namespace!r}")
        self._servers: Mapping[str, Any] = servers if isinstance(servers, Mapping) else {"": servers}
        self._labels = ["server"] if isinstance(servers, Mapping) else []
        self._namespace = namespace
        for server in list(self._servers.values()):
            _measure(server)

    def describe(self) -> list[Metric]:
        """Return the metrics without their samples: what a registry asks for when this is registered."""
        return list(_Families(self._namespace, self._labels))

    def collect(self) -> list[Metric]:
        """Return the metrics, of this moment."""
        families = _Families(self._namespace, self._labels)
        for name, server in dict(self._servers).items():
            families.add([str(name)] if self._labels else [], _measure(server))
        return list(families)


def _measure(server: Any) -> ServerStats:
    measure = getattr(server, "_threaded_measure", None)
    if measure is None:
        raise TypeError(f"ServerCollector needs a server built on threaded_echo.ThreadedMixIn, not {server!r}")
    found: ServerStats = measure()
    return found


class _Families:
    """The metrics of one scrape."""

    def __init__(self, namespace: str, labels: list[str]) -> None:
        self._namespace = namespace
        self._labels = labels
        self._made: list[Metric] = []
        self._clients = self._gauge("clients", "Clients that are connected.")
        self._peak = self._gauge("clients_peak", "The most clients that were connected at once.")
        self._accepted = self._counter("connections_total", "Connections accepted, those refused included.")
        self._finished = self._counter("finished_total", "Clients that have come and gone.")
        self._failures = self._counter("failures_total", "Clients whose handler has raised an exception, or could not "
                                       "start.")
        self._disconnects = self._counter("disconnects_total", "Clients that the server has ended, by reason.",
                                          "reason")
        self._refused = self._counter("refused_total", "Connections turned away before a handler, by reason.",
                                      "reason")
        self._accept_errors = self._counter("accept_errors_total", "Failed accepts.")
        self._received = self._counter("received_bytes_total", "Bytes received from clients, as the kernel counts "
                                       "them; with TLS, of its records.")
        self._sent = self._counter("sent_bytes_total", "Bytes sent to clients, as the kernel counts them; with TLS, of "
                                   "its records.")
        self._durations = self._histogram("connection_duration_seconds", "How long the clients that have gone were "
                                          "connected.")
        self._threads = self._gauge("threads", "Handler threads: busy with a client, or idle.", "state")
        self._offloads = self._gauge("offloads", "Offloaded calls: running, or waiting for their turn.", "state")
        self._done = self._counter("offloads_done_total", "Offloaded calls that have returned.")
        self._failed = self._counter("offloads_failed_total", "Offloaded calls that have raised or were cancelled.")
        self._waits = self._histogram("offload_wait_seconds", "How long offloaded calls have waited for their turn.")
        self._runs = self._histogram("offload_run_seconds", "How long offloaded calls have run.")
        self._uptime = self._gauge("uptime_seconds", "Seconds since the server first served; 0 before.")

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._made)

    def add(self, labels: list[str], stats: ServerStats) -> None:
        """Add the samples of one server."""
        for family, value in ((self._clients, stats.live), (self._peak, stats.peak), (self._accepted, stats.accepted),
                              (self._finished, stats.finished), (self._failures, stats.failed),
                              (self._accept_errors, stats.accept_errors), (self._received, stats.bytes_received),
                              (self._sent, stats.bytes_sent), (self._done, stats.offloads_done),
                              (self._failed, stats.offloads_failed), (self._uptime, stats.seconds_up)):
            if value is not None:  # the platform cannot tell
                family.add_metric(labels, value)
        for family, values in (
                (self._disconnects, dict.fromkeys(_DISCONNECTED, 0) | stats.disconnected),
                (self._refused, dict.fromkeys(_REFUSED, 0) | stats.refused_by),
                (self._threads, {"busy": stats.threads_busy, "idle": stats.threads_idle}),
                (self._offloads, {"running": stats.offloads_running, "waiting": stats.offloads_waiting})):
            for word, value in values.items():
                family.add_metric([*labels, word], value)
        for histogram, found in ((self._durations, stats.durations), (self._waits, stats.offload_wait),
                                 (self._runs, stats.offload_run)):
            assert found is not None  # each was measured
            histogram.add_metric(labels, _buckets(found), found.sum)

    def _gauge(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return self._keep(GaugeMetricFamily(f"{self._namespace}_{name}", text, labels=[*self._labels, *labels]))

    def _counter(self, name: str, text: str, *labels: str) -> CounterMetricFamily:
        return self._keep(CounterMetricFamily(f"{self._namespace}_{name}", text, labels=[*self._labels, *labels]))

    def _histogram(self, name: str, text: str) -> HistogramMetricFamily:
        return self._keep(HistogramMetricFamily(f"{self._namespace}_{name}", text, labels=self._labels))

    def _keep(self, family: _Family) -> _Family:
        self._made.append(family)
        return family


def _buckets(found: Durations) -> list[tuple[str, float]]:
    return [("+Inf" if math.isinf(bound) else str(bound), count) for bound, count in found.buckets]
