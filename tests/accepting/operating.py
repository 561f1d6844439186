"""A server that runs in the tests' own thread, while another one operates it."""
from __future__ import annotations

import os
import signal

from threaded_echo import ThreadedTCPServer

from ..conftest import LOOPBACK
from ..tools import running


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def server_of(handler, server_class=ThreadedTCPServer, **options):
    """Make a server that listens, and does not serve yet."""
    return server_class(LOOPBACK, handler, **options)


def send(number):
    """Send this process a signal, which the kernel hands to the main thread."""
    os.kill(os.getpid(), number)


def run(server, script, duration=None):
    """Run a server in this thread, and a script in another; return the report.

    The server listens already. When a client has been served, `run` has begun, and obeys signals.
    """
    outcome = []

    def operate():
        try:
            script()
        except BaseException as error:
            outcome.append(error)
            server.stop(0)

    with running(operate):
        report = server.run(duration)
    if outcome:
        raise outcome[0]
    return report
