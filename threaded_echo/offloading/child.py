"""What runs in a worker process. The server's side is in `worker`.

Invariants:

- The worker answers each message in turn: `BEGUN` when it has received a call, then the call's outcome.
- Whatever a call raises goes back to the server; only the end of the pipe ends the worker.
- The worker ends when the server's process has ended. A function in C that keeps the interpreter's lock delays this
  until it returns.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any

from .messages import Message, Received

READY = b"ready"
"""What a worker sends when it has started."""

BEGUN = b"begun"
"""What a worker sends when it has received a call. If it dies later, the call is lost."""

NICENESS = 10
"""How much a worker lowers its priority: the server's replies go first, and the workers use what is left."""


def work(connection: Connection) -> None:  # pragma: no cover - in another process, which is not measured
    """Run calls until the server closes its end of the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server alone decides what a terminal's interrupt means
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    if hasattr(os, "register_at_fork"):
        # A process that a call forks would keep the connection open when this one dies, or reply in its place.
        os.register_at_fork(after_in_child=connection.close)
    end_with_the_server()
    with contextlib.suppress(EOFError, OSError):
        connection.send_bytes(READY)
        while True:
            with Received(connection) as call:
                connection.send_bytes(BEGUN)
                outcome = run_call(call)
            with outcome:
                outcome.send(connection)


def end_with_the_server() -> None:  # pragma: no cover - as before
    """End this process, whatever it is doing, when the server's process has ended."""
    server = multiprocessing.parent_process()
    assert server is not None, "this is no worker"

    def follow() -> None:
        ends: list[int] = [server.sentinel]  # a pipe that ends with the server
        with contextlib.suppress(AttributeError, OSError):
            # A process that the server has forked keeps that pipe open; this descriptor ends all the same.
            ends.append(os.pidfd_open(server.pid or 0))
        if os.getppid() == server.pid:  # otherwise it has ended, and its number may be another's
            wait(ends)
        os._exit(1)

    threading.Thread(target=follow, name="threaded_echo end with the server", daemon=True).start()


def run_call(call: Received) -> Message:
    """Run a call; return its outcome: whether it succeeded, the result or the exception, the exception's traceback."""
    name = call.load()
    try:
        function, args, kwargs = call.load()
    except Exception as error:  # whatever importing a module, or an object's own unpickling, raises
        reason = ImportError(f"a worker process cannot load {name}: {describe(error)}")
        return Message((False, reason, traceback.format_exc()))
    outcome: tuple[bool, Any, str]
    try:
        outcome = True, function(*args, **kwargs), ""
    except BaseException as error:  # the handler's thread raises it, SystemExit included
        outcome = False, error, traceback.format_exc()
    return pickle_outcome(name, outcome)


def pickle_outcome(name: str, outcome: tuple[bool, Any, str]) -> Message:
    """Pickle the outcome of a call; if it cannot be pickled, a TypeError in its place."""
    try:
        message = Message(outcome)
        if not outcome[0]:
            # An exception whose __init__ has other parameters than its args can be pickled, but not unpickled.
            pickle.loads(message.data)
        return message
    except Exception as error:  # whatever an object's own pickling raises
        what = "returned" if outcome[0] else f"raised, {describe(outcome[1])},"
        unsendable = TypeError(f"what {name} {what} cannot be sent back: {describe(error)}")
        return Message((False, unsendable, outcome[2]))


def describe(error: BaseException) -> str:
    """Return an exception's type and text, or only its type if its own ``__str__`` fails."""
    return "".join(traceback.format_exception_only(error)).strip()
