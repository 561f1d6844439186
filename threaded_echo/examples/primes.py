"""Counts primes: a handler that computes, in its own thread, in worker processes, or on a cluster.

Run ``python3 -m threaded_echo.examples.primes --workers 2``, then ``nc 127.0.0.1 9999``, and type ``100``: there are 25
primes below it. While one client has typed ``900000000 910000000``, the others are answered as quickly as before.
"""
from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from math import isqrt
from typing import Any

from threaded_echo import LineHandler, OffloadRefused, ThreadedTCPServer, WorkerDied

HIGHEST, MOST = 10**9, 10**7
"""The highest end of a range that may be asked for, and how many numbers may be in it: less than a second's work."""

_DASK_TIMEOUT = 10.0  # seconds to reach a scheduler


def count_primes(low: int, high: int) -> int:
    """Count the primes p with ``low <= p < high``, by a sieve of that range alone."""
    low = max(low, 2)
    if high <= low:
        return 0
    is_prime = bytearray(b"\1") * (high - low)  # of low, low + 1 and so on
    for divisor in range(2, isqrt(high - 1) + 1):
        first = max(divisor, -(-low // divisor)) * divisor
        is_prime[first - low::divisor] = bytes(len(range(first, high, divisor)))
    return sum(is_prime)


class PrimesHandler(LineHandler):
    """Answers ``LOW HIGH`` with the number of primes in low <= p < high, and ``HIGH`` with that of all below it."""

    def process(self, line: bytes) -> bytes:
        """Return the answer, or an error that leaves the client connected."""
        try:
            low, high = parse_range(line)
        except ValueError as error:
            return f"error: {error}".encode()
        try:
            return b"%d" % self.offload(count_primes, low, high)
        except (WorkerDied, OffloadRefused) as error:
            return f"error: {error}".encode()


def parse_range(line: bytes) -> tuple[int, int]:
    """Read ``LOW HIGH`` or ``HIGH``. Raises ValueError, with the reason, for anything else and for too much work."""
    words = line.split()
    try:
        low, high = map(int, words if len(words) > 1 else [b"0", *words])
    except ValueError:
        raise ValueError("send one whole number, or two: LOW HIGH") from None
    if high > HIGHEST or high - low > MOST:
        raise ValueError(f"the range may end at {HIGHEST}, and hold {MOST} numbers, but no more")
    return low, high


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="primes", description="Count primes, for many clients at once.")
    parser.add_argument("--port", type=int, default=9999, help="0 picks a free one (default: %(default)s)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--workers", type=int, metavar="N", help="count in so many processes (default: in threads)")
    place.add_argument("--dask", metavar="SCHEDULER_ADDRESS", help="count on the workers of a Dask cluster")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        executor = options.workers if options.dask is None else connect_to_dask(stack, options.dask)
        try:
            server = ThreadedTCPServer(("127.0.0.1", options.port), PrimesHandler, executor=executor)
            stack.enter_context(server)  # closes it, also if it cannot serve
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise SystemExit(f"primes: cannot serve: {error}") from None


def connect_to_dask(stack: ExitStack, address: str) -> Any:
    """Return a client of a Dask cluster, where its calls run, until the stack is left. Raises SystemExit."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise SystemExit(f"primes: --dask needs the package distributed: {error}") from None
    try:
        distributed.comm.get_address_host_port(address)  # a Client is slow to end that has met a wrong one
        return stack.enter_context(distributed.Client(address, timeout=_DASK_TIMEOUT, set_as_default=False))
    except (OSError, ValueError) as error:
        raise SystemExit(f"primes: cannot reach the Dask scheduler {address!r}: {error}") from None


if __name__ == "__main__":
    main()
