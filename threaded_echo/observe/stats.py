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
    refused: int
    live: int
    peak: int
    finished: int
    failed: int
    accept_errors: int
    bytes_received: int | None
    bytes_sent: int | None
    threads_busy: int
    threads_idle: int
    offloads_running: int
    offloads_waiting: int
    offloads_done: int
    offloads_failed: int
    seconds_up: float
