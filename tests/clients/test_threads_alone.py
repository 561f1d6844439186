"""The handler threads without a server: started, idle, ended, forgotten."""
from __future__ import annotations

import threading

import pytest

from threaded_echo.clients import threads
from threaded_echo.clients.client import Client
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry
from threaded_echo.clients.threads import HandlerThreads

from ..tools import GUARD, until, wait_until


@pytest.fixture
def pool():
    """Handler threads without a server."""
    registry = HandlerRegistry()
    handler_threads = HandlerThreads(registry)
    yield handler_threads
    until(lambda: not handler_threads.running)
    for thread in handler_threads.to_join()[0]:
        thread.join(GUARD)


def a_client(number=1):
    """Make a client of nobody."""
    return Client(number, object(), "nowhere", Period(), None)


def serve_and_wait(pool, count=1, next_client=None):
    """Serve so many clients at once, each in a new thread, and return the threads, once all clients have met."""
    barrier = threading.Barrier(count + 1)
    found = []

    def serve(client):
        found.append(threading.current_thread())
        barrier.wait(GUARD)

    for number in range(count):
        pool.serve(a_client(number), serve, daemon=True, next_client=next_client)
    barrier.wait(GUARD)
    return found


def until_idle(pool, count):
    """Wait until so many threads are idle: they get there by themselves."""
    until(lambda: pool.count() == (0, count))


def test_thread_serves_what_next_client_returns(pool):
    """It serves one client after the other, until there is none."""
    served, clients = [], [a_client(2), a_client(3), None]
    pool.serve(a_client(1), lambda client: served.append((client.number, threading.get_ident())), daemon=True,
               next_client=lambda: clients.pop(0))
    until_idle(pool, 0)
    [thread] = pool.to_join()[0]
    thread.join(GUARD)
    assert served == [(number, thread.ident) for number in (1, 2, 3)]


def test_ended_threads_are_forgotten(pool, monkeypatch):
    """The list of ended threads, which a stop joins, does not grow with the clients."""
    monkeypatch.setattr(threads, "_REAPED", 3)
    for _ in range(20):
        [thread] = serve_and_wait(pool)
        thread.join(GUARD)
    assert len(pool.to_join()[0]) <= 4


def test_thread_that_cannot_start_is_forgotten(pool, monkeypatch):
    """The error is the caller's; the pool stays as it was."""
    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            pool.serve(a_client(), print, daemon=True)
    assert not pool.running
    serve_and_wait(pool)


def test_thread_whose_start_is_interrupted_is_still_joined(pool, monkeypatch):
    """If Ctrl-C comes when the thread runs already, its client is its own, and a stop finds it."""
    start, release = threading.Thread.start, threading.Event()

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    client = a_client()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.serve(client, lambda client: wait_until(release), daemon=True)
    assert list(pool.running) == [client.thread]
    release.set()


def test_thread_whose_start_is_interrupted_before_it_runs_is_forgotten(pool, monkeypatch):
    """If Ctrl-C comes before the thread runs, nobody waits for it."""
    def interrupted(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "_START", 0.01)
    client = a_client()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.serve(client, print, daemon=True)
    assert not pool.running and client.thread is None


def test_thread_that_ends_while_another_holds_the_lock_leaves_the_ended_ones_to_the_next(pool, monkeypatch):
    """It waits for nobody, least of all for a stop."""
    monkeypatch.setattr(threads, "_REAPED", 0)
    with pool.registry.lock:
        [first] = serve_and_wait(pool)
        first.join(GUARD)
        assert not first.is_alive()
        assert pool.to_join()[0] == [first]
    [second] = serve_and_wait(pool)
    second.join(GUARD)
    assert first not in pool.to_join()[0]
