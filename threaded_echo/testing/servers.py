"""Starts servers for a test, and checks afterwards what became of them."""
from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, overload

import pytest

from ..handlers import EchoHandler
from ..hooks_leaving import HOOKS
from ..mixin import ThreadedMixIn
from ..server import ThreadedTCPServer
from ..stacks import own_frames
from .recording import HANG_UP, Recorder

if TYPE_CHECKING:
    _Base = ThreadedMixIn
else:
    _Base = object

Server = TypeVar("Server")
Errors = type[BaseException] | tuple[type[BaseException], ...]


class Failure(NamedTuple):
    """An exception of a handler, or of a hook of a program's server class."""

    server: Any
    what: str
    error: BaseException

    def __str__(self) -> str:
        """Show it with its traceback, which begins with the program's own lines."""
        error = self.error
        outer = "".join(traceback.format_tb(error.__traceback__))
        inner = "".join(own_frames(tuple(traceback.format_tb(error.__traceback__))))
        return f"{self.what}\n{''.join(traceback.format_exception(error)).replace(outer, inner)}".rstrip()


class ServerFactory:
    """Starts servers, and in the end stops and checks them: what the fixture ``threaded_server`` is.

    ``server = threaded_server(Handler, **options)`` starts one. In the end each is stopped, and the test fails if a
    handler is then still running, or if one has raised an exception. For a fixture of another scope, use it as a
    context manager: ``with ServerFactory() as threaded_server: ...``.
    """

    HANG_UP: ClassVar = HANG_UP
    """Disconnects the client, in place of a reply in the script of a `record`."""

    record = Recorder
    """Make a handler that records what clients send, and replies from a script: see `Recorder`."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, Errors]] = []
        self._failures: list[Failure] = []

    def __enter__(self) -> ServerFactory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def __call__(self, handler: Any = ..., address: Any = ..., *, server_class: type[Server], raises: Errors = ...,
                 **options: Any) -> Server: ...

    @overload
    def __call__(self, handler: Any = ..., address: Any = ..., *, raises: Errors = ..., **options: Any
                 ) -> ThreadedTCPServer: ...

    def __call__(self, handler: Any = EchoHandler, address: Any = ("127.0.0.1", 0), *,
                 server_class: type[Any] = ThreadedTCPServer, raises: Errors = (), **options: Any) -> Any:
        """Start a server, which serves in the background, and return it; ``server.server_address`` has its port.

        ``handler``: a handler class, or a `record`. ``raises``: an exception class, or a tuple of them, that handlers
        of this server are expected to raise: the test fails if none does, or if one raises another. ``server_class``:
        any class that is built on socketserver; `ThreadedMixIn` is put before it. Other keywords are what that class
        takes: the servers of this package, and their subclasses, take the options. Raises what making and starting it
        raises. *Thread safety*: any thread.
        """
        _check(raises)
        bases = (_Watched, *(() if issubclass(server_class, ThreadedMixIn) else (ThreadedMixIn,)), server_class)
        body = {"__module__": server_class.__module__, "_threaded_failures": self._failures}
        server: Any = type(server_class.__name__, bases, body)(address, handler, **options)
        self._servers.append((server, raises))
        ThreadedMixIn.start(server)  # its class may have a start of its own
        return server

    @property
    def errors(self) -> list[BaseException]:
        """What handlers have raised so far, the expected errors included.

        What a handler has raised is there when its client sees the end of the stream.
        """
        return [failure.error for failure in list(self._failures)]

    def close(self) -> None:
        """Stop all servers. Fails the test if a handler is still running, or has raised what was not expected."""
        problems: list[str] = []
        while self._servers:
            server, raises = self._servers.pop()
            problems += _stop(server)  # first: a handler may raise an exception when it is woken
            problems += _unexpected([failure for failure in self._failures if failure.server is server], raises)
        if problems:
            pytest.fail("\n\n".join(problems), pytrace=False)


class _Watched(_Base):
    """Notes the exceptions of handlers, and of a program's own hooks. Above the program's class."""

    _threaded_failures: list[Failure]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler. Its pytest.fail() or sys.exit(), which raise no Exception, are failures, too."""
        try:
            super().finish_request(request, client_address)
        except Exception:  # the server hands it to handle_error
            raise
        except BaseException:  # which would end the thread, and nothing else
            self.handle_error(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note the exception, unless the client merely went away."""
        error = sys.exception()
        client = self._threaded_judge(self._threaded_client_of(request), error)
        if error is not None and (client is None or client._has_failed()):
            name = "a client" if client is None else f"client {client.number}"
            self._threaded_failures.append(Failure(self, f"{name}: its handler has failed:", error))
        super().handle_error(request, client_address)

    def _threaded_log(self, kind: str, level: int, message: str, *arguments: object, **keywords: Any) -> None:
        """Note what is logged about hooks that have failed."""
        error = sys.exception()
        if error is not None and kind == HOOKS:
            self._threaded_failures.append(Failure(self, f"{message % arguments}:", error))
        super()._threaded_log(kind, level, message, *arguments, **keywords)


def _check(raises: object) -> None:
    """Raise TypeError unless it is an exception class, or a tuple of them."""
    for each in raises if isinstance(raises, tuple) else (raises,):
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"raises must be an exception class, or a tuple of them, not {raises!r}")


def _stop(server: Any) -> list[str]:
    """Stop a server, and say what keeps it from ending."""
    try:
        report = server._threaded_stop()
    except Exception as error:  # of a program's own server_close
        return [str(Failure(server, "a server cannot be stopped:", error))]
    return [] if report.clean else [f"a handler does not end when the server is stopped: {report}"]


def _unexpected(failures: list[Failure], raises: Errors) -> list[str]:
    """Name the exceptions that were not expected, and what was expected and has not been raised."""
    expected = [failure for failure in failures if isinstance(failure.error, raises)]
    problems = [str(failure) for failure in failures if failure not in expected]
    if raises and not expected:
        names = " or ".join(each.__name__ for each in (raises if isinstance(raises, tuple) else (raises,)))
        problems.append(f"no handler has raised {names}")
    return problems
