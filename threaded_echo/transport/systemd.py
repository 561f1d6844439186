"""What systemd hands to a service, and what it wants to be told.

See sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). All of it is in environment variables. Without them,
nothing here does anything.
"""
from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

from ..observe.logs import about
from .several import fault_of

logger = logging.getLogger("threaded_echo")

_FIRST = 3  # SD_LISTEN_FDS_START
_PATIENCE = 1.0  # seconds that telling may take if systemd's queue is full


class NotGiven(RuntimeError):
    """The reason why there are no sockets to take."""


def take_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets that this process was handed, which are then the caller's; unset the variables.

    So children neither inherit the variables nor, since they are closed on exec, the sockets. Raises NotGiven if there
    are none, or if one is not a stream socket that listens.
    """
    found = {name: environ.get(name) for name in ("LISTEN_PID", "LISTEN_FDS")}
    if None in found.values():
        raise NotGiven("systemd has handed in no sockets: the variables LISTEN_PID and LISTEN_FDS are not set")
    pid, count = (value if value and value.isascii() and value.isdigit() else "" for value in found.values())
    if not pid or not count or not 1 <= int(count) <= 4096:
        raise NotGiven("the variables of systemd's sockets are wrong: "
                       f"LISTEN_PID={found['LISTEN_PID']!r}, LISTEN_FDS={found['LISTEN_FDS']!r}")
    if int(pid) != os.getpid():
        raise NotGiven(f"systemd has handed its sockets to process {pid}, and this is {os.getpid()}: "
                       "start it without a shell between, or use exec there")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    numbers = range(_FIRST, _FIRST + int(count))
    for number in numbers:  # of all of them first, so that none is inherited if another is wrong
        with suppress(OSError):
            os.set_inheritable(number, False)
    taken: list[socket.socket] = []
    try:
        for number in numbers:
            taken.append(_take(number))
    except NotGiven:
        for listener in taken:
            listener.close()
        raise
    return taken


def _take(number: int) -> socket.socket:
    """Make a socket of a descriptor."""
    try:
        listener = socket.socket(fileno=number)
    except OSError as error:
        raise NotGiven(f"descriptor {number} that systemd has handed in is not a socket: {error.strerror}") from error
    fault = fault_of(listener)
    if fault is not None:
        listener.close()
        raise NotGiven(f"descriptor {number} that systemd has handed in {fault}")
    return listener


def notify(state: str) -> None:
    """Tell systemd a state, such as ``READY=1``, if it wants to be told. An error is logged.

    *Thread safety*: any thread. Takes at most a second.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_PATIENCE)
            sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            sender.send(state.encode())
    except OSError as error:
        logger.warning("systemd cannot be told %s: %s", state, error, extra=about(None, "systemd"))


def watchdog_interval() -> float | None:
    """Return the seconds after which systemd wants to be told that this process lives: half of its limit.

    ``None`` if it does not want to be told.
    """
    limit, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not os.environ.get("NOTIFY_SOCKET") or pid != str(os.getpid()):
        return None
    if not (limit.isascii() and limit.isdigit() and int(limit) > 0):
        return None
    return int(limit) / 2_000_000
