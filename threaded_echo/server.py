"""The concrete servers."""
from __future__ import annotations

import os
import socket
import socketserver
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import options
from .compatibility import NonDataProperty
from .handlers import EchoHandler
from .mixin import ThreadedMixIn
from .transport.listeners import Place, check_address, errors_name, place_of, places_of
from .transport.several import Listeners, addresses_of, bind_all, check_given, is_dual_stack, listeners_of
from .transport.unix_path import UnixPath, has_no_file

if TYPE_CHECKING:
    from typing import Self

    class _Below(socketserver.TCPServer):
        unix_mode: int | None
        _threaded_listeners: Listeners | None
else:
    _Below = object


class _Concrete:
    """Takes each option as a keyword, and sockets that listen already."""

    def __init__(self, server_address: Any, RequestHandlerClass: Any = EchoHandler, bind_and_activate: bool = True,
                 **keywords: Any) -> None:
        options.check(keywords)
        if not callable(RequestHandlerClass):
            raise TypeError(f"RequestHandlerClass must be a handler class, not {RequestHandlerClass!r}")
        vars(self).update(keywords)
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)  # type: ignore[call-arg]

    @classmethod
    def from_sockets(cls, sockets: Iterable[socket.socket], RequestHandlerClass: Any = EchoHandler,
                     **keywords: Any) -> Self:
        """Make a server of sockets that listen already, inherited or handed in; it owns and closes them.

        They may be of any families, each a stream socket. Neither ``server_bind`` nor ``server_activate`` is called.
        The file of a Unix socket is not removed. Raises TypeError or ValueError for what a server cannot accept from;
        on an error, the sockets are still the caller's.
        """
        first, *others = check_given(sockets)
        address = first.getsockname()
        server: Any = cls(address, RequestHandlerClass, False, **keywords)
        server.socket.close()  # socketserver's __init__ has made it
        server.socket, server.server_address, server.address_family = first, address, first.family
        if others or is_dual_stack(first):
            server._threaded_listeners = Listeners(others)
        made: Self = server
        return made

    @NonDataProperty
    def listeners(self) -> tuple[socket.socket, ...]:
        """All listening sockets: ``socket``, and those of further addresses."""
        return tuple(listeners_of(self))

    @NonDataProperty
    def server_addresses(self) -> tuple[Any, ...]:
        """The addresses of `listeners`, in the same order: ``server_address``, and the further ones."""
        return tuple(addresses_of(self))


class _TCPListening(_Below):
    """Binds, listens and closes at all addresses of a server. Below the mix-in, whose hooks call this."""

    _threaded_places: tuple[Place, ...] = ()

    def server_bind(self) -> None:
        """Bind a socket to each address. Raises OSError, which names the address, if that fails."""
        first, *rest = self._threaded_places or (Place(self.server_address, self.address_family),)
        with errors_name(self.server_address):
            first.prepare(self.socket)
            super().server_bind()
        self.server_address = first.short(self.server_address)
        if rest or first.v6only is False:
            wanted = [name for name, is_wanted in (("SO_REUSEADDR", self.allow_reuse_address),
                                                   ("SO_REUSEPORT", self.allow_reuse_port)) if is_wanted]
            numbers = [getattr(socket, name) for name in wanted if hasattr(socket, name)]
            is_short = any(place.is_short for place in self._threaded_places)
            self._threaded_listeners = Listeners(bind_all(rest, numbers), is_short)

    def server_activate(self) -> None:
        """Begin to listen. Raises OSError, which names the address, if that fails."""
        with errors_name(self.server_address):
            super().server_activate()
        others = self._threaded_listeners.others if self._threaded_listeners is not None else ()
        if len(others) + 1 < len(self._threaded_places):
            raise RuntimeError("a server with a server_bind of its own can listen on one address only")
        for other in others:
            with errors_name(other.getsockname()):
                other.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close all listening sockets."""
        if self._threaded_listeners is not None:
            self._threaded_listeners.close()
        super().server_close()


class ThreadedTCPServer(_Concrete, ThreadedMixIn, _TCPListening, socketserver.ThreadingTCPServer):
    """A TCP server with a thread for each client.

    `ThreadedMixIn` documents the methods and the options.

    ``server_address`` is ``(host, port)``. Port 0 picks a free port, which is then in ``server.server_address``. The
    host may be an IPv6 address; ``""`` and ``"::"`` are all addresses of the machine, of IPv4 and IPv6, and an IPv4
    client has its plain address there. (For ``""``, addresses are ``(host, port)`` also with IPv6.) A name is looked up
    for IPv4. If the class sets ``address_family`` itself, that is the only family.

    A list of such addresses has the server listen on each of them, or, on an error, on none. `server_addresses` has
    them all; ``server_address``, ``socket`` and ``fileno()`` are the first's. `from_sockets` takes sockets that listen
    already. A server with more than one cannot have a ``get_request`` of its own.

    ``RequestHandlerClass`` is any handler class written for socketserver. Keywords set the options of this server.

    Raises TypeError or ValueError, which names the option, for an unknown keyword or a wrong value; and OSError, which
    names the address, if it cannot listen there. `stop`, or leaving the ``with`` block, closes the listening sockets.
    """

    def __init__(self, server_address: Any, RequestHandlerClass: Any = EchoHandler, bind_and_activate: bool = True,
                 **keywords: Any) -> None:
        addresses = server_address if isinstance(server_address, list) else [server_address]
        if not addresses:
            raise ValueError("server_address must not be an empty list")
        owner = next(cls for cls in type(self).__mro__ if "address_family" in vars(cls))
        if owner.__module__ == "socketserver":
            if bind_and_activate:  # else it need not be an address: the program's own socket has one already
                for address in addresses:
                    check_address(address)
            places = places_of(addresses) if len(addresses) > 1 else [place_of(addresses[0])]
            self.address_family = places[0].family
        else:
            places = [Place(address, self.address_family) for address in addresses]
        self._threaded_places = tuple(places)
        super().__init__(places[0].address, RequestHandlerClass, bind_and_activate, **keywords)


class _UnixListening(_Below):
    """Takes the path of a Unix socket, and gives it up. Below the mix-in, whose hooks call this."""

    _threaded_path: UnixPath | None = None

    def server_bind(self) -> None:
        """Bind the socket to the path, and listen. Raises OSError, which names the path, if that fails."""
        address: Any = self.server_address
        with errors_name(address):
            if has_no_file(address):
                self.socket.bind(address)
            else:
                self._threaded_path = UnixPath(address)
                self._threaded_path.listen(self.socket, self.request_queue_size, self.unix_mode)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Begin to listen. Raises OSError, which names the path, if that fails."""
        with errors_name(self.server_address):
            super().server_activate()

    def server_close(self) -> None:
        """Close the listening sockets, and remove the file."""
        if self._threaded_listeners is not None:
            self._threaded_listeners.close()
        super().server_close()
        if self._threaded_path is not None:
            self._threaded_path.remove()


if hasattr(socketserver, "ThreadingUnixStreamServer"):
    class ThreadedUnixStreamServer(_Concrete, ThreadedMixIn, _UnixListening, socketserver.ThreadingUnixStreamServer):
        """A server on a Unix socket, with a thread for each client.

        `ThreadedMixIn` documents the methods and the options. ``server_address`` is a path, as str, bytes or
        `os.PathLike`, or an abstract name. A socket that is there already is replaced if nobody listens on it any more;
        if not, or if something else is there, that is an OSError. Closing the server removes the file, unless another
        server has replaced it; in a forked process it does not. ``unix_mode`` has the file's permissions.
        ``client.credentials`` tells who has connected.
        """

        def __init__(self, server_address: Any, RequestHandlerClass: Any = EchoHandler, bind_and_activate: bool = True,
                     **keywords: Any) -> None:
            if isinstance(server_address, os.PathLike):
                server_address = os.fspath(server_address)
            super().__init__(server_address, RequestHandlerClass, bind_and_activate, **keywords)
else:  # pragma: no cover - Windows, which has no Unix sockets
    class ThreadedUnixStreamServer:  # type: ignore[no-redef]
        """Not on this platform: it has no Unix sockets."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            raise NotImplementedError("this platform has no Unix sockets")


for _server_class in (ThreadedTCPServer, ThreadedUnixStreamServer):
    options.document(_server_class)
