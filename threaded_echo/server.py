"""The concrete servers."""
from __future__ import annotations

import socketserver
from typing import Any

from . import options
from .handlers import EchoHandler
from .mixin import ThreadedMixIn


class _OptionsAsKeywords:
    """Takes each option as a keyword."""

    def __init__(self, server_address: Any, RequestHandlerClass: Any = EchoHandler, bind_and_activate: bool = True,
                 **keywords: Any) -> None:
        options.check(keywords)
        if not callable(RequestHandlerClass):
            raise TypeError(f"RequestHandlerClass must be a handler class, not {RequestHandlerClass!r}")
        vars(self).update(keywords)
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)  # type: ignore[call-arg]


class ThreadedTCPServer(_OptionsAsKeywords, ThreadedMixIn, socketserver.ThreadingTCPServer):
    """A TCP server with a thread a client: see `ThreadedMixIn`.

    ``server_address`` is ``(host, port)``; port 0 picks a free one, which ``server.server_address`` then tells.
    ``RequestHandlerClass`` is any handler class of socketserver's kind. Keywords set the options, for this server; an
    unknown one, or a wrong value, is a TypeError or ValueError that names it. Raises OSError where it cannot listen.
    """


if hasattr(socketserver, "ThreadingUnixStreamServer"):
    class ThreadedUnixStreamServer(_OptionsAsKeywords, ThreadedMixIn, socketserver.ThreadingUnixStreamServer):
        """A server on a Unix socket, with a thread a client: see `ThreadedMixIn`.

        ``server_address`` is a path, which must not exist yet. Whoever chose it removes it, as with socketserver.
        """
else:  # pragma: no cover - Windows, which has no Unix sockets
    class ThreadedUnixStreamServer:  # type: ignore[no-redef]
        """Not on this platform: it has no Unix sockets."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            raise NotImplementedError("this platform has no Unix sockets")
