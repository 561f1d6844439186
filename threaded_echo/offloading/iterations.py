"""Iterating over what a generator function yields in a worker process. The worker's side is in `child`.

Invariants:

- The worker is at most `AHEAD` items ahead of the handler. It goes on when the handler asks for the next one.
- When the handler is done with the iteration, so is the worker: it has sent the last message of it, or it is killed. It
  has `CLOSE_TIMEOUT` seconds to close the generator.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from ..errors import ServerStopping
from ..observe.logs import about
from .call import CLOSE_TIMEOUT, Call, CallerLeft
from .messages import CLOSE, ITEM, NEXT, Message
from .wire import Disconnected
from .worker import Worker

logger = logging.getLogger("threaded_echo")


def iterate(worker: Worker, call: Message, caller: Call) -> Iterator[Any]:
    """Iterate over what a call yields in a worker.

    Raises NotBegun and WorkerDied as `Worker.call`; ConnectionAbortedError if the connection of its client is lost;
    TimeoutError, after which the worker has ended, if its time is up while an item is waited for or received; and
    ServerStopping if a stop has cut the client meanwhile.
    """
    is_over, is_connected = False, True
    try:
        reply = worker.exchange(call, caller)
        call.close()  # it is not sent again, and keeps the size of its buffers
        while True:
            is_over = reply.kind != ITEM
            with reply:
                item = worker.open(reply)
            if is_over:
                return
            yield item
            del item  # it may be large
            reply = worker.ask(NEXT, caller)
    except CallerLeft as left:
        is_connected = left.is_connected
    finally:
        if not is_over and worker.is_alive():
            close(worker, caller)
    caller.check(is_connected)
    raise ServerStopping("the server has ended this call as it stopped")


def close(worker: Worker, caller: Call) -> None:
    """Have a worker close its generator, and wait for that; kill it if that takes longer than CLOSE_TIMEOUT.

    One whose caller is late is killed at once.
    """
    if caller.is_late():
        worker.end()
        return
    deadline = time.monotonic() + CLOSE_TIMEOUT
    try:
        worker.limit(None)  # it is no caller's any more
        worker.limit(deadline)
        worker.send(CLOSE)
        while (reply := worker.receive(timeout=max(0, deadline - time.monotonic()))).kind == ITEM:
            reply.skip()
    except (Disconnected, TimeoutError):
        worker.end()
        return
    except BaseException:  # a signal handler has raised
        worker.end()
        raise
    worker.end_call()
    try:
        with reply:
            worker.open(reply)
    except Exception as error:  # the function's own
        logger.warning("%s: what an iteration raised after it was left: %s", caller.who, error, exc_info=error,
                       extra=about(caller.client, "iteration"))
