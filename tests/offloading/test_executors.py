"""Where offloaded calls run: the processors, and the memory, of the calls."""
from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from threaded_echo import ServerStopping
from threaded_echo.clients.period import Period
from threaded_echo.offloading.calls import Offloads

from .. import calls
from ..system.programs import CHECKOUT
from ..tools import GUARD, Gate, running, until, wait_until
from .tools import KINDS, executor_of, stay


class Argument:
    """An argument that can be pickled, and watched."""


def accept(argument: Argument) -> None:
    """Return."""


def reject(argument: Argument) -> None:
    """Raise."""
    raise LookupError("rejected")


@contextmanager
def watched_argument() -> Iterator[Argument]:
    """Make an argument that has to be gone when the context is left, without the help of the cycle collector."""
    argument, gone = Argument(), threading.Event()
    watch = weakref.ref(argument, lambda _: gone.set())
    gc.collect()
    gc.disable()
    try:
        yield argument
        del argument
        wait_until(gone)  # an executor's thread may drop it a moment after it has reported the result
        assert watch() is None
    finally:
        gc.enable()


has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()


# Without the GIL, what a thread has made, as a traceback, and another one drops last, is only freed when the first one
# runs again: an executor's idle thread keeps it until its next call.
KEEPING = {"submit", "interpreters"} if has_gil else {"submit", "interpreters", "threads", "worker threads",
                                                      "processes"}


@pytest.mark.parametrize("function", [accept, reject])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in KEEPING])
def test_call_that_is_over_keeps_no_argument(kind, function):
    """Neither its result nor its exception leaves a reference cycle."""
    offloads, period = Offloads(threading.RLock()), Period()
    with executor_of(kind) as executor:
        with watched_argument() as argument:
            try:
                offloads.call(period, None, executor, None, False, function, (argument,), {})
            except LookupError:
                assert function is reject
            argument = None
        period.force()
        offloads.close()


@pytest.mark.parametrize("kind", ["queued", "submitted"])
def test_call_that_a_stop_has_given_up_keeps_no_argument(kind):
    """It waited for a slot, or for an executor that has not begun it."""
    offloads, period, gate = Offloads(threading.RLock()), Period(), Gate()

    def call(argument: Argument) -> None:
        """Call until the stop."""
        with pytest.raises(ServerStopping):
            offloads.call(period, None, executor, 1 if kind == "queued" else None, False, accept, (argument,), {})

    def occupy() -> None:
        """Keep the only slot, or the executor's only thread."""
        offloads.call(Period(), None, executor, None, False, stay, (gate,), {})

    with ThreadPoolExecutor(1) as executor, running(occupy):
        wait_until(gate.entered)
        with watched_argument() as argument:
            thread = threading.Thread(target=call, args=(argument,))
            argument = None
            thread.start()
            until(lambda: offloads.count()[1 if kind == "queued" else 0] == (1 if kind == "queued" else 2))
            period.force()
            offloads.give_up()
            thread.join()
            gate.release.set()  # the executor's queue drops a cancelled call when its turn comes


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform has no processor affinity")
@pytest.mark.parametrize("kind", ["workers", "worker threads", "threads", "processes"])
def test_executor_may_run_where_the_calling_thread_may_not(kind):
    """Threads and processes inherit the processors of the thread that starts them."""
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    if everywhere == one:
        pytest.skip("there is one processor only")

    @contextmanager
    def unpinned() -> Iterator[None]:
        """Let the calling thread run everywhere for a while."""
        os.sched_setaffinity(0, everywhere)
        try:
            yield
        finally:
            os.sched_setaffinity(0, one)

    offloads, period = Offloads(threading.RLock()), Period()
    with executor_of(kind) as executor:
        os.sched_setaffinity(0, one)
        try:
            assert offloads.call(period, None, executor, None, False, calls.affinity, (), {}, unpinned) == everywhere
            assert os.sched_getaffinity(0) == one
            offloads.open(executor, period, unpinned)
            assert os.sched_getaffinity(0) == one
        finally:
            os.sched_setaffinity(0, everywhere)
            period.force()
            offloads.close()


def run_script(script: str) -> str:
    """Run a script in a fresh interpreter; return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=GUARD, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_without_workers_loads_no_multiprocessing():
    """It serves and offloads in its own threads and in an executor's, and registers nothing for worker processes."""
    assert run_script("""
import atexit, os, sys
registered = []
os.register_at_fork = lambda **hooks: registered.append(hooks)
from concurrent.futures import ThreadPoolExecutor
before = len(registered), atexit._ncallbacks()
import threaded_echo, threaded_echo.handlers, threaded_echo.mixin, threaded_echo.options
assert (len(registered), atexit._ncallbacks()) == before, registered

import socket
class Handler(threaded_echo.LineHandler):
    def process(self, line):
        return self.offload(bytes.upper, line)

for executor in None, ThreadPoolExecutor(1):
    with threaded_echo.ThreadedTCPServer(("127.0.0.1", 0), Handler, executor=executor).start() as server:
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"line\\n")
            assert client.recv(16) == b"LINE\\n"
print(sorted(name for name in sys.modules if name.partition(".")[0] == "multiprocessing"
             or name in ("threaded_echo.offloading.processes", "threaded_echo.offloading.worker")))
""") == "[]\n"


def test_worker_processes_load_it_when_they_are_first_used():
    """The functions for the interpreter's end and for a fork are registered then."""
    script = """
import os, sys
if __name__ == "__main__":
    registered = []
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: registered.append(hooks) or register(**hooks)
    from tests import calls
    from threaded_echo import ThreadedTCPServer
    names = lambda: [hooks["after_in_child"].__module__ for hooks in registered if "after_in_child" in hooks]
    assert not any(name.startswith("threaded_echo.offloading") for name in names()), names()
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1) as server:
        print(server.offload(calls.square, 3))
    print([name for name in names() if name.startswith("threaded_echo.offloading")])
"""
    assert run_script(script) == "9\n['threaded_echo.offloading.worker', 'threaded_echo.offloading.processes']\n"
