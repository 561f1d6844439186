"""What every test is held to: it leaves no thread, no descriptor and no thread's exception behind."""
from __future__ import annotations

import ctypes  # noqa: F401 - libffi, from its first use on, keeps a descriptor of its own file
import gc
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from threaded_echo import ThreadedTCPServer

from .offloading.tools import meet_at
from .tools import LOOPBACK, Meeting

pytest_plugins = ["pytester"]

# Started with the first process of its kind, it stays until the interpreter ends, and so does a descriptor to it.
multiprocessing.resource_tracker.ensure_running()

# A background job of a shell script ignores SIGINT, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As all that nohup starts ignores SIGHUP.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def open_descriptors() -> set[str]:
    """Name what the process has open, by descriptor; empty where the platform cannot tell."""
    found = set()
    if os.path.isdir("/proc/self/fd"):
        for number in os.listdir("/proc/self/fd"):
            try:
                found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
            except FileNotFoundError:  # the one that listed them
                continue
    return found


def pytest_collection_finish() -> None:
    """Leave what the tests' modules are made of out of every later collection: there is one after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread, a process or a descriptor; pytest does for an exception in a thread."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    gc.collect()
    left = set(threading.enumerate()) - threads
    assert not left, f"threads are left: {left}"
    processes = multiprocessing.active_children()
    assert not processes, f"processes are left: {processes}"
    left_open = open_descriptors() - descriptors
    assert not left_open, f"descriptors are left: {left_open}"


@pytest.fixture
def serve() -> Iterator[Callable[..., ThreadedTCPServer]]:
    """Start a server of a handler class; the end of the test stops it.

    ``serve(Handler)``, ``serve(Handler, Server)``; keywords are the options.
    """
    servers = []

    def start(handler: type, server_class: type = ThreadedTCPServer, **options: object) -> ThreadedTCPServer:
        server = server_class(LOOPBACK, handler, **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop(drain=0)


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    """Meet offloaded calls while they run."""
    made = Meeting()
    yield made
    made.close()


@pytest.fixture
def meet(serve, meeting) -> Callable[..., ThreadedTCPServer]:
    """Start a server whose handlers offload calls to the meeting."""
    def start(**options: object) -> ThreadedTCPServer:
        """As ``serve``."""
        return serve(meet_at(meeting), **options)

    return start
