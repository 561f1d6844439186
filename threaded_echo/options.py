"""The options of a server: their names, their checks, and whose value wins.

An option is a class attribute, as in socketserver; the concrete servers take each as a keyword too.
"""
from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Callable, Mapping
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
    """Raise TypeError or ValueError, naming ``name``, unless ``value`` is a number of seconds that can be waited."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or not 0 <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} must be from 0 to {threading.TIMEOUT_MAX:.0f} seconds, not {value!r}")


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


CHECKS: Mapping[str, Callable[[str, object], None]] = {
    "allow_reuse_address": _flag,
    "request_queue_size": _count,
    "daemon_threads": _flag,
    "reuse_threads": _flag,
    "drain_timeout": check_seconds,
    "force_timeout": check_seconds,
    "executor": _executor,
    "max_offloads": _limit,
    "at_offload_limit": _at_limit,
    "logs_per_client": _limit,
}

# socketserver's own attributes, for which this package has another default. They are not in the mix-in's body, where
# they would hide what a program's class sets: see `settle`.
DEFAULTS: Mapping[str, Any] = {
    # Elsewhere than on POSIX the option lets two servers share a port.
    "allow_reuse_address": os.name == "posix",
    # socketserver's 5 drops connections in any burst; the kernel caps this at its own limit.
    "request_queue_size": socket.SOMAXCONN,
    # A handler that never ends must not keep the interpreter from ending; a stop joins the threads all the same.
    "daemon_threads": True,
}

# Names for which a class below the mix-in may have a meaning of its own, which then wins.
_YIELDS = (*CHECKS, "start", "run", "stop", "stopping", "clients", "stats", "offload", "handle_error",
           "process_request_thread")


def check(options: Mapping[str, object]) -> None:
    """Raise TypeError for an unknown or mistyped option and ValueError for one out of range; each names the option."""
    for name, value in options.items():
        if name not in CHECKS:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(CHECKS)}")
        CHECKS[name](name, value)


def check_server(server: object) -> None:
    """Check the options of a server that is about to serve, wherever they were set."""
    check({name: getattr(server, name) for name in CHECKS if hasattr(server, name)})


def settle(server_class: type) -> None:
    """Settle, on a new subclass of the mix-in, whose attributes win.

    What a program's class sets wins over this package's defaults, also where that class comes after the mix-in in the
    method resolution order, as in ``class Server(ThreadedMixIn, ExistingServer)``. socketserver's own values lose.
    """
    package = __name__.partition(".")[0]
    for name in _YIELDS:
        owners = [cls for cls in server_class.__mro__ if name in vars(cls)]
        theirs = [cls for cls in owners if cls.__module__.partition(".")[0] not in (package, "socketserver")]
        if theirs:
            if theirs[0] is not owners[0]:
                setattr(server_class, name, vars(theirs[0])[name])
        elif name in DEFAULTS and (not owners or owners[0].__module__ == "socketserver"):
            setattr(server_class, name, DEFAULTS[name])
    check({name: vars(server_class)[name] for name in CHECKS if name in vars(server_class)})
