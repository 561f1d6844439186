"""A handler's wait for its offloaded call: what its client's state is meanwhile, and what ends the wait."""
from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager

from ..clients.client import Client
from ..transport.waker import Waker


def wait_until_set(waker: Waker, client: Client | None) -> bool:
    """Wait until ``waker`` is set; return False if the connection of ``client`` is lost before.

    A client that has only ended its own stream still waits for its answer: its connection is not lost. On a platform
    without `select.poll`, as Windows, nothing reports a lost connection, and only the waker ends the wait.
    """
    if not hasattr(select, "poll"):
        select.select([waker], [], [])
        return True
    connection = -1 if client is None else client._connection.fileno()
    poll = select.poll()
    poll.register(waker, select.POLLIN)
    if connection >= 0:
        poll.register(connection, 0)  # no events: only an error, or the end of both directions, is reported
    return connection not in [descriptor for descriptor, _ in poll.poll()]


@contextmanager
def computing(client: Client | None) -> Iterator[None]:
    """Make a client's state ``"computing"``."""
    if client is None:
        yield
        return
    before = client.state  # "computing" already, if one call is made inside another
    client._move("computing")
    try:
        yield
    finally:
        client._move(before)
