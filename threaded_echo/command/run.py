"""The command: find the handler, listen, serve until a stop, and return the exit status."""
from __future__ import annotations

import argparse
import importlib
import logging
import os
import socketserver
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ..clients.client import Client
from ..clients.telling import tell_connected
from ..handlers import EchoHandler
from ..mixin import ThreadedMixIn
from ..observe.logs import NOTICE, about
from ..server import ThreadedTCPServer, ThreadedUnixStreamServer
from ..state import ServerState
from ..transport import certificates, proxy_protocol, systemd
from ..transport.listeners import resolve_name, show_address
from .arguments import HOST, parse, server_options
from .live import make_output
from .metrics import serve_metrics
from .output import Output

logger = logging.getLogger("threaded_echo")

OK, FAILED, SURVIVORS = 0, 1, 3  # 2, for wrong usage, is argparse's


class Failed(Exception):
    """The reason why the command cannot do its work, in one line."""


class _Server(ThreadedMixIn):
    """Logs that a client has come, and therefore also that it has gone, whatever its handler."""

    def client_connected(self, client: Client) -> None:
        tell_connected(client)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is stopped; return the exit status. Raises SystemExit(2) for wrong usage."""
    options = parse(arguments)
    level = logging.DEBUG if options.verbose else NOTICE if options.quiet else logging.INFO
    failed: Failed | None = None
    handler: type = EchoHandler
    try:
        if options.handler:
            handler = load_handler(options.handler)
    except Failed as error:
        failed = error  # to be logged, when the module has done to the logger whatever it does
    try:
        with _make_output(options, level) as output:
            return _serve(options, handler, output) if failed is None else _tell(failed)
    except (Failed, RuntimeError) as error:  # RuntimeError: not even the output's threads can be started
        reason = str(error) if isinstance(error, Failed) else f"cannot serve: {error}"
        print("threaded_echo:", *reason.splitlines(), file=sys.stderr)
        return FAILED


def _tell(reason: object) -> int:
    """Log in one line why the command has failed; return the status."""
    logger.error("%s", " ".join(str(reason).splitlines()), extra=about(None, "failed"))
    return FAILED


def _serve(options: argparse.Namespace, handler: type, output: Output) -> int:
    """Serve until a signal, or the end of the duration, the serving loop or standard output; return the status."""
    reason = None
    with ExitStack() as stack:
        try:
            server = _make_server(options, handler)
            stack.callback(server._threaded_close_if_open)
            if options.metrics_port is not None:
                stack.enter_context(_serve_metrics(server, options))
        except Failed as error:
            return _tell(error)
        output.when_broken(server.stop)
        try:
            with output.showing(server):
                report = server.run(options.duration)
        except (OSError, RuntimeError) as error:  # out of descriptors or threads, or the listener has failed
            reason = f"{'stopped by an error' if server.stats().seconds_up else 'cannot serve'}: {error}"
            report = server.stop(0, 0)
    output.settle()
    if output.error is not None:  # which has stopped the server, perhaps before it could start
        reason = None if isinstance(output.error, BrokenPipeError) else f"stopped by an error: {output.error}"
    status = OK if reason is None else _tell(reason)
    return SURVIVORS if report.survivors else status


def _make_output(options: argparse.Namespace, level: int) -> Output:
    """Make the output that was asked for. Raises Failed."""
    try:
        return make_output(level, options.live, options.log_json)
    except ImportError as error:
        raise Failed(str(error)) from error


def _make_server(options: argparse.Namespace, handler: type) -> Any:  # a _Server
    """Make a server that listens. Raises Failed."""
    settings = server_options(options)
    if options.proxy_protocol:
        try:
            proxy_protocol.require()
        except ImportError as error:
            raise Failed(str(error)) from error
    if options.tls_cert is None:
        return _listen(options, handler, settings)
    renew = partial(certificates.server_context, options.tls_cert, options.tls_key, options.tls_ca)
    try:
        settings["ssl_context"] = renew()
    except ImportError as error:  # Python was built without OpenSSL
        raise Failed(f"this Python has no TLS: {error}") from error
    except OSError as error:
        raise Failed(f"cannot load {error.filename}: {error.strerror}" if error.filename else str(error)) from error
    server = _listen(options, handler, settings)
    own = ServerState.of(server).certificates
    own.files, own.renew = (options.tls_cert, options.tls_key), renew
    return server


def _listen(options: argparse.Namespace, handler: type, settings: dict[str, Any]) -> Any:  # a _Server
    """Make the server. Raises Failed."""
    tcp: Any = type("_TCPServer", (_Server, ThreadedTCPServer), settings)
    place: Any = None
    try:
        if options.systemd:
            return tcp.from_sockets(systemd.take_sockets(), handler)
        if options.unix is not None:
            place = options.unix
            return type("_UnixServer", (_Server, ThreadedUnixStreamServer), settings)(options.unix, handler)
        addresses = []
        for host in options.host or [HOST]:
            place = (host, options.port)
            addresses += resolve_name(*place)
        return tcp(list(dict.fromkeys(addresses)), handler)
    except systemd.NotGiven as error:
        raise Failed(str(error)) from error
    except (OSError, UnicodeError, NotImplementedError) as error:  # UnicodeError: of a name that cannot be one
        raise _cannot_listen(place, error) from error


def _cannot_listen(place: Any, error: Exception) -> Failed:
    """Say that the command cannot listen, at the address that the error names or else at ``place``."""
    # An OSError's own text names the address, too.
    reason = error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else error
    return Failed(f"cannot listen on {show_address(getattr(error, 'listener', place))}: {reason}")


@contextmanager
def _serve_metrics(server: Any, options: argparse.Namespace) -> Iterator[None]:
    """Serve the metrics until the block ends. Raises Failed."""
    place = (options.metrics_host, options.metrics_port)
    with ExitStack() as stack:
        try:
            stack.enter_context(serve_metrics(server, *place))
        except ImportError as error:
            raise Failed(f"argument --metrics-port: {error}") from error
        except (OSError, UnicodeError) as error:
            raise _cannot_listen(place, error) from error
        except ValueError as error:
            raise Failed(f"the names of the metrics are taken: {error}") from error
        except RuntimeError as error:  # there are no threads
            raise Failed(f"cannot serve: {error}") from error
        yield


def load_handler(name: str) -> type[socketserver.BaseRequestHandler]:
    """Import the handler class ``MODULE:CLASS``, from the current folder, too. Raises Failed with the reason."""
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
