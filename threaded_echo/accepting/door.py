"""The door: which of the waiting threads accepts the next connection.

Guarantees:

- Between `wait`, if it returns True, and `reopen`, one thread is at the door and no other gets through. So whatever
  happens there happens one client at a time.
- A thread that waits wakes for a connection, for `shut`, or at the end of its time-out, and for nothing else.
- `shut` is never missed: the waker stays readable, and ends every wait that has begun or begins later.
"""
from __future__ import annotations

import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from ..transport.waker import Waker


_ONE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)


class Door(Protocol):
    """What the threads that accept have in common."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until this thread is the one to accept. False after `shut`, or after ``timeout`` seconds."""

    def reopen(self, listener: int) -> None:
        """Let the next thread through. Called once by each thread that got through, after it has accepted.

        ``listener`` is the listening socket's descriptor by now; -1 if that is closed.
        """

    def shut(self) -> None:
        """End every wait, for good. *Thread safety*: any thread, any number of times, also a signal handler."""

    def close(self) -> None:
        """Close the descriptors, when no thread waits any more, nor will."""


class EpollDoor:
    """Idle threads wait in one epoll object, and the kernel lets one of them through for each connection.

    The listener is registered with ``EPOLLONESHOT`` (epoll_ctl(2)): after it has woken one thread, it wakes none
    until `reopen`, which lets the next thread through at once if a connection is pending already. Nothing is handed
    over between threads. In practice the thread that came last is let through first, while its stack is warm.
    """

    def __init__(self, listener: int) -> None:
        self._listener = listener
        self._is_shut = False
        self._waker = Waker()
        self._epoll = select.epoll()
        try:
            self._epoll.register(self._waker.fileno(), select.EPOLLIN)
            self._epoll.register(listener, _ONE)
        except BaseException:  # a signal handler has closed the listener
            self.close()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """As `Door.wait`."""
        # One event at a time: a thread that got both could take the listener's and lose the waker's.
        for descriptor, _ in self._epoll.poll(timeout, 1):
            return descriptor == self._listener and not self._is_shut
        return False

    def reopen(self, listener: int) -> None:
        """As `Door.reopen`."""
        if listener == self._listener:
            try:
                self._epoll.modify(listener, _ONE)
            except FileNotFoundError:  # the program has replaced it by one with the same descriptor
                with suppress(OSError):  # as below
                    self._epoll.register(listener, _ONE)
            except OSError:  # another thread has just closed it: no client is accepted until a stop
                pass
        elif listener >= 0:  # the program has replaced it
            with suppress(OSError):  # the old one is closed, which has taken it out
                self._epoll.unregister(self._listener)
            self._listener = listener
            self._epoll.register(listener, _ONE)

    def shut(self) -> None:
        """As `Door.shut`."""
        self._is_shut = True
        self._waker.set()

    def close(self) -> None:
        """As `Door.close`."""
        self._epoll.close()
        self._waker.close()


class EpollDoorOfSeveral(EpollDoor):
    """The same for several listeners, which are in an epoll object of their own, level-triggered.

    That one is what the outer one watches: it is readable while any listener is, and lets one thread through.
    """

    def __init__(self, listener: int, others: Sequence[int]) -> None:
        self._inner = select.epoll()
        self._first = listener
        for descriptor in (listener, *others):
            self._inner.register(descriptor, select.EPOLLIN)
        super().__init__(self._inner.fileno())

    def reopen(self, listener: int) -> None:
        """As `Door.reopen`; ``listener`` is the first one."""
        if listener >= 0:
            if listener != self._first:
                with suppress(OSError):  # it is closed, which has taken it out
                    self._inner.unregister(self._first)
                self._first = listener
            with suppress(FileExistsError):  # it is there, in most cases
                self._inner.register(listener, select.EPOLLIN)
        super().reopen(self._inner.fileno())

    def close(self) -> None:
        """As `Door.close`."""
        super().close()
        self._inner.close()


class PollDoor:
    """One thread polls the listeners; the others wait for their turn. For platforms without epoll."""

    def __init__(self, listener: int, others: Sequence[int] = ()) -> None:
        self._listener = listener
        self._others = list(others)
        self._is_shut = False
        self._waker = Waker()
        self._is_taken = False  # from wait to reopen; guarded by the condition's lock
        # Not a lock that is held from wait to reopen: if the thread that has it is interrupted and never reopens, the
        # others would wait for ever, and `shut` could not end that. The condition's own lock is re-entrant, since a
        # signal handler may call `shut`.
        self._turn = threading.Condition(threading.RLock())
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._waker.fileno(), select.POLLIN)
            try:
                for descriptor in (listener, *others):
                    self._poll.register(descriptor, select.POLLIN)
            except BaseException:  # a signal handler has closed the listener
                self.close()
                raise

    def wait(self, timeout: float | None = None) -> bool:
        """As `Door.wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._turn:
            if not self._turn.wait_for(lambda: self._is_shut or not self._is_taken, timeout) or self._is_shut:
                return False
            self._is_taken = True
        gets_through = False
        try:
            remaining = None if deadline is None else max(0, deadline - time.monotonic())
            gets_through = self._is_ready(remaining) and not self._is_shut
        finally:
            if not gets_through:
                self._pass_on()
        return gets_through

    def _pass_on(self) -> None:
        """Let the next thread take its turn."""
        with self._turn:
            self._is_taken = False
            self._turn.notify()

    def _is_ready(self, timeout: float | None) -> bool:
        """Return whether a listener has a connection."""
        if self._poll is not None:
            ready = self._poll.poll(None if timeout is None else timeout * 1000)
            for descriptor, event in ready:
                if event & select.POLLNVAL and descriptor in self._others:  # the program has closed it
                    self._others.remove(descriptor)
                    self._poll.unregister(descriptor)
            return any(descriptor != self._waker.fileno() for descriptor, _ in ready)
        try:  # Windows
            ready_to_read = select.select([self._listener, *self._others, self._waker.fileno()], [], [], timeout)[0]
            return any(descriptor != self._waker.fileno() for descriptor in ready_to_read)
        except (OSError, ValueError):  # the listener is closed, as accepting will find
            return True

    def reopen(self, listener: int) -> None:
        """As `Door.reopen`."""
        if listener != self._listener and listener >= 0:  # the program has replaced it
            if self._poll is not None:
                self._poll.unregister(self._listener)
                self._poll.register(listener, select.POLLIN)
            self._listener = listener
        self._pass_on()

    def shut(self) -> None:
        """As `Door.shut`."""
        self._is_shut = True
        self._waker.set()
        with self._turn:
            self._turn.notify_all()

    def close(self) -> None:
        """As `Door.close`."""
        self._waker.close()


def make_door(listener: int, others: Sequence[int] = ()) -> Door:
    """Make the best door that the platform has, for the descriptors of listening sockets, most often of one."""
    if not hasattr(select, "epoll"):
        return PollDoor(listener, others)
    return EpollDoorOfSeveral(listener, others) if others else EpollDoor(listener)
