"""One offloaded call: its function, who waits for it, and for how long."""
from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..clients.client import Client
from ..clients.period import Period
from ..observe.logs import about

logger = logging.getLogger("threaded_echo")

SLOW, LEFT = "slow calls", "calls that run on"
"""The kinds of records about calls, which are bounded."""

AHEAD = 4
"""The most items of an iteration that a worker has yielded and the handler has not used yet."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a worker may take to close a generator that nobody wants to go on, until it is killed or left."""

WAITING, ENDED = "has not ended after", "has taken"
"""What is said of a slow call: while its caller waits, or at its end."""


def _log(kind: str, level: int, message: str, *arguments: object, **keywords: Any) -> None:
    """Log without a bound."""
    logger.log(level, message, *arguments, **keywords)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a server's options say about one call. ``None`` stands for no limit."""

    timeout: float | None = None
    """Seconds from the call until its caller gets TimeoutError."""
    slow: float | None = None
    """Seconds from the call until it is logged as slow."""
    per_host: int | None = None
    """So many calls of one host run at once."""
    log: Callable[..., None] = _log
    """Logs a record of a kind: ``log(kind, level, message, *arguments, **keywords)``."""


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class OffloadedCall:
    """A call that is running or waiting, as ``server.offloads()`` shows it. ``str()`` of it is for people.

    - ``function``: its name, with its module.
    - ``client``: the `Client` whose handler has made it; ``None`` if it is the program's own.
    - ``seconds``: since it was made.
    - ``state``: ``"waiting"`` for its turn, or ``"running"``.
    """

    function: str
    client: Client | None
    seconds: float
    state: str

    def __str__(self) -> str:
        return f"{_name_caller(self.client)}: {self.function} {self.state}, {self.seconds:.3f} s"


class CallerLeft(Exception):
    """Raised where a worker process is waited for if the caller waits no longer, while the call goes on.

    ``is_connected``: whether its client still is; if so, the caller leaves because its time is up.
    """

    def __init__(self, is_connected: bool) -> None:
        self.is_connected = is_connected


@dataclass(eq=False, slots=True)
class Call:
    """A function to call, the client that waits for it, and the period in which it was called."""

    period: Period
    client: Client | None
    """The client whose handler waits for it, as long as the client is connected."""
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    unpinned: Callable[[], AbstractContextManager[object]]
    """Makes a context in which the calling thread may run on every processor."""
    terms: Terms = NO_TERMS
    made: float = field(default_factory=time.monotonic)
    is_told: bool = False
    """Whether it was logged that it is slow."""

    @property
    def name(self) -> str:
        """The function's name for people."""
        return name_of(self.function)

    @property
    def who(self) -> str:
        """Who has made the call, for the log."""
        return _name_caller(self.client)

    def describe(self, is_running: bool) -> OffloadedCall:
        """Describe the call as it is now."""
        return OffloadedCall(self.name, self.client, time.monotonic() - self.made,
                             "running" if is_running else "waiting")

    def seconds_left(self) -> float | None:
        """Return the seconds for which the caller has nothing to do but to wait; ``None``: for ever."""
        terms = self.terms
        times = [seconds for seconds in (None if self.is_told else terms.slow, terms.timeout) if seconds is not None]
        return self.made + min(times) - time.monotonic() if times else None

    def time_left(self) -> float | None:
        """Return the seconds until the call is late; ``None``: never."""
        timeout = self.terms.timeout
        return None if timeout is None else max(0, self.made + timeout - time.monotonic())

    def is_late(self) -> bool:
        """Return whether the call has taken all the time that it may."""
        timeout = self.terms.timeout
        return timeout is not None and time.monotonic() - self.made >= timeout

    def check(self, is_connected: bool = True) -> None:
        """Raise TimeoutError if the call is late, or ConnectionAbortedError if its client has gone. Log if it is slow.

        A client that a stop has cut does not count as gone.
        """
        self.tell_if_slow(WAITING)
        if self.is_late():
            raise TimeoutError(f"{self.name} has not returned within {self.terms.timeout:g} s")
        if not is_connected and not self.period.forced:
            raise ConnectionAbortedError("the client of this call has gone")

    def tell_if_slow(self, what: str) -> None:
        """Log once that the call is slow, if it is."""
        slow = self.terms.slow
        if slow is None or self.is_told:
            return
        seconds = time.monotonic() - self.made
        if seconds >= slow:
            self.is_told = True
            self.terms.log(SLOW, logging.WARNING, "%s: %s %s %.3f s", self.who, self.name, what, seconds,
                           extra=about(self.client, "slow"))

    def tell_that_it_runs_on(self) -> None:
        """Log that the function runs on after its time, as nothing can end it there."""
        self.terms.log(LEFT, logging.WARNING, "%s: %s runs on after its %g s: only a worker process can be ended",
                       self.who, self.name, self.terms.timeout, extra=about(self.client, "overrun"))


def _name_caller(client: Client | None) -> str:
    return "a call of the program's own" if client is None else f"client {client.number}"


def name_of(function: Any) -> str:
    """Return a function's name for people: with its module; of a `functools.partial`, that of what it calls."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        name, module = function.__qualname__, function.__module__
    except Exception:  # it has none, or it stands for an object elsewhere, whose attributes are asked for there
        name = None
    if not isinstance(name, str):
        name, module = type(function).__qualname__, type(function).__module__  # not its repr, which may fail
    return f"{module}.{name}" if module else name
