"""The options of a server: their names, their checks, and whose value wins.

An option is a class attribute, as in socketserver; the concrete servers take each as a keyword too.
"""
from __future__ import annotations

import ipaddress
import math
import os
import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

KEEPALIVE = 60.0
"""The default of the option ``keepalive``, in seconds."""

LONGEST_KEEPALIVE = 32767
"""The most seconds that Linux takes for it (``MAX_TCP_KEEPIDLE`` in include/net/tcp.h)."""


def _flag(name: str, value: object) -> None:
    if value not in (True, False):  # 1 and 0 too: existing classes say allow_reuse_address = 1
        raise TypeError(f"{name} must be True or False, not {value!r}")


def _count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative: {value!r}")


def check_seconds(name: str, value: object) -> None:
    """Raise TypeError or ValueError, naming ``name``, unless ``value`` is a time in seconds that can be waited for."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or not 0 <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} must be from 0 to {threading.TIMEOUT_MAX:.0f} seconds, not {value!r}")


def _mode(name: str, value: object) -> None:
    if value is not None:
        _count(name, value)
        if isinstance(value, int) and value > 0o777:
            raise ValueError(f"{name} must be permissions, from 0 to 0o777, not {oct(value)}")


def _executor(name: str, value: object) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"{name} must be at least one worker process: {value!r}")
    elif value is not None and not callable(getattr(value, "submit", None)):
        raise TypeError(f"{name} must be None, a number of worker processes or have a method submit, not {value!r}")


def _limit(name: str, value: object) -> None:
    if value is not None:
        _count(name, value)
        if value == 0:
            raise ValueError(f"{name} must be None or at least 1, not 0")


def _seconds_or_none(name: str, value: object) -> None:
    if value is not None:
        check_seconds(name, value)


def _timeout(name: str, value: object) -> None:
    if value is not None:
        check_seconds(name, value)
        if value == 0:
            raise ValueError(f"{name} must be None or more than 0 seconds, not {value!r}")


def _keepalive(name: str, value: object) -> None:
    _timeout(name, value)
    if value is not None and value > LONGEST_KEEPALIVE:  # type: ignore[operator]  # a number: that is checked
        raise ValueError(f"{name} must be at most {LONGEST_KEEPALIVE} seconds, not {value!r}")


def _at_limit(name: str, value: object) -> None:
    if value not in ("wait", "refuse"):
        raise ValueError(f"{name} must be 'wait' or 'refuse', not {value!r}")


def _bytes(name: str, value: object) -> None:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be bytes-like, not {value!r}") from None


def _ssl_context(name: str, value: object) -> None:
    if value is not None:
        module = sys.modules.get("ssl")  # not imported here: whoever has made a context has done so
        if module is None or not isinstance(value, module.SSLContext):
            raise TypeError(f"{name} must be None or an ssl.SSLContext, not {value!r}")
        if value.protocol == module.PROTOCOL_TLS_CLIENT:
            raise ValueError(f"{name} must be the context of a server, such as "
                             "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)")


Network = ipaddress.IPv4Network | ipaddress.IPv6Network | str  # "unix" is the only string
_SINGLE = (str, ipaddress.IPv4Network, ipaddress.IPv6Network, ipaddress.IPv4Address, ipaddress.IPv6Address)


def networks_of(name: str, value: object) -> tuple[Network, ...]:
    """Return the networks that an option names. Raises TypeError or ValueError, naming it."""
    if isinstance(value, bytes) or not isinstance(value, (*_SINGLE, Collection)):  # an iterator would be used up
        raise TypeError(f"{name} must be a network or a sequence of networks, not {value!r}")
    return tuple(_network(name, item) for item in ([value] if isinstance(value, _SINGLE) else value))


def _network(name: str, value: object) -> Network:
    if value == "unix":
        return "unix"
    if not isinstance(value, _SINGLE):
        raise TypeError(f"{name}: a network must be a string or an object of ipaddress, not {value!r}")
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    mapped = isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped
    if mapped and network.prefixlen >= 96:
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


@dataclass(frozen=True)
class Option:
    """One option: its default, its check, and what it means."""

    name: str
    default: Any
    check: Callable[[str, object], object]
    meaning: str
    live: bool = False  # a server that serves notices at once that it is assigned: see LiveOption


OPTIONS: Mapping[str, Option] = {option.name: option for option in (
    # Elsewhere than on POSIX the option lets two servers share a port.
    Option("allow_reuse_address", os.name == "posix", _flag,
           "Listen although connections of an earlier server on this address still linger."),
    Option("allow_reuse_port", False, _flag,
           "Let several processes of one user listen on the same port, each with a socket of its own (SO_REUSEPORT): "
           "the kernel shares the connections out. When one of them closes, the connections that wait in its queue are "
           "reset: for a restart without a gap, hand the listening socket itself on (from_sockets). No effect on Unix "
           "sockets, nor if the platform does not have it."),
    Option("unix_mode", None, _mode,
           "The permissions of a Unix socket's file, for instance 0o660; to connect, one needs to be allowed to write. "
           "None: what the umask leaves. No effect on abstract names, which have no file."),
    # socketserver's 5 drops connections in any burst.
    Option("request_queue_size", socket.SOMAXCONN, _count,
           "How many connections may wait to be accepted; the kernel caps it at its own limit."),
    # A handler that never ends must not keep the interpreter from ending.
    Option("daemon_threads", True, _flag,
           "Whether handler threads are daemons. A stop joins them all the same."),
    Option("reuse_threads", True, _flag,
           "Whether a handler thread that is done accepts the next client. Each client runs in a fresh "
           "contextvars.Context either way; what a handler leaves in a threading.local stays. Needs daemon_threads: an "
           "idle thread that is no daemon would keep the interpreter from ending."),
    Option("one_cpu", False, _flag,
           "Keep the serving thread and the handler threads on one processor, on Linux; elsewhere it has no effect. "
           "With the GIL one thread at a time runs anyway, and waking one on another processor costs more than that "
           "processor gives. Set it if handlers mostly wait for their clients, and compute little or in worker "
           "processes; not without the GIL, nor if handlers compute in C code that releases it. Worker processes, and "
           "the threads of an executor, are not kept there; other processes that a handler starts are."),
    Option("linger_timeout", 0.0, check_seconds,
           "Seconds for which run() lets live clients go on after the first signal, or at the end of its duration, "
           "before it stops. It accepts no more clients then, and has closed the listening socket, which another "
           "process may have as well and go on with. 0: stop at once. A second signal cuts the connections."),
    Option("drain_timeout", 5.0, check_seconds,
           "Seconds that a stop waits for handlers to end by themselves, after it has woken them."),
    Option("force_timeout", 1.0, check_seconds,
           "Seconds that it then waits for the rest, after it has cut their connections."),
    Option("idle_timeout", None, _timeout,
           "Seconds without a byte in either direction after which a client is disconnected. A client whose handler is "
           "in process(), or waits for offload(), is not idle; for any other handler only bytes count. None: no limit. "
           "Needs TCP on Linux: elsewhere serving logs a warning. A change while the server is serving is noticed "
           "within the shorter of idle_timeout and lifetime as they were; if both were None, when it serves again."),
    Option("lifetime", None, _timeout,
           "Seconds from its accept after which a client is disconnected, whatever it does. None: no limit. A change "
           "is noticed as one of idle_timeout."),
    Option("send_timeout", None, _timeout,
           "Seconds for which a client may take nothing of what is sent to it; then it is disconnected. None: no "
           "limit. The kernel keeps this time, and looks now and then only. For Unix sockets, and without "
           "TCP_USER_TIMEOUT (macOS, Windows), it is for each send, and not for TLS. A change is noticed when the "
           "server serves again."),
    Option("handshake_timeout", 10.0, _timeout,
           "Seconds for the PROXY header and the TLS handshake together; then the client is refused. None: no limit."),
    Option("keepalive", KEEPALIVE, _keepalive,
           "TCP keep-alive: a client that has been silent for so many seconds is asked whether it is there; one that "
           "has vanished is found after about twice the time (after send_timeout, if that is set). None: the system's "
           "settings, or those that the program has made on the listening socket; the default leaves these alone, too. "
           "A change is noticed when the server serves again."),
    Option("ssl_context", None, _ssl_context,
           "The context for TLS: ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), with a certificate loaded. Each "
           "client's handshake runs in its handler's thread. Read for each connection, so that it may be replaced "
           "while serving. The server sets ssl.OP_IGNORE_UNEXPECTED_EOF in it; set ssl.OP_NO_RENEGOTIATION yourself. "
           "None: no TLS, unless the program wraps the listening socket."),
    Option("proxy_protocol", (), networks_of,
           "The networks of the proxies whose PROXY header, version 1 or 2, is believed: strings such as "
           "\"10.0.0.0/8\", objects of ipaddress, or \"unix\" for the peers of a Unix socket; one of them or more. "
           "Their clients have the address that the header tells, and are refused if there is none, or it is broken. A "
           "header from elsewhere is refused. Whoever sends something else from elsewhere is served as it is; since "
           "the server waits for the first bytes, one that waits for the server's is served after handshake_timeout. "
           "Needs the package proxy-protocol (the extra \"proxy\"). A change is noticed when the server serves again. "
           "Empty: the header is nothing special."),
    Option("executor", None, _executor,
           "Where offload() runs functions. None: in the calling thread. A number: in so many worker processes, which "
           "the server starts before its first client, and ends. WorkerProcesses(n, initializer=function): the same, "
           "and each is prepared by a call of that function. WorkerThreads(n): in so many threads at a lower "
           "priority, for Python without the GIL. Or any object with a submit() like that of "
           "concurrent.futures.Executor, which its owner shuts down: a client of Dask's, too, and what its "
           "get_executor() returns; equal calls are each made, unless it was told pure=True. One that is assigned to a "
           "server that serves has the calls that are made from then on."),
    Option("max_offloads", None, _limit,
           "The most offloaded calls that run at once. None: as many as there are workers, and any number with "
           "executor=None, or in an executor of the program's, which then has the queue and its order."),
    Option("at_offload_limit", "wait", _at_limit,
           "What a call does at that limit: \"wait\" for its turn; or \"refuse\": raise OffloadRefused if so many "
           "calls are running, or waiting for a worker."),
    Option("max_offloads_per_host", None, _limit,
           "The most offloaded calls of one host's clients that run at once, by the same rule at the limit. A host is "
           "an IPv4 address, or the first 64 bits of an IPv6 address; each client of a Unix socket is one by itself. "
           "None: no limit. With or without it, turns go round the hosts that wait."),
    Option("offload_timeout", None, _seconds_or_none,
           "Seconds from the call until an offloaded call that has not returned raises TimeoutError, the wait for its "
           "turn included. A worker process that is in the call is killed, and replaced; in threads, and in other "
           "executors, the function runs on, which is logged, and keeps its place until it ends. With executor=None "
           "only the wait for a turn ends. None: no limit."),
    Option("slow_offload", None, _seconds_or_none,
           "Seconds from the call after which an offloaded call is logged as slow, at WARNING: at that moment, or, "
           "with executor=None, when it ends. None: none is."),
    Option("logs_per_client", 100, _limit,
           "The most records at info level and above about one client, and the most of each kind of failure, in ten "
           "seconds. The rest is counted, and the count is logged. None: no limit."),
    Option("max_clients", None, _limit,
           "The most clients at once. None: any number. When it is raised on a server that serves, those who wait get "
           "in at once; when it is lowered, nobody is disconnected.", live=True),
    Option("at_limit", "wait", _at_limit,
           "What becomes of more clients: with \"wait\" they wait in the kernel's queue until somebody leaves; with "
           "\"refuse\" each is accepted, sent limit_reply, and closed.", live=True),
    Option("limit_reply", b"", _bytes,
           "The bytes that a refused client is sent, in whole, unless the connection is to be TLS. It has 2 seconds to "
           "read them.", live=True),
    Option("max_clients_per_host", None, _limit,
           "The most clients of one host at once; more are refused. None: any number. An IPv6 /64 is one host. Clients "
           "on a Unix socket have no host.", live=True),
    Option("reserve_descriptors", 32, _count,
           "Accept nobody while the process has fewer descriptors free than this, so that handlers can still open "
           "files. At most a quarter of its limit is kept. 0: use all of them.", live=True),
)}

# Options of socketserver's own. They are not in the mix-in's body, where they would hide what a program's class sets:
# see `settle`.
_SOCKETSERVERS = ("allow_reuse_address", "allow_reuse_port", "request_queue_size", "daemon_threads")

# Names for which a class below the mix-in may have a meaning of its own, which then wins.
_YIELDS = (*OPTIONS, "start", "run", "suspend", "resume", "reload_tls", "stop", "stopping", "clients", "stats",
           "offload", "offload_within", "offload_iter", "offloads", "broadcast", "dump", "dump_on_signal",
           "handle_error", "process_request_thread", "listeners", "server_addresses", "from_sockets")


class LiveOption:
    """The class attribute that is an option's default; assigning the option to a server checks it and tells the server.

    On the class it reads as its value. Assigned to a class that serves, an option is noticed later: see
    `is_live`.
    """

    def __init__(self, name: str, default: Any) -> None:
        self._name = name
        self._default = default

    def __get__(self, server: object | None, owner: type) -> Any:
        return self._default if server is None else vars(server).get(self._name, self._default)

    def __set__(self, server: Any, value: object) -> None:
        OPTIONS[self._name].check(self._name, value)
        vars(server)[self._name] = value
        server._threaded_option_assigned()

    def __delete__(self, server: Any) -> None:
        try:
            del vars(server)[self._name]
        except KeyError:
            raise AttributeError(self._name) from None
        server._threaded_option_assigned()


def is_live(server: object, name: str) -> bool:
    """Return whether the server is told when an option of it is assigned: not if a class has its own property."""
    owner = next(cls for cls in type(server).__mro__ if name in vars(cls))
    return isinstance(vars(owner)[name], LiveOption)


def check(options: Mapping[str, object]) -> None:
    """Raise TypeError for an unknown or mistyped option and ValueError for one out of range; each names the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(OPTIONS)}")
        OPTIONS[name].check(name, value)


def check_server(server: object) -> None:
    """Check the options of a server that is about to serve, wherever they were set."""
    check({name: getattr(server, name) for name in OPTIONS if hasattr(server, name)})
    is_stream = getattr(server, "socket_type", socket.SOCK_STREAM) == socket.SOCK_STREAM
    for name in ("ssl_context", "proxy_protocol"):
        if getattr(server, name, None) not in (None, ()) and not is_stream:
            raise ValueError(f"{name} needs a server of streams, and {type(server).__name__} is none")


def install(mixin: type) -> None:
    """Give the mix-in the options that are not socketserver's, and the documentation of all of them."""
    for option in OPTIONS.values():
        if option.name not in _SOCKETSERVERS:
            setattr(mixin, option.name, LiveOption(option.name, option.default) if option.live else option.default)
    document(mixin)


def document(server_class: type) -> None:
    """Add to the docstring of a class what `help` is to show of the options."""
    paragraphs = [f"``{option.name}`` ({option.default!r}): {option.meaning}" for option in OPTIONS.values()]
    wrapped = [textwrap.fill(text, 116, initial_indent="- ", subsequent_indent="  ") for text in paragraphs]
    text = textwrap.indent("\n".join(["Options (name, default, meaning):", "", *wrapped]), "    ")
    server_class.__doc__ = f"{(server_class.__doc__ or '').rstrip()}\n\n{text}\n    "


def settle(server_class: type) -> None:
    """Decide which class's attributes win on a new subclass of the mix-in.

    What a program's class sets wins over this package's defaults, even if that class comes after the mix-in in the
    method resolution order, as in ``class Server(ThreadedMixIn, ExistingServer)``. socketserver's own values lose.
    """
    package = __name__.partition(".")[0]
    for name in _YIELDS:
        owners = [cls for cls in server_class.__mro__ if name in vars(cls)]
        theirs = [cls for cls in owners if cls.__module__.partition(".")[0] not in (package, "socketserver")]
        if theirs:
            if theirs[0] is not owners[0]:
                setattr(server_class, name, vars(theirs[0])[name])
        elif name in _SOCKETSERVERS and (not owners or owners[0].__module__ == "socketserver"):
            setattr(server_class, name, OPTIONS[name].default)
    # A property or a slot has its value on the instance, which is checked when that serves.
    plain = {name: value for name, value in vars(server_class).items()
             if name in OPTIONS and not hasattr(type(value), "__get__")}
    check(plain)
    for name, value in plain.items():
        if OPTIONS[name].live:
            setattr(server_class, name, LiveOption(name, value))
