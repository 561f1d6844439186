"""What a server listens on besides its ``socket``, and how it accepts from all of it in turn."""
from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from .listeners import Place, errors_name, plain_address


class Listeners:
    """The further listeners of a server, and the form in which it shows addresses.

    An IPv4 client of a socket that serves IPv6 as well has the address that it would have on a socket for IPv4.
    """

    def __init__(self, others: Iterable[socket.socket] = (), is_short: bool = False) -> None:
        self.others = tuple(others)
        self.addresses = tuple(self._shorten(other.getsockname()) if is_short else other.getsockname()
                               for other in self.others)
        self._is_short = is_short
        self._turn = 0  # of the listener that was accepted from last; only the one thread at the door uses it

    def accept(self, first: Any) -> tuple[Any, Any]:
        """Accept from ``first`` or from another one. Raises OSError; BlockingIOError if none has a connection."""
        listener = self._next(first) if self.others else first
        request, address = listener.accept()
        return request, self.show(address)

    def show(self, address: Any) -> Any:
        """Return a peer's address in the form that programs expect."""
        address = plain_address(address)
        return self._shorten(address) if self._is_short else address

    def descriptors(self) -> list[int]:
        """Return the descriptors of the further listeners that are open."""
        return [other.fileno() for other in self.others if other.fileno() >= 0]

    def close(self) -> None:
        """Close the further listeners."""
        for other in self.others:
            other.close()

    def _next(self, first: Any) -> Any:
        """Return the next listener that has a connection. They take turns: a flood at one does not shut out the rest.
        """
        listeners = [first, *self.others]
        ready = ready_to_accept(listeners)
        for _ in listeners:
            self._turn = (self._turn + 1) % len(listeners)
            if listeners[self._turn].fileno() in ready:
                return listeners[self._turn]
        raise BlockingIOError

    @staticmethod
    def _shorten(address: Any) -> Any:
        return address[:2] if isinstance(address, tuple) and len(address) == 4 else address


def ready_to_accept(listeners: list[Any]) -> set[int]:
    """Return the descriptors of those that have a connection."""
    descriptors = [listener.fileno() for listener in listeners]
    if not hasattr(select, "poll"):  # Windows
        return set(select.select([descriptor for descriptor in descriptors if descriptor >= 0], [], [], 0)[0])
    poll = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(0)}


def bind_all(places: Iterable[Place], options: Sequence[int]) -> list[socket.socket]:
    """Bind a socket to each place, with options of SOL_SOCKET set to 1. Raises OSError, and then has closed them all.

    The error names the address.
    """
    bound: list[socket.socket] = []
    try:
        for place in places:
            with errors_name(place.address):
                listener = socket.socket(place.family)
                bound.append(listener)
                for option in options:
                    listener.setsockopt(socket.SOL_SOCKET, option, 1)
                place.prepare(listener)
                listener.bind(place.address)
    except BaseException:  # an interrupt, too, must leave no socket behind
        for listener in bound:
            listener.close()
        raise
    return bound


def listeners_of(server: Any) -> list[Any]:
    """Return all that a server listens on."""
    listeners = getattr(server, "_threaded_listeners", None)
    return [getattr(server, "socket", None), *(listeners.others if listeners is not None else ())]


def addresses_of(server: Any) -> list[Any]:
    """Return all addresses of a server."""
    listeners = getattr(server, "_threaded_listeners", None)
    return [server.server_address, *(listeners.addresses if listeners is not None else ())]


def others_of(server: Any) -> list[int]:
    """Return the descriptors of all that a server listens on besides its ``socket``."""
    listeners = getattr(server, "_threaded_listeners", None)
    return [] if listeners is None else listeners.descriptors()


def check_given(sockets: Iterable[Any]) -> list[socket.socket]:
    """Return sockets that a server can accept from. Raises TypeError or ValueError, which says what is wrong."""
    found = list(sockets)
    if not found:
        raise ValueError("no socket was given")
    for number, listener in enumerate(found, 1):
        if not isinstance(listener, socket.socket):
            raise TypeError(f"socket {number} is not a socket: {listener!r}")
        fault = fault_of(listener)
        if fault is not None:
            raise ValueError(f"socket {number} {fault}")
    return found


def fault_of(listener: socket.socket) -> str | None:
    """Say why a server cannot accept from a socket; ``None`` if it can."""
    if listener.fileno() < 0:
        return "is closed"
    if listener.type != socket.SOCK_STREAM:
        return f"is no stream socket: its type is {socket.SocketKind(listener.type).name}"
    try:
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (AttributeError, OSError):  # a platform that cannot tell
        return None
    return None if listens else "does not listen"


def is_dual_stack(listener: socket.socket) -> bool:
    """Return whether IPv4 clients may come to an IPv6 socket."""
    return (listener.family == socket.AF_INET6
            and not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
