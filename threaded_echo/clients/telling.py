"""What the log tells of a client's coming and going, if somebody wants to know."""
from __future__ import annotations

import logging

from ..observe.logs import about
from ..transport.listeners import show_address
from .client import Client

logger = logging.getLogger("threaded_echo")


def tell_connected(client: Client) -> None:
    """Log that a client has connected, once, and have it logged when it has gone; nothing if nobody listens."""
    if logger.isEnabledFor(logging.INFO) and not client._told:
        client._told = True
        logger.info("client %d connected%s", client.number, client.address and f" from {show_address(client.address)}",
                    extra=about(client, "connected"))


def tell_disconnected(client: Client) -> None:
    """Log that a client has gone."""
    logger.info("client %d disconnected", client.number, extra=about(client, "disconnected"))
