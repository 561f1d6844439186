"""A server's counts, at one moment."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server has done so far, and what it is doing. ``accepted == live + finished + refused``.

    - ``accepted``: connections accepted, which is also the last number given; ``refused``: those of them that were
      turned away before a handler; ``live``: clients now; ``peak``: the most at once; ``finished``: clients that have
      come and gone; ``failed``: those of them whose handler has raised an exception, or could not start.
    - ``accept_errors``: failed accepts, whether tried again or not.
    - ``bytes_received`` and ``bytes_sent``: of all clients; ``None`` if the platform cannot tell.
    - ``threads_busy`` and ``threads_idle``: handler threads that serve a client, and that wait for one.
    - ``offloads_running`` and ``offloads_waiting``: calls that have begun, and that wait for a worker or for their
      turn; ``offloads_done`` and ``offloads_failed``: calls that have returned, and that have raised or were cancelled.
    - ``seconds_up``: seconds since the server first served; 0.0 before.
    """

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
