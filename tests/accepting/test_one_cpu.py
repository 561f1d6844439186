"""The option ``one_cpu``: which threads and processes are kept on one processor, and which are not."""
from __future__ import annotations

import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from threaded_echo import LineHandler, ThreadedTCPServer

from .. import calls
from ..conftest import LOOPBACK
from ..tools import ask, connect, receive_all, running, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform has no processor affinity")


class WhereItRuns(LineHandler):
    """Replies with the processors of its thread, or with those of an offloaded call."""

    def process(self, line):
        """Look."""
        found = self.offload(calls.affinity) if line == b"offload" else os.sched_getaffinity(0)
        return json.dumps(sorted(found)).encode()


def where(server, question=b"here\n"):
    """Ask a server's handler where it runs."""
    return set(json.loads(ask(server, question)))


def test_serving_and_handler_threads_are_kept_on_one_processor_until_the_loop_ends():
    """It is the same one for all of them, and the serving thread has its own processors back afterwards."""
    everywhere, seen, polled = os.sched_getaffinity(0), [], threading.Event()

    class Server(ThreadedTCPServer):
        """Notes where its loop runs."""

        def service_actions(self):
            """Look."""
            seen.append(os.sched_getaffinity(0))
            polled.set()

    with Server(LOOPBACK, WhereItRuns, one_cpu=True) as server:
        def clients():
            seen.extend(where(server) for _ in range(3))
            wait_until(polled)
            server.shutdown()

        with running(clients):
            server.serve_forever(poll_interval=0.01)
        assert os.sched_getaffinity(0) == everywhere
    assert len(seen) > 3
    [one] = set(map(frozenset, seen))
    assert len(one) == 1 and one <= everywhere


def test_thread_that_starts_the_server_stays_where_it_is(serve):
    """The background thread alone is kept on one processor, with all that it starts."""
    everywhere = os.sched_getaffinity(0)
    server = serve(WhereItRuns, one_cpu=True)
    assert os.sched_getaffinity(0) == everywhere
    assert len(where(server)) == 1


def test_thread_that_handles_a_request_is_let_go_afterwards():
    """The handler's thread, which it has started meanwhile, stays on one processor."""
    everywhere = os.sched_getaffinity(0)
    with ThreadedTCPServer(LOOPBACK, WhereItRuns, one_cpu=True) as server, connect(server) as client:
        server.handle_request()
        assert os.sched_getaffinity(0) == everywhere
        client.sendall(b"here\n")
        client.shutdown(1)
        assert len(json.loads(receive_all(client))) == 1


def test_threads_run_everywhere_unless_the_option_is_set(serve):
    """It is off by default."""
    assert where(serve(WhereItRuns)) == os.sched_getaffinity(0)


@pytest.mark.parametrize("kind", ["workers", "threads"])
def test_offloaded_calls_run_everywhere_and_their_handlers_do_not(serve, kind):
    """Worker processes, and the threads that an executor starts in the handler's thread, have the whole set."""
    everywhere = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as threads:
        server = serve(WhereItRuns, one_cpu=True, executor=1 if kind == "workers" else threads)
        assert where(server, b"offload\n") == everywhere
        assert len(where(server)) == 1, "the handler is on one processor again"
        server.stop()


def test_call_from_outside_a_handler_leaves_its_thread_where_it_is(serve):
    """The program's own thread is kept nowhere, before and after."""
    everywhere = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as threads:
        server = serve(WhereItRuns, one_cpu=True, executor=threads)
        assert server.offload(calls.affinity) == everywhere == os.sched_getaffinity(0)


def test_platform_without_affinity_serves(serve, monkeypatch):
    """The option has no effect there."""
    everywhere = os.sched_getaffinity(0)
    monkeypatch.delattr(os, "sched_setaffinity")
    assert where(serve(WhereItRuns, one_cpu=True)) == everywhere


def test_sandbox_that_forbids_it_serves(serve, monkeypatch, caplog):
    """It is logged at DEBUG, and the threads run where they did before."""
    def fail(process, processors):
        raise PermissionError(1, "Operation not permitted")

    caplog.set_level(logging.DEBUG, logger="threaded_echo")
    everywhere = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_setaffinity", fail)
    assert where(serve(WhereItRuns, one_cpu=True)) == everywhere
    assert "cannot be kept on one processor" in caplog.text
