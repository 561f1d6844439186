"""The command line: arguments, output, signals, exit status."""
from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import queue
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..handlers import EchoHandler
from ..options import CHECKS, check_seconds
from ..clients.client import Client
from ..mixin import ThreadedMixIn
from ..server import ThreadedTCPServer, ThreadedUnixStreamServer

logger = logging.getLogger("threaded_echo")

OK, FAILED, SURVIVORS = 0, 1, 3  # 2, for wrong usage, is argparse's
_ALWAYS = logging.INFO + 5  # between info and warning: what --quiet leaves
# What ends the waiting: an error, or None: a signal, the serving loop's end, an output that nobody reads any more.
_Events = queue.SimpleQueue[Exception | None]


class Failed(Exception):
    """What keeps the command from its work, in one line."""


class _Server(ThreadedMixIn):
    """Tells of each client that comes and goes, and of the serving loop's end: a handler may stop the server too."""

    loop_ended: Callable[[Exception | None], None]

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        try:
            super().serve_forever(poll_interval)
        except Exception as error:  # whatever has ended the loop, the command tells it
            self.loop_ended(error)
            raise
        self.loop_ended(None)

    def client_connected(self, client: Client) -> None:
        logger.info("client %d connected%s", client.number, client.address and f" from {show_address(client.address)}")

    def client_disconnected(self, client: Client) -> None:
        logger.info("client %d disconnected", client.number)


class _Plain(logging.StreamHandler[Any]):
    """Escapes what could drive the operator's terminal, but for a traceback's line ends, and what it cannot show."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not text.isprintable():
            text = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)


class _Output(_Plain):
    """Calls ``broken`` where writing fails, with the reason, or None where nobody reads it any more."""

    broken: Callable[[OSError | None], None]

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        # The line is still in the stream's buffer: the interpreter's end would fail on it, with a status of its own.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())
        self.broken(None if isinstance(error, BrokenPipeError) else error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; return the exit status. Raises SystemExit(2) for wrong usage."""
    options = _parse(arguments)
    events: _Events = queue.SimpleQueue()
    with ExitStack() as stack:
        try:
            handler = load_handler(options.handler) if options.handler else EchoHandler
            _set_up_output(stack, options, events.put)
            server: _Server = _make_server(stack, options, handler)
            stack.callback(server.socket.close)
            try:
                return _obey_signals(server, events, lambda: _serve(server, events, options.duration))
            except (OSError, RuntimeError) as error:  # out of descriptors, or threads
                raise Failed(f"cannot serve: {error}") from error
        except Failed as error:
            print("threaded_echo:", *str(error).splitlines(), file=sys.stderr)
            return FAILED


def _obey_signals(server: _Server, events: _Events, serve: Callable[[], int]) -> int:
    """Call ``serve`` in a thread; a signal ends its waiting, and a second one cuts the connections at once."""
    # A signal just ahead of a blocking call does not end that, and its handler may run only after it. So this thread
    # waits for nothing but the byte that each signal writes: its number.
    if threading.current_thread() is not threading.main_thread():
        return serve()
    came = 0
    with ExitStack() as stack:
        waker, alarm = map(stack.enter_context, socket.socketpair())
        alarm.setblocking(False)
        # A forked process must not write here as well, and can be terminated; a terminal's key is the server's to obey.
        forked = stack.enter_context(ExitStack())
        getattr(os, "register_at_fork", lambda **_: None)(after_in_child=forked.close)
        forked.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False))
        for number, undo in ((signal.SIGINT, stack), (signal.SIGTERM, forked)):
            undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        served = stack.enter_context(ThreadPoolExecutor(1, "threaded_echo")).submit(serve)
        stack.callback(events.put, None)  # where somebody else's signal handler raises
        served.add_done_callback(lambda _: alarm.send(b"\0"))
        while not served.done():
            if waker.recv(1)[0] in (signal.SIGINT, signal.SIGTERM):  # not the end, nor a signal of somebody else's
                events.put(None)
                came += 1
                if came > 1:
                    # For what follows to shorten that stop; not for ever, since that may be stuck in its output.
                    server.stopping.wait(1)
                    server.stop(drain=0)
        return served.result()


def _serve(server: _Server, events: _Events, duration: float | None) -> int:
    """Serve until a signal, the end of the duration, of the serving loop or of standard output; then stop."""
    server.loop_ended = events.put
    # It listens already, and no client may come ahead of this line.
    logger.log(_ALWAYS, "listening on %s", show_address(server.server_address))
    server.start()
    reason = None
    with suppress(queue.Empty):
        reason = events.get(timeout=duration)
    logger.log(_ALWAYS, "stopping: %d client%s live", live := len(server.clients), "" if live == 1 else "s")
    report = server.stop()
    logger.log(_ALWAYS, "stopped in %.3f s: %d drained, %d forced, %d still running",
               report.seconds, report.drained, report.forced, len(report.survivors))
    if report.survivors:
        return SURVIVORS
    if reason is not None:
        raise Failed(f"stopped by an error: {reason}") from reason
    return OK


def _set_up_output(stack: ExitStack, options: argparse.Namespace, broken: Callable[[OSError | None], None]) -> None:
    """Send the package's messages to standard output, and its warnings and errors to standard error."""
    output, errors = _Output(sys.stdout), _Plain(sys.stderr)
    output.broken = broken
    output.addFilter(lambda record: record.levelno < logging.WARNING)
    errors.setLevel(logging.WARNING)
    errors.setFormatter(logging.Formatter("threaded_echo: %(message)s"))
    for name in ("propagate", "disabled"):  # logging.config, in the handler's module, disables what it does not know
        stack.callback(setattr, logger, name, getattr(logger, name))
        setattr(logger, name, False)
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.DEBUG if options.verbose else _ALWAYS if options.quiet else logging.INFO)
    for handler in (output, errors):
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)


def _make_server(stack: ExitStack, options: argparse.Namespace, handler: type) -> Any:  # a _Server
    settings = {"drain_timeout": options.drain_timeout, "force_timeout": options.force_timeout,
                "executor": options.workers}
    try:
        if options.unix:
            _remove_dead_socket(options.unix)
            stack.callback(_remove_dead_socket, options.unix)
            return type("_UnixServer", (_Server, ThreadedUnixStreamServer), settings)(options.unix, handler)
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return type("_TCPServer", (_Server, ThreadedTCPServer), settings | {"address_family": family})(address, handler)
    except (OSError, UnicodeError, NotImplementedError) as error:  # UnicodeError: of a name that cannot be one
        place = options.unix or show_address((options.host, options.port))
        raise Failed(f"cannot listen on {place}: {getattr(error, 'strerror', None) or error}") from error


def load_handler(name: str) -> type[socketserver.BaseRequestHandler]:
    """Import the handler class ``MODULE:CLASS``, from the current folder too. Raises Failed with the reason."""
    module_name, _, class_name = name.partition(":")
    try:
        if "" not in sys.path and os.getcwd() not in sys.path:  # the console script has neither
            sys.path.insert(0, os.getcwd())
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module raises as it is run
        raise Failed(f"cannot import the handler's module {module_name!r}: {type(error).__name__}: {error}") from error
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise Failed(f"module {module_name!r} has no {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, socketserver.BaseRequestHandler)):
        raise Failed(f"{name!r} is not a handler: a subclass of socketserver.BaseRequestHandler is needed")
    return found


def _remove_dead_socket(path: str) -> None:
    """Remove the socket of a server that has ended; leave one alone that somebody listens on."""
    with suppress(OSError):
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)  # a listener whose queue is full is one too
                if probe.connect_ex(path) == errno.ECONNREFUSED:
                    os.unlink(path)


def show_address(address: Any) -> str:
    """Show an address as people write it: ``127.0.0.1:9999``, ``[::1]:9999``, or a path."""
    if isinstance(address, tuple):
        return ("[%s]:%d" if ":" in address[0] else "%s:%d") % address[:2]
    return os.fsdecode(address)


def seconds(text: str) -> float:
    check_seconds("it", number := float(text))  # its ValueError is argparse's, which names this function
    return number


def workers(text: str) -> int:
    CHECKS["executor"]("it", number := int(text))  # as above
    return number


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="threaded_echo", description="Serve each client in a thread of its own, numbered; echo what it sends.",
        epilog="SIGINT and SIGTERM stop it; a second one cuts the connections at once. Exit status: 0; 1 where it "
               "cannot listen or load the handler; 2 usage; 3 where handlers still ran after the stop.")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--host", default="127.0.0.1", help="address or name to listen on (default: %(default)s)")
    place.add_argument("--unix", metavar="PATH", help="listen on a Unix socket instead")
    parser.add_argument("--port", type=int, default=9999, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--duration", type=seconds, metavar="S", help="stop after so many seconds")
    parser.add_argument("--handler", metavar="MODULE:CLASS", help="serve with this handler class")
    parser.add_argument("--workers", type=workers, metavar="N",
                        help="run what the handler offloads in so many processes (default: in its own thread)")
    parser.add_argument("--drain-timeout", type=seconds, metavar="S", default=ThreadedMixIn.drain_timeout,
                        help="how long a stop waits for handlers to end by themselves (default: %(default)s)")
    parser.add_argument("--force-timeout", type=seconds, metavar="S", default=ThreadedMixIn.force_timeout,
                        help="how long it then waits once connections are cut (default: %(default)s)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="do not tell of clients and their messages")
    amount.add_argument("--verbose", action="store_true", help="tell of clients that went away in the middle, too")
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"argument --port: must be from 0 to 65535, not {options.port}")
    if options.unix == "":
        parser.error("argument --unix: must be a path")
    if options.handler is not None and not all(options.handler.partition(":")):
        parser.error(f"argument --handler: must be MODULE:CLASS, not {options.handler!r}")
    return options
