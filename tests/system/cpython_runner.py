"""Run one of CPython's own test modules with ThreadedMixIn in the place of socketserver's mix-in.

A program of its own, since it changes socketserver for the whole process::

    python -m tests.system.cpython_runner test_socketserver [--stock]

What the tests tell goes to standard error; a JSON object with the outcome is the last line of standard output.
"""
from __future__ import annotations

import http.server
import json
import socketserver
import sys
import threading
import unittest
import xmlrpc.server
from collections import Counter
from types import ModuleType

import test.support

from threaded_echo import Client, ThreadedMixIn

SERVED: Counter[str] = Counter()
"""How many clients a handler thread of the mix-in has served, by the kind of their connection."""

_lock = threading.Lock()  # guards SERVED


class CountingMixIn(ThreadedMixIn):
    """The mix-in, with proof that it was used."""

    __module__ = "socketserver"  # the test modules compare the names of a module with its __all__
    __qualname__ = "ThreadingMixIn"

    def client_connected(self, client: Client) -> None:
        """Count a client, in its handler thread."""
        with _lock:
            SERVED["datagram" if isinstance(client._connection.request, tuple) else "stream"] += 1


def replace(module: ModuleType, name: str, *bases: type) -> None:
    """Put a class with the mix-in in the place of ``module.name``, for those who look it up from now on."""
    setattr(module, name, type(name, bases, {"__module__": module.__name__}))


def put_in_place() -> None:
    """Put the mix-in in the place of socketserver's, and ahead of the servers that have none."""
    socketserver.ThreadingMixIn = CountingMixIn
    for name in ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"):
        replace(socketserver, f"Threading{name}", CountingMixIn, getattr(socketserver, name))
    plain = http.server.HTTPServer
    replace(http.server, "HTTPServer", CountingMixIn, plain)
    replace(http.server, "ThreadingHTTPServer", CountingMixIn, plain)
    replace(xmlrpc.server, "SimpleXMLRPCServer", CountingMixIn, xmlrpc.server.SimpleXMLRPCServer)
    # The tests set attributes of SimpleXMLRPCServer, and the servers built on it have to see them.
    for name in ("MultiPathXMLRPCServer", "DocXMLRPCServer"):
        replace(xmlrpc.server, name, xmlrpc.server.SimpleXMLRPCServer, getattr(xmlrpc.server, name))


def main(module: str, *options: str) -> None:
    """Run the tests, and print which of them have failed."""
    if "--stock" not in options:
        put_in_place()
    test.support.use_resources = {"network": None}  # as regrtest -u network has it
    test.support.verbose = 0
    tests = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
    result = unittest.TextTestRunner(stream=sys.stderr).run(tests)
    broken = [case.id() for case, _ in result.failures + result.errors]
    broken += [case.id() for case in result.unexpectedSuccesses]
    print(json.dumps({"run": result.testsRun, "skipped": len(result.skipped), "failed": broken, "served": SERVED}))


if __name__ == "__main__":
    main(*sys.argv[1:])
