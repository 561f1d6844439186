"""The options of a server: their names, their checks, and whose value wins.

An option is a class attribute, as in socketserver; the concrete servers take each as a keyword too.
"""
from __future__ import annotations

import math
import os
import socket
import textwrap
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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


def _seconds_or_none(name: str, value: object) -> None:
    if value is not None:
        check_seconds(name, value)


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


def _at_limit(name: str, value: object) -> None:
    if value not in ("wait", "refuse"):
        raise ValueError(f"{name} must be 'wait' or 'refuse', not {value!r}")


@dataclass(frozen=True)
class Option:
    """One option: its default, its check, and what it means."""

    name: str
    default: Any
    check: Callable[[str, object], None]
    meaning: str


OPTIONS: Mapping[str, Option] = {option.name: option for option in (
    # Elsewhere than on POSIX the option lets two servers share a port.
    Option("allow_reuse_address", os.name == "posix", _flag,
           "Listen although connections of an earlier server on this address still linger."),
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
           "processor gives. Worker processes, and the threads of an executor, are not kept there; other processes "
           "that a handler starts are."),
    Option("drain_timeout", 5.0, check_seconds,
           "Seconds that a stop waits for handlers to end by themselves, after it has woken them."),
    Option("force_timeout", 1.0, check_seconds,
           "Seconds that it then waits for the rest, after it has cut their connections."),
    Option("executor", None, _executor,
           "Where offload() runs functions. None: in the calling thread. A number: in so many worker processes, which "
           "the server starts before its first client, and ends. WorkerProcesses(n, initializer=function): the same, "
           "and each is prepared by a call of that function. WorkerThreads(n): in so many threads at a lower "
           "priority, for Python without the GIL. Or any object with a submit() like that of "
           "concurrent.futures.Executor, which its owner shuts down."),
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
)}

# Options of socketserver's own. They are not in the mix-in's body, where they would hide what a program's class sets:
# see `settle`.
_SOCKETSERVERS = ("allow_reuse_address", "request_queue_size", "daemon_threads")

# Names for which a class below the mix-in may have a meaning of its own, which then wins.
_YIELDS = (*OPTIONS, "start", "run", "stop", "stopping", "clients", "stats", "offload", "offload_within",
           "offload_iter", "offloads", "handle_error",
           "process_request_thread")


def check(options: Mapping[str, object]) -> None:
    """Raise TypeError for an unknown or mistyped option and ValueError for one out of range; each names the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(OPTIONS)}")
        OPTIONS[name].check(name, value)


def check_server(server: object) -> None:
    """Check the options of a server that is about to serve, wherever they were set."""
    check({name: getattr(server, name) for name in OPTIONS if hasattr(server, name)})


def install(mixin: type) -> None:
    """Give the mix-in the options that are not socketserver's, and the documentation of all of them."""
    for option in OPTIONS.values():
        if option.name not in _SOCKETSERVERS:
            setattr(mixin, option.name, option.default)
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
    check({name: value for name, value in vars(server_class).items()
           if name in OPTIONS and not hasattr(type(value), "__get__")})
