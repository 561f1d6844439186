"""The handler threads: reuse, what a handler raises, a thread that cannot start."""
from __future__ import annotations

import contextvars
import gc
import socket
import socketserver
import subprocess
import sys
import threading

import pytest

from threaded_echo import ClientHandler, ThreadedTCPServer
from threaded_echo.clients import threads
from threaded_echo.clients.registry import Client, HandlerRegistry
from threaded_echo.clients.threads import HandlerThreads

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, connect, receive_all, wait_until

variable = contextvars.ContextVar("variable", default=b"fresh")


class WhoServes(ClientHandler):
    """Tells its thread and its context, and leaves something behind in it."""

    def process(self, data):
        """Tell."""
        before = variable.get()
        variable.set(b"used")
        return b"%d %s" % (threading.get_ident(), before)


@pytest.fixture
def pool():
    """Handler threads without a server."""
    registry = HandlerRegistry()
    handler_threads = HandlerThreads(registry)
    yield handler_threads
    with registry.lock:
        handler_threads.close_locked()
    while handler_threads.running:
        pass
    for thread in handler_threads.to_join()[0]:
        thread.join(GUARD)


def a_client(number=1):
    """Make a client of nobody."""
    client = Client(object(), "nowhere", threading.Event())
    client.number = number
    return client


def serve_and_wait(pool, count=1, reuse=True):
    """Serve so many clients at once, and return the threads, once all are done."""
    barrier = threading.Barrier(count + 1)
    found = []

    def job(client):
        found.append(threading.current_thread())
        barrier.wait(GUARD)

    for number in range(count):
        pool.serve(a_client(number), job, daemon=True, reuse=reuse)
    barrier.wait(GUARD)
    return found


def until_idle(pool, count):
    """Wait until so many threads are idle: they get there by themselves."""
    while pool.count() != (0, count):
        pass


def test_thread_serves_the_next_client_in_a_fresh_context(serve):
    """The same thread, but nothing of the context of the client before."""
    server = serve(WhoServes)
    replies = []
    for _ in range(3):
        replies.append(ask(server, b"?"))
        until_idle(server._threaded_state.threads, 1)
    assert len(set(replies)) == 1 and replies[0].endswith(b" fresh")


@pytest.mark.parametrize("options", [{"reuse_threads": False}, {"daemon_threads": False}])
def test_thread_each_where_reuse_is_off(serve, options):
    """A new thread for each client; a thread that is no daemon never waits idle."""
    server = serve(WhoServes, **options)
    for _ in range(3):
        assert ask(server, b"?").endswith(b" fresh")
    until_idle(server._threaded_state.threads, 0)
    assert server.stats().threads_idle == 0


def test_program_that_does_not_stop_ends_all_the_same():
    """Neither idle threads nor the loop keep the interpreter from ending, whatever daemon_threads says."""
    program = ("import socket, sys, threaded_echo\n"
               "server = threaded_echo.ThreadedTCPServer(('127.0.0.1', 0), daemon_threads=sys.argv[1] == 'daemon')\n"
               "server.start()\n"
               "with socket.create_connection(server.server_address) as client:\n"
               "    client.sendall(b'x'); client.recv(1)\n"
               "    if sys.argv[1] != 'daemon': server.clients[1].disconnect()\n")
    for daemon in ("daemon", "no daemon"):
        assert subprocess.run([sys.executable, "-c", program, daemon], timeout=GUARD, stderr=subprocess.PIPE,
                              check=True).stderr == b""


def test_idle_threads_are_bounded(pool, monkeypatch):
    """No more are kept than MAX_IDLE; the others end, and are forgotten."""
    monkeypatch.setattr(threads, "MAX_IDLE", 2)
    found = serve_and_wait(pool, 5)
    until_idle(pool, 2)
    assert len(pool) == 2 and set(pool) < set(found)
    assert set(serve_and_wait(pool, 2)) == set(pool), "the idle ones are used first"
    until_idle(pool, 2)


def test_ended_threads_are_forgotten(pool):
    """A list of ended threads does not grow with the clients."""
    for _ in range(20):
        [thread] = serve_and_wait(pool, 1, reuse=False)
        thread.join(GUARD)
    assert len(pool.to_join()[0]) <= 1


def test_thread_that_cannot_start_is_forgotten(pool, monkeypatch):
    """The error is the caller's; the pool stays as it was."""
    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            pool.serve(a_client(), print, daemon=True, reuse=True)
    assert len(pool) == 0
    serve_and_wait(pool)


def test_thread_that_cannot_start_costs_its_client_only(serve, monkeypatch, caplog):
    """That client is closed, logged with its number and counted; the next one is served."""
    server = serve(Echo, reuse_threads=False)
    start, failures = threading.Thread.start, [1]

    def fail_once(thread):
        if isinstance(thread, threads.HandlerThread) and failures:
            failures.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with connect(server) as client:
        assert receive_all(client) == b""
    assert ask(server) == b"ping\n"
    server.stop()
    assert "client 1: its handler has failed" in caplog.text and "can't start new thread" in caplog.text
    assert (server.stats().failed, server.stats().finished) == (1, 2)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exit_in_a_handler_goes_to_the_excepthook(serve, monkeypatch, error):
    """Not to handle_error; it ends that thread and its client, and nothing else."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    class Handler(socketserver.BaseRequestHandler):
        """Exits for the first client."""

        def handle(self):
            """Exit or echo."""
            if self.request.recv(100) == b"exit":
                raise error
            self.request.sendall(b"here")

    server = serve(Handler)
    assert ask(server, b"exit") == b""
    assert ask(server, b"?") == b"here"
    server.stop()
    assert seen == [error]


def test_error_in_handle_error_goes_to_the_excepthook(serve, monkeypatch):
    """A handle_error that raises, as some tests do, costs its thread and nobody else."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    class Server(ThreadedTCPServer):
        """Closes and raises again."""

        def handle_error(self, request, client_address):
            """As CPython's own tests have it."""
            self.close_request(request)
            raise

    class Handler(socketserver.BaseRequestHandler):
        """Fails."""

        def handle(self):
            """Fail."""
            raise ZeroDivisionError

    server = serve(Handler, Server)
    assert [ask(server, b""), ask(server, b"")] == [b"", b""]
    server.stop()
    assert seen == [ZeroDivisionError] * 2
    assert server.stats().failed == 2


def test_len_of_threads_is_readable(serve):
    """What existing tests do with socketserver's list of threads."""
    server = serve(Echo)
    for _ in range(10):
        ask(server)
    assert len(server._threads) < 10
    assert list(server._threads) and server._threads.join() is None
    added, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (added.set(), wait_until(release)))
    server._threads.append(thread)
    thread.start()
    wait_until(added)
    assert thread in list(server._threads)
    release.set()
    server.stop()
    assert not thread.is_alive()


def test_backlog_takes_a_burst(serve):
    """Connections that come at once wait in the kernel, more than socketserver's five."""
    release = threading.Event()

    class Server(ThreadedTCPServer):
        """Does not accept until released."""

        def service_actions(self):
            """Hold the loop."""
            wait_until(release)

    server = serve(Echo, Server)
    clients = [connect(server) for _ in range(50)]
    release.set()
    for client in clients:
        with client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"x"


def test_server_dropped_without_closing_leaves_no_idle_thread():
    """As some programs do: the thread that would have served the next client ends with the server."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    with connect(server) as client:
        server.handle_request()
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    until_idle(server._threaded_state.threads, 1)
    [thread] = server._threads
    server.socket.close()
    del server
    gc.collect()
    thread.join(GUARD)
    assert not thread.is_alive()
