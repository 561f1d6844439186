"""The command's arguments."""
from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from ..offloading.threads import WorkerThreads
from ..options import OPTIONS, check_seconds

logger = logging.getLogger("threaded_echo")

HOST, PORT = "127.0.0.1", 9999

# The arguments that are options of the server under the same name: what a value is read by, its name, the help.
_OPTIONS: dict[str, tuple[Callable[[str], float], str, str]] = {
    "drain_timeout": (float, "S", "how long a stop waits for handlers to end by themselves"),
    "force_timeout": (float, "S", "how long it then waits once the connections are cut"),
    "logs_per_client": (int, "N", "the most lines about one client in ten seconds; the rest is counted"),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, those of the process by default. Raises SystemExit(2) for wrong usage."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if options.unix is not None and options.port is not None:
        parser.error("argument --port: not allowed with argument --unix")
    if options.worker_threads and options.workers is None:
        parser.error("argument --worker-threads: needs --workers N")
    if options.port is None:
        options.port = PORT
    return options


def server_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the server that were asked for."""
    settings = {name: getattr(options, name) for name in _OPTIONS}
    settings["executor"] = _executor(options)
    settings["one_cpu"] = options.one_cpu
    return settings


def _executor(options: argparse.Namespace) -> object:
    """Make what the handler's calls run in. The warning that threads do not help with the GIL is logged."""
    if not options.worker_threads:
        return options.workers
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        executor = WorkerThreads(options.workers)
    for warning in found:
        logger.warning("%s", warning.message)
    return executor


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="threaded_echo",
        description="Serve each client in a thread of its own, numbered, and send back what it says.",
        epilog="SIGINT (Ctrl-C) and SIGTERM stop it; a second one cuts the connections at once. Exit status: 0; 1 if "
               "it cannot listen or load the handler; 2 for wrong usage; 3 if handlers still run after the stop.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    where = parser.add_argument_group("where it listens")
    place = where.add_mutually_exclusive_group()
    place.add_argument("--host", default=HOST, metavar="NAME", help="an address or a name (default: %(default)s)")
    place.add_argument("--unix", type=_path, metavar="PATH", help="listen on a Unix socket instead")
    where.add_argument("--port", type=_port, metavar="N", help=f"0 picks a free port (default: {PORT})")

    how = parser.add_argument_group("how it serves")
    how.add_argument("--handler", type=_handler, metavar="MODULE:CLASS",
                     help="serve with this handler class, from the current folder, too (default: echo)")
    how.add_argument("--workers", type=_checked(OPTIONS["executor"].check, int), metavar="N",
                     help="run what the handler offloads in so many processes (default: in the handler's thread)")
    how.add_argument("--worker-threads", action="store_true",
                     help="so many threads at a lower priority instead: for Python without the GIL")
    how.add_argument("--one-cpu", action="store_true",
                     help="keep the threads on one processor (Linux only): faster with the GIL")

    end = parser.add_argument_group("when it stops")
    end.add_argument("--duration", type=_checked(check_seconds, float), metavar="S", help="stop after so many seconds")
    for name in ("drain_timeout", "force_timeout"):
        _add_option(end, name)

    output = parser.add_argument_group("what it prints")
    amount = output.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="nothing about clients and what they say")
    amount.add_argument("--verbose", action="store_true", help="connections that break in the middle, too")
    _add_option(output, "logs_per_client")
    return parser


def _add_option(group: argparse._ArgumentGroup, name: str) -> None:
    """Add an argument that is an option of the server: its default and its check are the server's."""
    read, value, text = _OPTIONS[name]
    group.add_argument(f"--{name.replace('_', '-')}", type=_checked(OPTIONS[name].check, read), metavar=value,
                       default=OPTIONS[name].default, help=f"{text} (default: %(default)s)")


def _checked(check: Callable[[str, object], None], read: Callable[[str], float]) -> Callable[[str], object]:
    """Return a function that reads a value from text and checks it."""
    def convert(text: str) -> object:
        try:
            value = read(text)
        except ValueError:
            kind = "a whole number" if read is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {kind}, not {text!r}") from None
        if value < 0:
            raise argparse.ArgumentTypeError(f"must not be negative: {text}")
        try:
            check("it", value)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from None
        return value

    return convert


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text!r}")
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path")
    return text


def _handler(text: str) -> str:
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f"must be MODULE:CLASS, not {text!r}")
    return text
