"""The command line: arguments, output, signals, exit status."""
from __future__ import annotations

import argparse
import importlib
import logging
import os
import queue
import signal
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from .handlers import EchoHandler
from .options import check_seconds
from .registry import Client
from .server import ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer
from .stopping import StopReport

logger = logging.getLogger("threaded_echo")

OK, FAILED, USAGE, SURVIVORS = 0, 1, 2, 3


class Failed(Exception):
    """What keeps the command from its work, in one line."""


class _Announcing(ThreadedMixIn):
    """Tells of each client that comes and goes, and of a serving loop that fails."""

    loop_failed: Callable[[Exception], None]

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve; hand an error to who waits for the end."""
        try:
            super().serve_forever(poll_interval)
        except Exception as error:
            self.loop_failed(error)
            raise

    def client_connected(self, client: Client) -> None:
        """Tell that a client has come."""
        if isinstance(client.address, tuple):
            logger.info("client %d connected from %s", client.number, show_address(client.address))
        else:
            logger.info("client %d connected", client.number)

    def client_disconnected(self, client: Client) -> None:
        """Tell that a client has gone."""
        logger.info("client %d disconnected", client.number)


class _TCPServer(_Announcing, ThreadedTCPServer):
    pass


class _UnixServer(_Announcing, ThreadedUnixStreamServer):
    pass


class _Output(logging.StreamHandler[Any]):
    """Writes messages below warning level to standard output, and calls ``broken`` when nobody reads it any more."""

    def __init__(self, broken: Callable[[], None]) -> None:
        super().__init__(sys.stdout)
        self._broken = broken
        self.addFilter(lambda record: record.levelno < logging.WARNING)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Take a closed pipe as the wish to stop."""
        if isinstance(sys.exc_info()[1], OSError):
            self._broken()
        else:
            super().handleError(record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; return the exit status."""
    options = _parser().parse_args(arguments)
    # What ends the waiting: a signal's number, a StopReport, the error of the serving loop, or None when nobody reads
    # standard output any more. SimpleQueue.put may be called by a signal handler
    # that interrupts a get, which no Event or Condition allows.
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ExitStack() as stack:
        _set_up_output(stack, options, lambda: events.put(None))
        try:
            server = _make_server(stack, options)
            _catch_signals(stack, events.put)
            return _serve(server, options.duration, events)
        except Failed as error:
            print(f"threaded_echo: {error}", file=sys.stderr)
            return FAILED


def _serve(server: _TCPServer | _UnixServer, duration: float | None,
           events: queue.SimpleQueue[Any]) -> int:
    """Serve until a signal, the end of the duration or of standard output; then stop, at once at a second signal."""
    server.loop_failed = events.put
    try:
        server.start()
    except (OSError, RuntimeError) as error:
        server.stop()
        raise Failed(f"cannot serve: {error}") from error
    _tell("listening on %s", show_address(server.server_address))
    event: Any = None
    with suppress(queue.Empty):
        event = events.get(timeout=duration)
    live = len(server.clients)
    _tell("stopping: %d client%s live", live, "" if live == 1 else "s")
    stopper = threading.Thread(target=lambda: events.put(server.stop()), name="threaded_echo stopping")
    stopper.start()
    while not isinstance(report := events.get(), StopReport):
        if isinstance(report, int):
            server.stop(drain=0)
    stopper.join()
    _tell("stopped in %.3f s: %d drained, %d forced, %d still running",
          report.seconds, report.drained, report.forced, len(report.survivors))
    if report.survivors:
        return SURVIVORS
    return FAILED if isinstance(event, Exception) else OK


def _tell(message: str, *values: object) -> None:
    logger.log(_ALWAYS, message, *values)


# Between info and warning: what --quiet leaves.
_ALWAYS = logging.INFO + 5


def _set_up_output(stack: ExitStack, options: argparse.Namespace, broken: Callable[[], None]) -> None:
    """Send the package's messages to standard output, and its warnings and errors to standard error."""
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.WARNING)
    errors.setFormatter(logging.Formatter("threaded_echo: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG if options.verbose else _ALWAYS if options.quiet else logging.INFO)
    logger.propagate = False
    stack.callback(setattr, logger, "propagate", propagate)
    stack.callback(logger.setLevel, level)
    for handler in (_Output(broken), errors):
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)


def _catch_signals(stack: ExitStack, put: Callable[[int], None]) -> None:
    """Turn SIGINT and SIGTERM into events; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda number, frame: put(number)))


def _make_server(stack: ExitStack, options: argparse.Namespace) -> _TCPServer | _UnixServer:
    """Make the server, listening. Raises Failed with the reason where it cannot."""
    handler = load_handler(options.handler) if options.handler else EchoHandler
    keywords = {name: getattr(options, name) for name in ("drain_timeout", "force_timeout")
                if getattr(options, name) is not None}
    place = options.unix or show_address((options.host, options.port))
    try:
        if options.unix:
            _remove_stale_socket(options.unix)
            server = _UnixServer(options.unix, handler, **keywords)
            stack.callback(_remove_socket, options.unix, os.stat(options.unix).st_ino)
            return server
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
        server_class = type("_Server", (_TCPServer,), {"address_family": family})
        return server_class(address, handler, **keywords)  # type: ignore[no-any-return]
    except (OSError, NotImplementedError) as error:
        raise Failed(f"cannot listen on {place}: {getattr(error, 'strerror', None) or error}") from error


def load_handler(name: str) -> type[socketserver.BaseRequestHandler]:
    """Import the handler class ``MODULE:CLASS``, from the current folder too. Raises Failed with the reason."""
    module_name, _, class_name = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:  # the console script has neither
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the module raises as it is run
        raise Failed(f"cannot import the handler's module {module_name!r}: {type(error).__name__}: {error}") from error
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise Failed(f"module {module_name!r} has no {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, socketserver.BaseRequestHandler)):
        raise Failed(f"{name!r} is not a handler: a subclass of socketserver.BaseRequestHandler is needed")
    return found


def _remove_stale_socket(path: str) -> None:
    """Remove a socket that a server left behind which was killed; leave one alone that somebody listens on."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _remove_socket(path: str, inode: int) -> None:
    """Remove our own socket, but not another that has taken its place."""
    with suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def show_address(address: Any) -> str:
    """Show an address as people write it: ``127.0.0.1:9999``, ``[::1]:9999``, or a path."""
    if not isinstance(address, tuple):
        return os.fsdecode(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is from 0 to 65535")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    try:
        check_seconds("it", seconds)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return seconds


def _handler_name(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise argparse.ArgumentTypeError("a handler is MODULE:CLASS")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="threaded_echo", description="Serve each client in a thread of its own, numbered; echo what it sends.",
        epilog="SIGINT and SIGTERM stop it; a second one cuts the connections at once. "
               "Exit status: 0; 1 where it cannot listen or load the handler; 2 usage; 3 where handlers still ran "
               "after the stop.")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--host", default="127.0.0.1", help="address or name to listen on (default: %(default)s)")
    place.add_argument("--unix", metavar="PATH", help="listen on a Unix socket instead")
    parser.add_argument("--port", type=_port, default=9999, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--duration", type=_seconds, metavar="S", help="stop after so many seconds")
    parser.add_argument("--handler", type=_handler_name, metavar="MODULE:CLASS", help="serve with this handler class")
    parser.add_argument("--drain-timeout", type=_seconds, metavar="S",
                        help="how long a stop waits for handlers to end by themselves (default: 5)")
    parser.add_argument("--force-timeout", type=_seconds, metavar="S",
                        help="how long it then waits once connections are cut (default: 1)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="do not tell of clients and their messages")
    amount.add_argument("--verbose", action="store_true", help="tell of clients that went away in the middle, too")
    return parser
