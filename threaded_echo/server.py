"""The concrete servers."""
from __future__ import annotations

import socket
import socketserver
from typing import Any

from . import options
from .handlers import EchoHandler
from .mixin import ThreadedMixIn
from .transport.listeners import errors_name, resolve_ipv6


class _Concrete:
    """Takes each option as a keyword, and adds the address to an error of listening."""

    def __init__(self, server_address: Any, RequestHandlerClass: Any = EchoHandler, bind_and_activate: bool = True,
                 **keywords: Any) -> None:
        options.check(keywords)
        if not callable(RequestHandlerClass):
            raise TypeError(f"RequestHandlerClass must be a handler class, not {RequestHandlerClass!r}")
        vars(self).update(keywords)
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)  # type: ignore[call-arg]

    def server_bind(self) -> None:
        """Bind the socket to the address. Raises OSError, which names the address, if that fails."""
        with errors_name(self.server_address):  # type: ignore[attr-defined]
            super().server_bind()  # type: ignore[misc]

    def server_activate(self) -> None:
        """Begin to listen. Raises OSError, which names the address, if that fails."""
        with errors_name(self.server_address):  # type: ignore[attr-defined]
            super().server_activate()  # type: ignore[misc]


class ThreadedTCPServer(_Concrete, ThreadedMixIn, socketserver.ThreadingTCPServer):
    """A TCP server with a thread for each client.

    `ThreadedMixIn` documents the methods and the options.

    ``server_address`` is ``(host, port)``. Port 0 picks a free port, which is then in ``server.server_address``. The
    host may be an IPv6 address; a name is looked up for IPv4, unless the class sets ``address_family`` itself.
    ``RequestHandlerClass`` is any handler class written for socketserver. Keywords set the options of this server.

    Raises TypeError or ValueError, which names the option, for an unknown keyword or a wrong value; and OSError, which
    names the address, if it cannot listen there. `stop`, or leaving the ``with`` block, closes the listening socket.
    """

    def __init__(self, server_address: Any, RequestHandlerClass: Any = EchoHandler, bind_and_activate: bool = True,
                 **keywords: Any) -> None:
        owner = next(cls for cls in type(self).__mro__ if "address_family" in vars(cls))
        if owner.__module__ == "socketserver" and (address := resolve_ipv6(server_address)):
            self.address_family = socket.AF_INET6
            server_address = address
        super().__init__(server_address, RequestHandlerClass, bind_and_activate, **keywords)


if hasattr(socketserver, "ThreadingUnixStreamServer"):
    class ThreadedUnixStreamServer(_Concrete, ThreadedMixIn, socketserver.ThreadingUnixStreamServer):
        """A server on a Unix socket, with a thread for each client.

        `ThreadedMixIn` documents the methods and the options. ``server_address`` is a path, which must not exist yet.
        The program removes it after the server is closed, as with socketserver.
        """
else:  # pragma: no cover - Windows, which has no Unix sockets
    class ThreadedUnixStreamServer:  # type: ignore[no-redef]
        """Not on this platform: it has no Unix sockets."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            raise NotImplementedError("this platform has no Unix sockets")


for _server_class in (ThreadedTCPServer, ThreadedUnixStreamServer):
    options.document(_server_class)
