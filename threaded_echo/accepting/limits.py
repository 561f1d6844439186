"""Who is let in: whether the door may open, and whom of those that have come in to turn away.

The thread that has got through the door asks twice: before it accepts (`look`), and before it reopens the door
(`lets_next`). If there is no room, it leaves the door as it is, *held*, and goes back to waiting at it. Whoever makes
room opens it: a client that leaves, `resume`, or an option that is assigned. A thread that finds room has it for the
next client of its loop from then on, however long that is in coming: the loop is noted as *entering*, and is counted as
a client.

Guarantees:

- A held door wakes nobody, whatever waits in the listener's queue, and nothing polls it.
- Room is never missed. The thread that holds the door makes that known to those who leave, and looks once more then.
- With ``at_limit = "wait"`` a server never has more than ``max_clients`` clients that came through its doors, however
  many loops accept at once. With ``"refuse"``, none more is served.
- While nothing limits, an accept costs a decrement, and a client that leaves one test of an attribute.
"""
from __future__ import annotations

import math
from typing import Any, Protocol

from ..clients.client import Client
from ..clients.period import Period
from ..clients.registry import HandlerRegistry
from ..options import is_live
from ..transport.hosts import host_of
from . import failures
from .descriptors import Reserve
from .hosts import HostCounts

_NEVER = math.inf  # as a number of clients: the door is not held for them
_NAMES = ("max_clients", "at_limit", "max_clients_per_host", "reserve_descriptors")


class Entrance(Protocol):
    """What a serving loop does for its door to be held."""

    stopped: bool
    period: Period

    def attach(self) -> None:
        """Keep the door from being closed."""

    def detach(self) -> None:
        """Allow that again."""

    def fileno(self) -> int:
        """Return the listener's descriptor."""

    def open_door(self) -> None:
        """Open the door."""

    def reopen(self) -> None:
        """Open the door if there is room."""

    def fail(self, error: BaseException) -> None:
        """End the loop with an error."""


class Allowance:
    """How many clients may be accepted without a look. Replaced by a new one, never raised."""

    __slots__ = ("left",)

    def __init__(self, left: int = 0) -> None:
        self.left = left


class Limits:
    """The limits of one server. *Thread safety*: any thread, also a signal handler."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self.allowance = Allowance()  # nothing limits, for so many accepts
        self.admits_all = False  # whoever has come through the door is let in
        self.pauses = 0  # for want of descriptors
        self._registry = registry
        self._reserve = Reserve()
        self._spare = Allowance()  # for so many accepts there are enough descriptors
        # Guarded by the registry's lock:
        self._changes = 0  # of the options, and of suspended
        self._suspended = False
        # The options as they were when last read. If they are not live, they are read for each client.
        self._maximum: int | None = None
        self._refuses = False
        self._per_host: int | None = None
        self._are_live = False
        self._full_at: float = _NEVER  # the door is held while there are so many clients, those that enter included
        self._held: dict[Entrance, None] = {}
        # The loops that have room for their next client, who may be on the way in, each with _changes as it was then.
        self._entering: dict[Entrance, int] = {}
        self._hosts = HostCounts(registry)

    # For the program.

    def suspend(self) -> None:
        """Let nobody in until `resume`."""
        with self._registry.lock:
            self._suspended = True
            self._changed_locked()

    def resume(self) -> None:
        """Let clients in again."""
        with self._registry.lock:
            self._suspended = False
            self._changed_locked()
        self.release()

    def look_again(self, server: Any) -> None:
        """Take the options of a server as they are now: one has been assigned."""
        with self._registry.lock:
            self._prepare_hosts_locked(None)  # the next client has them counted anew
            self._changed_locked()
        self.read(server)  # after that: of two threads that assign at once, the later one's reading holds
        self.release()

    def _changed_locked(self) -> None:
        self._changes += 1
        self.allowance, self._spare = Allowance(), Allowance()
        self._compute_locked()

    def _compute_locked(self) -> None:
        self._full_at = (0 if self._suspended else
                         _NEVER if self._maximum is None or self._refuses else self._maximum)
        self.admits_all = self._per_host is None and not self._refuses and not self._hosts.is_counting

    def read(self, server: Any) -> None:
        """Read the options, without the lock: a class may have properties of its own in their place."""
        changes = self._changes
        maximum, refuses, per_host = server.max_clients, server.at_limit == "refuse", server.max_clients_per_host
        are_live = all(is_live(server, name) for name in _NAMES)
        with self._registry.lock:
            if changes == self._changes:  # else what has been assigned meanwhile is newer
                self._maximum, self._refuses, self._per_host, self._are_live = maximum, refuses, per_host, are_live
                self._compute_locked()

    # For the thread at the door.

    def look(self, loop: Entrance, server: Any) -> bool:
        """Return whether to accept; if not, the door is held, or open again after a pause for want of descriptors."""
        changes, spare = self._changes, self._spare
        if spare.left > 0 and self._are_live and (self._full_at == _NEVER or self._entering.get(loop) == changes):
            spare.left -= 1
            return True
        if spare.left <= 0 or not self._are_live:
            self.read(server)
        if not self._enters(loop):
            return False
        if spare.left > 0:
            spare.left -= 1
        else:
            found = self._reserve.spare(server.reserve_descriptors, loop.fileno())
            if found == 0:  # files are closed without a word, so that nothing else would tell
                self.pauses += 1
                loop.period.stopping.wait(failures.BACK_OFF)
                loop.reopen()
                return False
            with self._registry.lock:
                if changes == self._changes:
                    if self._maximum is not None or self._per_host is not None or not self._are_live:
                        self._spare = Allowance(found - 1)
                    else:
                        self.allowance = Allowance(found - 1)
                        # What was noted under options that are off by now.
                        self._entering.clear()
                        self._prepare_hosts_locked(None)
        return True

    def lets_next(self, loop: Entrance) -> bool:
        """Return whether to reopen the door for the next thread, whose client has room then; if not, it is held."""
        return self._full_at == _NEVER and loop not in self._entering or self._enters(loop)

    def _enters(self, loop: Entrance) -> bool:
        """Return whether there is room for the next client of a loop, which then has it; if not, its door is held."""
        with self._registry.lock:
            self._entering.pop(loop, None)
            is_full = self._is_full_locked()
            if is_full:
                self._hold_locked(loop)
            elif self._full_at < _NEVER and not loop.stopped:  # a thread may be at the door of a loop that has ended
                self._entering[loop] = self._changes
        self.release()
        return not is_full

    def _is_full_locked(self) -> bool:
        return len(self._registry.live) + len(self._entering) >= self._full_at

    def _hold_locked(self, loop: Entrance) -> None:
        """Leave the door shut. The caller then calls `release`: the last client may have left before it could see."""
        if not loop.stopped:
            self._held[loop] = None
            self._watch_locked()

    # For whoever makes room.

    def holds(self, loop: Entrance) -> bool:
        """Return whether the door of a loop is held."""
        return loop in self._held

    def release(self) -> None:
        """Open the doors that are held, if there is room."""
        if not self._held:
            return
        with self._registry.lock:
            if self._is_full_locked():
                return
            loops = list(self._held)
            self._held.clear()
            self._watch_locked()
            for loop in loops:
                loop.attach()
        for loop in loops:  # without the lock: the program may have a fileno() of its own
            try:
                loop.open_door()
            except Exception as error:  # a broken listener: the client that leaves has nothing to do with that
                loop.fail(error)
            finally:
                loop.detach()

    def forget_locked(self, loop: Entrance) -> None:
        """Forget a loop that ends. `Loops.end` calls `release` afterwards, since it may have had room for a client."""
        self._held.pop(loop, None)
        self._entering.pop(loop, None)
        self._watch_locked()

    def _watch_locked(self) -> None:
        """Have clients that leave say so, or not: see `HandlerRegistry.remove`."""
        self._registry.when_left = self._left if self._held or self._hosts.is_counting else None

    def _left(self, client: Client) -> None:
        with self._registry.lock:
            self._hosts.uncount_locked(client)
        self.release()

    # For a client that has been accepted.

    def admit(self, request: Any, address: Any, period: Period) -> Client:
        """Number a client, and list it, or refuse it: then its ``reason`` is ``"limit"`` or ``"host limit"``.

        The options are as they were last `read`: by the caller, which has got through by `look`, in most cases.
        """
        with self._registry.lock:  # so that other loops do not list one more meanwhile
            if self._refuses and self._maximum is not None and len(self._registry.live) >= self._maximum:
                return self._registry.refuse(request, address, period, "limit")
            per_host = self._per_host
            self._prepare_hosts_locked(per_host)
            if per_host is None or self._registry.behind_proxy:  # its host becomes known later: see `admit_again`
                return self._registry.add(request, address, period)
            host = host_of(address)
            if self._hosts.count_of(host) >= per_host:
                return self._registry.refuse(request, address, period, "host limit")
            client = self._registry.add(request, address, period)
            self._hosts.count_locked(client, host)
            return client

    def admit_again(self, server: Any, client: Client) -> bool:
        """Count a live client under the address that it has by now; False if that host has its share already.

        For an address that becomes known only later, as from a proxy. The caller then refuses the client. When it
        leaves, it is taken off the host under which it was counted last.
        """
        per_host = server.max_clients_per_host
        with self._registry.lock:
            self._prepare_hosts_locked(per_host)
            self._hosts.uncount_locked(client)
            host = host_of(client.address)
            if per_host is None or client.state == "gone":
                return True
            if self._hosts.count_of(host) >= per_host:
                return False
            self._hosts.count_locked(client, host)
            if client.state == "gone":  # it may have left before it was counted
                self._hosts.uncount_locked(client)
            return True

    def _prepare_hosts_locked(self, per_host: int | None) -> None:
        """Begin to count hosts, or stop that."""
        if (per_host is not None) != self._hosts.is_counting:
            self._hosts.is_counting = per_host is not None
            self._watch_locked()  # first: who leaves from here on is either not listed any more, or is taken off
            self._hosts.begin_locked()
