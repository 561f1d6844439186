"""What every live client is doing, as text; and the signal that has it logged.

Guarantees:

- A dump waits for no client and no lock that a client's thread may hold for long.
- The signal's handler takes no lock and logs nothing, since the main thread, which it interrupts, may be in the middle
  of either. It starts a thread, which makes the dump and ends. A stop joins that thread.
"""
from __future__ import annotations

import _thread
import logging
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

from .clients.client import Client
from .observe.logs import about
from .offloading.call import OffloadedCall
from .stacks import own_frames, stacks_of
from .state import ServerState
from .transport.listeners import show_address

logger = logging.getLogger("threaded_echo")

SIGNAL: int | None = getattr(signal, "SIGUSR1", None)  # Windows has none

_UNREADABLE = "  (its lines cannot be read now)\n"
_NO_THREAD = "  (no thread serves it yet)\n"


def dump(server: Any) -> str:
    """Describe every live client: see ``ThreadedMixIn.dump``."""
    state = ServerState.of(server)
    clients = {client: client.thread for client in state.registry.clients()}
    calls: dict[Client, list[tuple[OffloadedCall, threading.Thread | None]]] = {}
    for call, worker in state.offloads.with_threads():
        if call.client is not None:
            calls.setdefault(call.client, []).append((call, worker))
    # A client without a thread may be in a hook of the program's, which the serving thread is in.
    serving = [loop.thread for loop in state.loops.running.copy()] if None in clients.values() else []
    workers = [worker for found in calls.values() for _, worker in found]
    stacks = {thread: "".join(own_frames(stack))
              for thread, stack in stacks_of([*clients.values(), *serving, *workers]).items()}
    groups: dict[str, list[str]] = {}
    for client, thread in clients.items():
        lines = _NO_THREAD if thread is None else stacks.get(thread, _UNREADABLE)
        lines = "".join((*_show_calls(calls.get(client, ()), stacks), lines))
        groups.setdefault(lines, []).append(_show(client))
    for thread in serving:
        groups.setdefault(stacks.get(thread, _UNREADABLE), []).append(f"thread {thread.name}, which accepts clients")
    count, address = len(clients), getattr(server, "server_address", None)
    parts = [f"{count:,} client{'' if count == 1 else 's'} live{f' on {show_address(address)}' if address else ''}\n"]
    parts += ["".join(f"{name}\n" for name in names) + lines for lines, names in groups.items()]
    return "\n".join(parts)


def _show(client: Client) -> str:
    where = f", from {show_address(client.address)}" if client.address else ""
    reason = f" ({client.reason})" if client.reason else ""
    return f"client {client.number}{where}: {client.state}{reason}, {client.age:.1f} s old"


def _show_calls(calls: Any, stacks: dict[threading.Thread, str]) -> Iterator[str]:
    for call, worker in calls:
        yield f"  offloads {call.function}, {call.state}, {call.seconds:.1f} s old\n"
        if worker is not None:
            yield f"  in thread {worker.name}:\n{stacks.get(worker, _UNREADABLE)}  and its own thread:\n"


class _OnSignal:
    """The handler of a signal, for all servers that share it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._servers: tuple[weakref.ref[Any], ...] = ()  # replaced, never changed: another thread may be reading it
        self._in_progress = threading.Lock()  # held while a dump is made and logged

    def add(self, server: Any) -> None:
        """Dump a server, too."""
        others = [other for other in self._servers if other() not in (None, server)]
        self._servers = (*others, weakref.ref(server))

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # no thread can be started now
            # Not a threading.Thread, whose start takes locks that the main thread may hold.
            _thread.start_new_thread(self._start, ())

    def _start(self) -> None:
        """Start a thread that threading and a stop know of. A thread that threading does not know logs as a dummy."""
        servers = [server for server in (server() for server in self._servers) if server is not None]
        thread = threading.Thread(target=self._log, args=[servers], name=f"threaded_echo {self._name}", daemon=True)
        for server in servers:
            ServerState.of(server).threads.help_out(thread)
        if servers:
            with suppress(RuntimeError):  # as above
                thread.start()

    def _log(self, servers: list[Any]) -> None:
        if self._in_progress.acquire(blocking=False):  # else a dump that was asked for before is still being written
            try:
                for server in servers:
                    logger.warning("%s: %s", self._name, dump(server).rstrip(), extra=about(None, "dump"))
            finally:
                self._in_progress.release()


def dump_on_signal(server: Any, signum: int | None) -> Any:
    """Have a signal log the dump of a server: see ``ThreadedMixIn.dump_on_signal``."""
    if signum is None:
        raise ValueError("this platform has no SIGUSR1: name another signal")
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("dump_on_signal must be called in the main thread, the only one that can set signal handlers")
    before = signal.getsignal(signum)  # a ValueError if there is no such signal
    name = signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"  # a real-time signal
    handler = before if isinstance(before, _OnSignal) else _OnSignal(name)
    handler.add(server)
    try:
        signal.signal(signum, handler)
    except OSError as error:
        raise ValueError(f"{name} cannot be handled: {error}") from error
    return before
