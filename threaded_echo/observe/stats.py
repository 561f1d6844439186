"""A server's counts, at one moment."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from .durations import Durations


class Counts(dict[str, int]):
    """Counts by their reason: a read-only dict, in which a reason that has not occurred is 0."""

    def __missing__(self, reason: str) -> int:
        return 0

    def _refuse(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise TypeError("these counts are read-only: dict(counts) makes a copy to change")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[Counts], tuple[dict[str, int]]]:  # copied and pickled as a whole
        return Counts, (dict(self),)


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
    - ``offload_wait``: how long the calls have waited for their turn, also those that never got it; ``offload_run``:
      how long the others have then run, until they ended or their worker was free again. Each is a histogram, with
      ``count``, ``sum`` in seconds, and ``buckets``: pairs of an upper bound in seconds, and of how many took at most
      so long. Calls inside of calls are in neither.
    - ``seconds_up``: seconds since the server first served; 0.0 before.
    - ``durations``: for how long the finished clients were connected: a histogram, too. ``None`` unless a
      `threaded_echo.observe.metrics.ServerCollector` has been made for the server; it counts from then on.
    - ``disconnected`` and ``refused_by``: the finished clients that the server has ended, and the refused ones, by
      `Client.reason`: read-only mappings, in which a reason that has not occurred is 0.
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
    offload_wait: Durations
    offload_run: Durations
    seconds_up: float
    disconnected: Counts = field(hash=False)
    refused_by: Counts = field(hash=False)
    durations: Durations | None = None
