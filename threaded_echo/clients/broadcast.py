"""Sending to all clients, without waiting for any of them.

A broadcast offers its message to each client in turn: the kernel takes it at once, or as much as there is room for.
What is left waits in the queue of that client (`Backlog`), and one thread of the server, the *sender*, sends the queues
on as there is room. The handlers' threads cannot do that: each is receiving, or computing, or does something else that
the program wants. A thread for each slow client would be as many threads again.

Guarantees:

- `Broadcasts.send_to_all` waits for no client, and for no lock that is held while somebody waits for one. It may be
  called from any thread, and from a signal handler.
- What one thread sends to one client arrives in the order in which it was sent, by whatever way. A message is never
  mixed with another one, nor followed by anything if it could be sent only in part: see `connection`. A handler that
  sends while something is queued for its client sends that first, in its own thread.
- At most `MOST_WAITING` bytes wait for one client, or one message, whatever its length. A client for which more would
  wait is cut, and so is one that takes nothing of it for ``send_timeout`` seconds. The queues share the messages: one
  that waits for a thousand clients is kept once.
- Each queue is known to the sender, or its client has ended. The sender runs no code of the program's, and never waits
  for anything but room.
- The sender is started when something has to wait for the first time, and ends when nothing has waited for `STAY`
  seconds. A server that does not use it has no thread and no descriptor for it.
- In a stop, the queues are sent on while it drains; when the connections have been cut, nothing is queued any more.
  Handlers that end with something in their client's queue send it first: see ``Client._finish_sending``.

Order of locks: a client is shown to the sender with the server's lock held, as the sender decides with it held that it
ends. That lock is taken with no other one held.
"""
from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from ..transport.kernel_timeouts import KernelTimeouts, has_stalled
from ..transport.waker import Waker
from .backlog import Offer
from .client import Client
from .threads import HandlerThreads

STAY = 10.0
"""Seconds for which the sender waits for something to do before it ends."""

PAUSE = 0.02
"""Seconds until a client is tried again that has room, and to which another thread is sending."""

Excluded = int | Client | Iterable[int | Client]


class Broadcasts:
    """What one server sends to all of its clients."""

    def __init__(self, threads: HandlerThreads, timeouts: KernelTimeouts) -> None:
        self._threads = threads
        self._registry = threads.registry
        self.lock = threads.registry.lock
        self.timeouts = timeouts
        self.sender: Sender | None = None  # guarded by the lock
        self.clock: Callable[[], float] = time.monotonic

    def send_to_all(self, data: object, exclude: Excluded = ()) -> tuple[int, ...]:
        """Send ``data`` to every live client but some; return the numbers of those that cannot be reached."""
        message, excluded = _message(data), _excluded(exclude)
        missed: list[int] = []
        busy: list[Client] = []  # their turn comes again: in most cases somebody has sent a short message just then
        for client in self._registry.clients() if message else ():
            if excluded and (client in excluded or client.number in excluded):
                continue
            outcome = client._offer(message, queues=False)
            if outcome is Offer.SENT:
                continue
            if outcome is Offer.BUSY:
                busy.append(client)
            elif not self._follow(client, outcome):
                missed.append(client.number)
        for client in busy:
            outcome = client._offer(message, queues=True)
            if outcome is not Offer.SENT and not self._follow(client, outcome):
                missed.append(client.number)
        return tuple(sorted(missed))

    def _follow(self, client: Client, outcome: Offer) -> bool:
        """See to it that what waits is sent; False if the client cannot be reached."""
        if outcome is Offer.MISSED:
            return False
        backlog = client._connection.backlog()
        if backlog is None or backlog.look_again is not None:  # somebody has sent it, or the sender knows of it
            return True
        with self.lock:
            # After that moment of a stop, nobody would end a new sender.
            sender = None if client._period.forced else self._find_locked()
            if sender is not None:
                sender.look_at(client)
                backlog.look_again = partial(sender.look_at, client)
                return True
        client._cut("send")
        return False

    def _find_locked(self) -> Sender | None:
        """Find the sender, or start it; ``None`` if there is no descriptor or no thread for it."""
        if self.sender is None:
            try:
                sender = Sender(self)
            except OSError:
                return None
            # In one step, as a signal handler may have made one; ahead of its start, so that a stop in one ends it.
            found = self.sender = self.sender or sender
            if found is not sender:
                sender.close()
                return found
            try:
                sender.start()  # with the lock held; it needs nothing but a thread that has not seen the lock yet
            except (RuntimeError, MemoryError):
                self.sender = None
                sender.close()
                return None
            self._threads.help_out(sender)
        return self.sender

    def end(self) -> None:
        """Have the sender end at once. What is still queued is dropped."""
        with self.lock:
            if self.sender is not None:
                self.sender.end_locked()
                self.sender = None


class Sender(threading.Thread):
    """Sends the queues of slow clients, as there is room."""

    def __init__(self, broadcasts: Broadcasts) -> None:
        super().__init__(name="threaded_echo sender", daemon=True)
        self._broadcasts = broadcasts
        self._since: dict[Client, float] = {}  # all clients, and since when nothing was sent; the earliest first
        self._descriptors: dict[Client, int] = {}  # of those that are waited for
        self._paused: dict[Client, float] = {}  # the others, and until when; the earliest first
        self._is_idle = False
        self._added: deque[Client] = deque()
        self._ends = False  # guarded by the lock
        self._waker = Waker()
        try:
            self._selector = selectors.DefaultSelector()
        except OSError:  # no descriptor is left
            self._waker.close()
            raise
        self._selector.register(self._waker, selectors.EVENT_READ)

    def look_at(self, client: Client) -> None:
        """Have it look at the queue of a client. *Thread safety*: any thread. Has no effect if it has ended."""
        self._added.append(client)
        self._waker.set()

    def end_locked(self) -> None:
        """Have it end."""
        self._ends = True
        self._waker.set()

    def close(self) -> None:
        """Close what it waits with."""
        self._selector.close()
        self._waker.close()

    def run(self) -> None:
        """Send, until a stop, or until there is nothing to do."""
        try:
            while self._has_work():
                while self._added:  # nobody else takes from it
                    self._go_on(self._added.popleft())
                self._is_idle = not self._wait()
        finally:
            with self._broadcasts.lock:
                if self._broadcasts.sender is self:
                    self._broadcasts.sender = None
            if not self._ends:  # it has failed, out of memory, say, and nobody would send what is queued
                for client in [*self._since, *self._added]:
                    client._cut("send")
            for client in list(self._descriptors):
                self._forget_descriptor(client)
            self.close()

    def _has_work(self) -> bool:
        """Return whether there is, or may be, something to do."""
        self._waker.clear()
        with self._broadcasts.lock:
            self._ends = self._ends or self._is_idle and not (self._added or self._since)
            if self._ends and self._broadcasts.sender is self:
                self._broadcasts.sender = None
            return not self._ends

    def _wait(self) -> bool:
        """Wait until something may be done, and do it; False if nothing has happened for as long as that may be."""
        events = self._selector.select(self._patience())
        for key, _ in events:
            if key.data is not None:  # else it is the waker
                self._go_on(key.data, has_room=True)
        now = self._broadcasts.clock()
        for client in [client for client, until in self._paused.items() if until <= now]:
            del self._paused[client]
            self._go_on(client)
        self._end_late(now)
        return bool(events)

    def _patience(self) -> float:
        """Return how long it may wait."""
        now, limit = self._broadcasts.clock(), self._broadcasts.timeouts.send_timeout
        due = [now + STAY, *list(self._paused.values())[:1]]
        if limit is not None:
            due += [since + limit for since in list(self._since.values())[:1]]
        return max(0.0, min(due) - now)

    def _go_on(self, client: Client, has_room: bool = False) -> None:
        """Send what is queued for a client as far as that goes; ``has_room``: the kernel has just said so."""
        outcome = client._go_on()
        if outcome is Offer.SENT:
            self._since.pop(client, None)
            self._paused.pop(client, None)
            self._forget_descriptor(client)
            return
        if outcome is not Offer.WAITS or client not in self._since:  # who is busy sends something else
            self._since.pop(client, None)
            self._since[client] = self._broadcasts.clock()
        if has_room and outcome is not Offer.MOVED:
            self._pause(client)
        elif client not in self._descriptors and client not in self._paused:
            self._watch(client)

    def _watch(self, client: Client) -> None:
        """Wait until the client can be sent to, by a descriptor that nobody else closes."""
        try:
            descriptor = self._descriptors[client] = client._connection.duplicate()
            self._selector.register(descriptor, selectors.EVENT_WRITE, client)
        except OSError:  # no descriptor is left, or no memory; or the handler has closed its own
            self._pause(client)

    def _pause(self, client: Client) -> None:
        """Look again a little later, not at once: there is room, and something else is in the way."""
        self._forget_descriptor(client)
        self._paused[client] = self._broadcasts.clock() + PAUSE

    def _forget_descriptor(self, client: Client) -> None:
        descriptor = self._descriptors.pop(client, None)
        if descriptor is not None:
            with suppress(KeyError):  # it could not be registered
                self._selector.unregister(descriptor)
            socket.close(descriptor)

    def _end_late(self, now: float) -> None:
        """Cut the clients that have taken nothing for too long. For TCP the kernel does, and this is a second look."""
        limit = self._broadcasts.timeouts.send_timeout
        while limit is not None and self._since:
            client, since = next(iter(self._since.items()))
            if since + limit > now:
                return
            self._go_on(client)
            if self._since.get(client) == since:
                if has_stalled(client._connection.request, limit):
                    client._cut("send")
                del self._since[client]
                self._since[client] = now  # if it was cut, it is forgotten when there is an event for it


def _message(data: object) -> bytes:
    """Return ``data`` as bytes that do not change. Raises TypeError if it is not bytes-like."""
    if type(data) is bytes:
        return data
    try:
        with memoryview(data) as view:  # type: ignore[arg-type]
            return view.tobytes()
    except TypeError:
        hint = "; encode it first" if isinstance(data, str) else ""
        raise TypeError(f"broadcast: data must be bytes-like, not {repr(data):.100}{hint}") from None


def _excluded(exclude: Excluded) -> set[int | Client]:
    """Return whom a broadcast leaves out. Raises TypeError for anything but clients and their numbers."""
    try:
        excluded = {exclude} if isinstance(exclude, (int, Client)) else set(exclude)
    except TypeError:  # it, or one of its items, is of a type that cannot be that
        wrong = {repr(exclude)}
    else:
        wrong = {repr(one) for one in excluded if not isinstance(one, (int, Client))}
    if wrong:
        raise TypeError(f"broadcast: exclude must be clients or their numbers, not {wrong.pop():.100}")
    return excluded
