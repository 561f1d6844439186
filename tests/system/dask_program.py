"""A server whose handlers compute in a Dask cluster. ``python -m tests.system.dask_program ADDRESS KIND SECONDS``.

It prints its port, and does what it is told on standard input, a line each: ``connect ADDRESS SECONDS``, to use
another scheduler from then on; ``wait``, until a call is running; and ``stop``. It prints what comes of it. A client
sends ``[SECONDS, FUNCTION, ARGUMENTS...]``, in JSON, and gets the function's result, or the exception with its notes.
"""
from __future__ import annotations

import json
import logging
import sys
from contextlib import ExitStack
from typing import Any

import distributed

from threaded_echo import LineHandler, ServerStopping, ThreadedTCPServer

from .. import calls
from ..tools import until


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    kinds = [kind.__name__ for kind in type(error).__mro__[:-2]]
    return " ".join([*kinds, str(error), *getattr(error, "__notes__", ())]).replace("\n", " ")


class Handler(LineHandler):
    """Has functions called, one after the other."""

    def process(self, line: bytes) -> bytes:
        """Call one."""
        seconds, name, *arguments = json.loads(line)
        arguments = [tuple(each) if isinstance(each, list) else each for each in arguments]  # addresses
        try:
            result = self.server.offload_within(seconds, getattr(calls, name), *arguments)
            return f"{result}".encode()
        except ServerStopping:
            print("a call is given up", flush=True)
            raise
        except Exception as error:
            return describe(error).encode()


def main(address: str, kind: str, seconds: str) -> None:
    """Serve. Dask's client itself is the executor, or what it makes. ``seconds``: how long it looks for a scheduler."""
    logging.disable()  # Dask tells a lot of what happens here
    with ExitStack() as clients:
        def connect(address: str, seconds: str) -> Any:
            """Have a client, and what to use it by."""
            client = clients.enter_context(distributed.Client(address, timeout=float(seconds), set_as_default=False))
            return client if kind == "client" else client.get_executor(pure=False)

        with ThreadedTCPServer(("127.0.0.1", 0), Handler, executor=connect(address, seconds)).start() as server:
            print(server.server_address[1], flush=True)
            for line in sys.stdin:
                order, *arguments = line.split()
                try:
                    if order == "connect":
                        server.executor = connect(*arguments)
                        print("connected", flush=True)
                    elif order == "wait":
                        until(lambda: server.stats().offloads_running)
                        print("running", flush=True)
                    else:
                        print(server.stop(0), flush=True)
                except Exception as error:
                    print(describe(error), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
