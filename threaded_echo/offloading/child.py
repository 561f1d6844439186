"""What runs in a worker process; `workers` is the other side."""
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

BEGUN = b"begun"
"""What a worker says when it has received a call: from here on, its death has cost that."""

NICENESS = 10
"""How much lower a worker's priority is: replies go first, and idle processors are used all the same."""


def work(connection: Connection) -> None:  # pragma: no cover - in another process, where nothing measures it
    """Run calls until the server hangs up."""
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
        connection.send_bytes(b"ready")
        while True:
            call = connection.recv_bytes()
            connection.send_bytes(BEGUN)
            connection.send_bytes(run_call(call))


def end_with_the_server() -> None:  # pragma: no cover - as before
    """End this process, in whatever it does, once the server's has ended."""
    server = multiprocessing.parent_process()
    assert server is not None, "this is no worker"
    with contextlib.suppress(ImportError, AttributeError, OSError):
        # The kernel's own doing, also while a call in C keeps every Python thread from running: the pipe that ends with
        # the server raises SIGIO, which ends a process that has not asked for anything else (fcntl(2), O_ASYNC).
        import fcntl
        fcntl.fcntl(server.sentinel, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(server.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(server.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)

    def follow() -> None:
        deaths: list[int] = [server.sentinel]
        with contextlib.suppress(AttributeError, OSError):
            # A process that the server has forked keeps that pipe open.
            deaths.append(os.pidfd_open(server.pid or 0))
        if os.getppid() == server.pid:
            wait(deaths)
        os._exit(1)

    threading.Thread(target=follow, name="threaded_echo end with the server", daemon=True).start()


def run_call(call: bytes) -> bytes:
    """Run a pickled call; return the pickled outcome: whether it succeeded, the result or exception, its traceback."""
    name, rest = pickle.loads(call)
    try:
        function, args, kwargs = pickle.loads(rest)
    except Exception as error:  # whatever importing a module, or an object's own unpickling, raises
        reason = ImportError(f"a worker process cannot load {name}: {describe(error)}")
        return pickle.dumps((False, reason, traceback.format_exc()))
    outcome: tuple[bool, Any, str]
    try:
        outcome = True, function(*args, **kwargs), ""
    except BaseException as error:  # SystemExit, too, is the handler's
        outcome = False, error, traceback.format_exc()
    try:
        pickled = pickle.dumps(outcome)
        if not outcome[0]:
            pickle.loads(pickled)  # an exception whose __init__ wants more than its args cannot be made again
        return pickled
    except Exception as error:  # whatever an object's own pickling raises
        what = "returned" if outcome[0] else f"raised, {describe(outcome[1])},"
        unsendable = TypeError(f"what {name} {what} cannot be sent back: {describe(error)}")
        return pickle.dumps((False, unsendable, outcome[2]))


def describe(error: BaseException) -> str:
    """Say what an exception is, also where its own ``__str__`` fails."""
    return "".join(traceback.format_exception_only(error)).strip()
