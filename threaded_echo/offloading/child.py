"""What runs in a worker process. The server's side is in `worker`.

Invariants:

- The worker answers each call in turn. It tells that it has begun as soon as the call has begun to arrive: if it dies
  later, the call is lost.
- Whatever a call raises goes back to the server; only the end of the channel ends the worker.
- The worker ends when the server's process has ended. A function in C that keeps the interpreter's lock delays this
  until it returns.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from .call import AHEAD
from .channel import Channel, open_end
from .messages import CALL, CLOSE, ERROR, INITIALIZE, ITEM, ITERATE, NEXT, READY, RESULT, Message, Received
from .wire import Disconnected

NICENESS = 10
"""How much a worker lowers its priority: the server's replies go first, and the workers use what is left."""


def work(end: tuple[Any, Any]) -> None:  # pragma: no cover - in another process, which is not measured
    """Run calls until the server closes its end of the channel."""
    channel = open_end(end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server alone decides what a terminal's interrupt means
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    if hasattr(os, "register_at_fork"):
        # A process that a call forks would keep the channel open when this one dies, or reply in its place.
        os.register_at_fork(after_in_child=channel.close)
    end_with_the_server()
    with contextlib.suppress(Disconnected):
        Message(READY, None).send(channel)
        while True:
            with Received(channel) as call:
                if call.kind in (NEXT, CLOSE):  # of an iteration that had ended when these were sent
                    continue
                if call.kind != INITIALIZE:
                    channel.tell_begun()
                outcome = run_iteration(call, channel) if call.kind == ITERATE else run_call(call)
            with outcome:
                outcome.send(channel)


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
    """Run a call; return its outcome: the result, or the exception with its traceback."""
    try:
        run = load_call(call)
        result = run()
    except Disconnected:
        raise
    except BaseException as error:  # the handler's thread raises it, SystemExit included
        return pickle_error(call.name, error, traceback.format_exc())
    return pickle_result(call.name, result if call.kind == CALL else None)


def run_iteration(call: Received, channel: Channel) -> Message:
    """Send what a generator function yields; return what ends the iteration: no result, or an exception.

    It is at most `AHEAD` items ahead of the server. When the server wants no more of them, the generator is closed, so
    that its ``finally`` blocks are run.
    """
    try:
        items = iter(load_call(call)())
        try:
            ahead = 0
            for item in items:
                with pickle_item(call.name, item) as message:
                    message.send(channel)
                del item
                ahead += 1
                while ahead == AHEAD or channel.has_data():
                    with Received(channel) as answer:
                        if answer.kind == CLOSE:
                            return Message(RESULT, None)
                    ahead -= 1
        finally:
            getattr(items, "close", bool)()
    except Disconnected:
        raise
    except BaseException as error:  # as in run_call
        return pickle_error(call.name, error, traceback.format_exc())
    return Message(RESULT, None)


def load_call(call: Received) -> Callable[[], Any]:
    """Load what is to be called."""
    try:
        function, args, kwargs = call.load()
    except Disconnected:
        raise
    except Exception as error:  # whatever importing a module, or an object's own unpickling, raises
        raise ImportError(f"a worker process cannot load {call.name}: {describe(error)}") from error
    return partial(function, *args, **kwargs)


def pickle_item(name: str, item: Any) -> Message:
    """Pickle what a generator has yielded. Raises TypeError if it cannot be pickled."""
    try:
        return Message(ITEM, item)
    except Exception as error:  # whatever an object's own pickling raises
        raise TypeError(f"what {name} yielded cannot be sent back: {describe(error)}") from error


def pickle_result(name: str, result: Any) -> Message:
    """Pickle what a call has returned; if it cannot be pickled, a TypeError in its place."""
    try:
        return Message(RESULT, result)
    except Exception as error:  # whatever an object's own pickling raises
        return Message(ERROR, (TypeError(f"what {name} returned cannot be sent back: {describe(error)}"), ""))


def pickle_error(name: str, raised: BaseException, text: str) -> Message:
    """Pickle what a call has raised; if it cannot be pickled, or unpickled, a TypeError in its place."""
    try:
        message = Message(ERROR, (raised, text))
        message.check()  # an exception may have an __init__ with other parameters than its args
        return message
    except Exception as error:  # whatever an object's own pickling raises
        what = f"what {name} raised, {describe(raised)}, cannot be sent back: {describe(error)}"
        return Message(ERROR, (TypeError(what), text))


def describe(error: BaseException) -> str:
    """Return an exception's type and text, or only its type if its own ``__str__`` fails."""
    return "".join(traceback.format_exception_only(error)).strip()
