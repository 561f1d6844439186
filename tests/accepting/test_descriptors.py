"""Descriptors that are kept free."""
from __future__ import annotations

import errno
import os
import resource
import select
import threading
import types
from contextlib import ExitStack

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import descriptors, failures
from threaded_echo.accepting.descriptors import Reserve, count_open

from ..conftest import LOOPBACK
from ..tools import Echo, ask, connect, receive, receive_all, until, wait_until


@pytest.fixture
def process(monkeypatch):
    """Have so many descriptors, and so many of them open."""
    made = types.SimpleNamespace(limit=1024, open=24)
    monkeypatch.setattr(descriptors, "_limit", lambda: made.limit)
    monkeypatch.setattr(descriptors, "count_open", lambda listener: made.open)
    monkeypatch.setattr(failures, "BACK_OFF", 0.001)
    return made


@pytest.mark.parametrize(("limit", "open", "reserve", "spare"), [
    (1024, 24, 32, 60),
    (1 << 20, 24, 32, 64),
    (1024, 1024 - 32 - 100, 32, 6),
    (1024, 1024 - 32 - 10, 32, 1),
    (1024, 1024 - 32, 32, 1),
    (1024, 1024 - 31, 32, 0),
    (1024, 1024, 32, 0),
    (1024, 1024, 0, 64),
    (None, 24, 32, 64),
    (40, 30, 32, 1),
    (40, 31, 32, 0),
])
def test_so_many_clients_are_let_in_before_the_next_look(process, limit, open, reserve, spare):
    """A sixteenth of what is free above the reserve, which is a quarter of the limit at the most."""
    process.limit, process.open = limit, open
    assert Reserve().spare(reserve, 0) == spare


def test_open_descriptors_are_counted(monkeypatch, tmp_path):
    """By the size of a folder in /proc, in its listing, or up to the first that is free: whatever the platform has."""
    with open(os.devnull) as file:
        listed = len(os.listdir("/proc/self/fd")) - 1
        stat = os.stat
        assert count_open(file.fileno()) == (stat("/proc/self/fd").st_size or listed)
        monkeypatch.setattr(os, "stat", lambda path: types.SimpleNamespace(st_size=0))
        assert count_open(file.fileno()) == listed
        monkeypatch.undo()
        monkeypatch.setattr(descriptors, "_OPEN", str(tmp_path / "nothing"))
        assert 0 < file.fileno() < count_open(file.fileno()) <= listed + 1
        monkeypatch.setattr(os, "dup", fail_with(errno.EMFILE))
        assert count_open(file.fileno()) > 1_000_000
        monkeypatch.setattr(os, "dup", fail_with(errno.EBADF))
        assert count_open(-1) == 0


def fail_with(number):
    """Make a function that raises an OSError."""
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


def test_limit_is_that_of_the_process(monkeypatch):
    """There may be none."""
    assert descriptors._limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert descriptors._limit() is None


def test_server_without_descriptors_to_spare_lets_nobody_in_until_there_are(serve, process, caplog):
    """It says so once, is served on, and needs no client to leave."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        process.open = 1000
        server.reserve_descriptors = 30  # or it would look again only after 60 more
        with connect(server) as waiting:
            until(lambda: caplog.messages)
            client.sendall(b"y")
            assert receive(client, 1) == b"y"
            assert server.stats().accepted == 1
            process.open = 900
            waiting.sendall(b"z")
            assert receive(waiting, 1) == b"z"
    assert caplog.messages == [
        "accepting no clients while fewer than 30 descriptors are free (reserve_descriptors)"]
    assert server.stats().accept_errors == 0


def test_reserve_is_looked_at_once_in_so_many_clients(serve, process, monkeypatch):
    """Also if another limit is looked at for each."""
    looks = []
    monkeypatch.setattr(descriptors, "count_open", lambda listener: looks.append(listener) or 24)
    server = serve(Echo, max_clients=100)
    for _ in range(10):
        assert ask(server) == b"ping\n"
    assert looks == [server.fileno()]
    server.max_clients = None
    server.shutdown()
    server.start()
    for _ in range(10):
        assert ask(server) == b"ping\n"
    assert looks == [server.fileno()] * 2


def test_handlers_that_open_files_do_not_use_up_what_is_kept_free(serve, process, caplog):
    """Each opens ten, and the server looks again before these are all gone."""
    class Handler(Echo):
        """Opens files."""

        def setup(self):
            """Open ten, beside the connection."""
            process.open += 11

    server = serve(Handler)
    with ExitStack() as stack:
        while not caplog.messages:
            client = stack.enter_context(connect(server))
            client.sendall(b"x")
            until(lambda: caplog.messages or select.select([client], [], [], 0)[0])
        assert process.limit - 32 < process.open < process.limit
        process.open = 24


def test_pause_for_want_of_descriptors_ends_with_a_stop(serve, process, monkeypatch):
    """A pause of an hour does not hold it up."""
    entered = threading.Event()
    process.open = 1024
    monkeypatch.setattr(failures, "BACK_OFF", 3600)
    monkeypatch.setattr(descriptors, "count_open", lambda listener: entered.set() or 1024)
    server = serve(Echo)
    with connect(server) as client:
        wait_until(entered)
        assert server.stop().clean
    assert client.fileno() < 0


def test_handle_request_without_descriptors_to_spare_obeys_its_time_out(process):
    """Within the pause between two looks."""
    process.open = 1024
    with ThreadedTCPServer(LOOPBACK, Echo, max_clients=5) as server, connect(server) as client:
        server.timeout = 0.01
        server.handle_request()
        assert server.stats().accepted == 0
        process.open = 24
        server.handle_request()
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        server.stop()
        assert receive_all(client) == b""
