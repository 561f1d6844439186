"""The command's metrics: a server of their own, which Prometheus asks over HTTP."""
from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..accepting.signals import handled
from ..clients.client import Client
from ..clients.connection import means_gone
from ..observe.logs import NOTICE, about
from ..server import ThreadedTCPServer
from ..transport.listeners import resolve_name, show_address

logger = logging.getLogger("threaded_echo")


class _MetricsServer(ThreadedTCPServer):
    """Serves few clients, each for a moment, and says nothing of them: their numbers would be taken for clients'."""

    max_clients = 16
    lifetime = 30.0
    drain_timeout = 1.0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a scrape that has failed."""
        error = sys.exc_info()[1]
        if means_gone(error):
            logger.debug("a scrape of the metrics was broken off: %s", error, extra=about(None, "metrics"))
        else:  # a collector of the handler's own module may raise anything
            self._threaded_state.logs.log(self.logs_per_client, "failed scrapes", logging.ERROR,
                                          "a scrape of the metrics has failed", exc_info=error,
                                          extra=about(None, "metrics"))

    def _threaded_tell_disconnected(self, client: Client) -> None:
        """Say nothing."""


@contextmanager
def serve_metrics(server: Any, host: str, port: int) -> Iterator[None]:
    """Serve the metrics of a server, and whatever else is in prometheus_client's own registry, until the block ends.

    Raises ImportError, which says how to install it, without the package prometheus-client; ValueError if the names of
    the metrics are taken; and OSError or UnicodeError if it cannot listen there.
    """
    from ..observe.metrics import ServerCollector  # only who asks for it needs the package
    from prometheus_client import REGISTRY, MetricsHandler

    collector = ServerCollector(server)
    REGISTRY.register(collector)
    try:
        addresses = list(dict.fromkeys(resolve_name(host, port)))
        metrics = _MetricsServer(addresses, MetricsHandler)
        try:
            metrics.start()
            for address in metrics.server_addresses:
                logger.log(NOTICE, "metrics on http://%s/metrics", show_address(address), extra=about(None, "metrics"))
            yield
        finally:
            with handled(lambda number: None):  # a signal must not leave it behind; it takes a moment only
                metrics.stop()
    finally:
        REGISTRY.unregister(collector)
