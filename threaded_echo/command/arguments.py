"""The command's arguments."""
from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from ..observe.logs import about
from ..offloading.threads import WorkerThreads
from ..options import OPTIONS, check_seconds, networks_of

logger = logging.getLogger("threaded_echo")

HOST, PORT = "127.0.0.1", 9999

_EPILOG = """\
output:
  A line each for where it listens, for each client that comes, each line that
  it sends, and each client that goes; warnings and errors on standard error.
  What is not printable is shown escaped.

signals:
  SIGINT (Ctrl-C) and SIGTERM stop it: no more clients are accepted, each
  handler is woken by an end of stream, and the connections of those that have
  not ended after --drain-timeout are cut. A second signal cuts them at once.
  With --tls-cert, SIGHUP reads the certificate anew.

exit status:
  0  after a clean stop
  1  if it cannot listen, cannot load the handler, or was stopped by an error
  2  for wrong usage
  3  if handlers still run after the stop

examples:
  python3 -m threaded_echo --host "" --port 7777 --idle-timeout 60
  python3 -m threaded_echo --handler mymodule:MyHandler --workers 2
  python3 -m threaded_echo --tls-cert cert.pem --tls-key key.pem --log-json
  python3 -m threaded_echo --max-clients 500 --metrics-port 9100
  python3 -m threaded_echo --unix /run/echo.sock --unix-mode 660
"""

# The arguments that are options of the server under the same name: what a value is read by, its name, the help.
_OPTIONS: dict[str, tuple[Callable[[str], float], str, str]] = {
    "idle_timeout": (float, "S", "disconnect a client after so many seconds without a byte either way"),
    "lifetime": (float, "S", "disconnect a client so many seconds after it has connected"),
    "linger_timeout": (float, "S", "how long clients may go on after the first signal, with no new ones"),
    "drain_timeout": (float, "S", "how long a stop waits for handlers to end by themselves"),
    "force_timeout": (float, "S", "how long it then waits once the connections are cut"),
    "max_clients": (int, "N", "the most clients at once"),
    "max_clients_per_host": (int, "N", "the most of one host; more are refused"),
    "logs_per_client": (int, "N", "the most lines about one client in ten seconds; the rest is counted"),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, those of the process by default. Raises SystemExit(2) for wrong usage."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    for other in ("unix", "systemd"):
        if getattr(options, other) and options.port is not None:
            parser.error(f"argument --port: not allowed with argument --{other}")
    if options.unix_mode is not None and options.unix is None:
        parser.error("argument --unix-mode: needs argument --unix")
    if options.unix is not None and options.idle_timeout is not None:
        parser.error("argument --idle-timeout: not allowed with argument --unix, whose clients' silence is not known")
    if options.tls_cert is None and (options.tls_key or options.tls_ca):
        parser.error(f"argument --tls-{'key' if options.tls_key else 'ca'}: needs --tls-cert")
    if options.worker_threads and options.workers is None:
        parser.error("argument --worker-threads: needs --workers N")
    if options.metrics_host is not None and options.metrics_port is None:
        parser.error("argument --metrics-host: needs --metrics-port N")
    if options.metrics_host is None:
        options.metrics_host = HOST
    if options.port is None:
        options.port = PORT
    return options


def server_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the server that were asked for."""
    settings = {name: getattr(options, name) for name in _OPTIONS}
    settings["proxy_protocol"] = tuple(options.proxy_protocol)
    settings["executor"] = _executor(options)
    settings["one_cpu"] = options.one_cpu
    settings["unix_mode"] = options.unix_mode
    settings["allow_reuse_port"] = options.reuse_port
    settings["at_limit"] = options.at_limit
    return settings


def _executor(options: argparse.Namespace) -> object:
    """Make what the handler's calls run in. The warning that threads do not help with the GIL is logged."""
    if not options.worker_threads:
        return options.workers
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        executor = WorkerThreads(options.workers)
    for warning in found:
        logger.warning("%s", warning.message, extra=about(None, "workers"))
    return executor


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="threaded_echo", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve each client in a thread of its own, numbered, and send back what it says.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    where = parser.add_argument_group("where it listens")
    place = where.add_mutually_exclusive_group()
    place.add_argument("--host", action="append", metavar="NAME",
                       help="an address, or a name for all that it has; may be given several times; \"\" is "
                            f"everywhere, with IPv4 and IPv6 (default: {HOST})")
    place.add_argument("--unix", type=_path, metavar="PATH", help="listen on a Unix socket instead")
    place.add_argument("--systemd", action="store_true", help="listen on the sockets that systemd hands in instead")
    where.add_argument("--port", type=_port, metavar="N", help=f"0 picks a free port (default: {PORT})")
    where.add_argument("--reuse-port", action="store_true", help="share the port with other processes")
    where.add_argument("--unix-mode", type=_mode, metavar="MODE",
                       help="the permissions of the Unix socket's file, such as 660 (default: the umask's)")

    how = parser.add_argument_group("how it serves")
    how.add_argument("--handler", type=_handler, metavar="MODULE:CLASS",
                     help="serve with this handler class, from the current folder, too (default: echo)")
    how.add_argument("--workers", type=_checked(OPTIONS["executor"].check, int), metavar="N",
                     help="run what the handler offloads in so many processes (default: in the handler's thread)")
    how.add_argument("--worker-threads", action="store_true",
                     help="so many threads at a lower priority instead: for Python without the GIL")
    how.add_argument("--one-cpu", action="store_true",
                     help="keep the threads on one processor (Linux only): faster with the GIL")
    for name in ("idle_timeout", "lifetime"):
        _add_option(how, name)
    how.add_argument("--proxy-protocol", type=_network, metavar="NETWORK", action="append", default=[],
                     help="believe the PROXY header of proxies in this network, or of a Unix socket's peers (\"unix\");"
                          " may be given several times")

    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls-cert", type=_path, metavar="FILE",
                     help="serve TLS with this certificate, in PEM, and those that sign it; SIGHUP reads it anew")
    tls.add_argument("--tls-key", type=_path, metavar="FILE",
                     help="its key, without a password (default: in the certificate's file)")
    tls.add_argument("--tls-ca", type=_path, metavar="FILE",
                     help="clients need a certificate that one of these authorities has signed")

    limits = parser.add_argument_group("whom it lets in")
    _add_option(limits, "max_clients")
    limits.add_argument("--at-limit", choices=("wait", "refuse"), default=OPTIONS["at_limit"].default,
                        help="at that limit, more clients wait to be accepted, or are refused (default: %(default)s)")
    _add_option(limits, "max_clients_per_host")

    end = parser.add_argument_group("when it stops")
    end.add_argument("--duration", type=_checked(check_seconds, float), metavar="S", help="stop after so many seconds")
    for name in ("linger_timeout", "drain_timeout", "force_timeout"):
        _add_option(end, name)

    output = parser.add_argument_group("what it prints")
    amount = output.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="nothing about clients and what they say")
    amount.add_argument("--verbose", action="store_true", help="connections that break in the middle, too")
    _add_option(output, "logs_per_client")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--log-json", action="store_true",
                      help="a JSON object a line, on standard output, warnings and errors included")
    form.add_argument("--live", action="store_true",
                      help="a table of the clients, redrawn twice a second, in place of lines about them; lines if the "
                           "output is no terminal (needs rich)")
    output.add_argument("--metrics-port", type=_port, metavar="N",
                        help="serve metrics for Prometheus over HTTP, without TLS; 0 picks a free port")
    output.add_argument("--metrics-host", metavar="NAME",
                        help=f"the address for it; \"\" is everywhere (default: {HOST}, whatever --host is)")
    return parser


def _add_option(group: argparse._ArgumentGroup, name: str) -> None:
    """Add an argument that is an option of the server: its default and its check are the server's."""
    read, value, text = _OPTIONS[name]
    default = OPTIONS[name].default
    group.add_argument(f"--{name.replace('_', '-')}", type=_checked(OPTIONS[name].check, read), metavar=value,
                       default=default, help=f"{text} (default: {'no limit' if default is None else default})")


def _checked(check: Callable[[str, object], object], read: Callable[[str], float]) -> Callable[[str], object]:
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


def _network(text: str) -> str:
    try:
        networks_of("it", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it: ")) from None
    return text


def _mode(text: str) -> int:
    if not 1 <= len(text) <= 4 or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"must be an octal number from 0 to 777, not {text!r}")
    return int(text, 8)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path")
    return text


def _handler(text: str) -> str:
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f"must be MODULE:CLASS, not {text!r}")
    return text
