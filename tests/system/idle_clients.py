"""Many clients that connect and say nothing, in a process of their own: ``python -m tests.system.idle_clients PORT N``.

Prints ``connected`` once all of them are, waits until the server has ended each, and prints how many it has.
"""
from __future__ import annotations

import socket
import sys

PER_ADDRESS = 1000  # a client's own address has only so many ports for one server


def main(port: int, count: int) -> None:
    """Connect, and wait for the end."""
    clients = [socket.create_connection(("127.0.0.1", port), source_address=(f"127.0.0.{2 + number // PER_ADDRESS}", 0))
               for number in range(count)]
    print("connected", flush=True)
    print(sum(client.recv(1) == b"" for client in clients))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
