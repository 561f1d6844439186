"""The handler threads of a server: reuse, what a handler raises, a thread that cannot start."""
from __future__ import annotations

import contextvars
import gc
import os
import socket
import socketserver
import subprocess
import sys
import threading
import weakref

import pytest

from threaded_echo import ClientHandler, ThreadedTCPServer
from threaded_echo.clients import threads

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, ask, connect, receive_all, until, wait_until

variable = contextvars.ContextVar("variable", default=b"fresh")


class WhoServes(ClientHandler):
    """Tells its thread and its context, and leaves something behind in it."""

    def process(self, data):
        """Tell."""
        before = variable.get()
        variable.set(b"used")
        return b"%d %s" % (threading.get_ident(), before)


def test_thread_serves_the_next_client_in_a_fresh_context(serve):
    """A thread is used again, and finds nothing of the context of the client before."""
    server = serve(WhoServes)
    replies = []
    for _ in range(50):
        replies.append(ask(server, b"?"))
        until(lambda: not server.stats().threads_busy)
    assert len(set(replies)) < len(replies) and all(reply.endswith(b" fresh") for reply in replies)


@pytest.mark.parametrize("options", [{"reuse_threads": False}, {"daemon_threads": False}])
def test_client_gets_a_new_thread_if_reuse_is_off(serve, options):
    """Threads do not serve twice then, and a thread that is no daemon never waits idle."""
    server = serve(WhoServes, **options)
    for _ in range(3):
        assert ask(server, b"?").endswith(b" fresh")
    until(lambda: server._threaded_state.threads.count() == (0, 0))
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_process_that_returns_in_a_handler_ends_there():
    """A child that a handler forks, and that returns from it, does not accept its parent's clients."""
    program = ("import os, socket, threaded_echo\n"
               "class Forks(threaded_echo.ClientHandler):\n"
               "    def handle(self):\n"
               "        if child := os.fork():\n"
               "            os.waitpid(child, 0)\n"
               "            print('it has ended', flush=True)\n"
               "with threaded_echo.ThreadedTCPServer(('127.0.0.1', 0), Forks, drain_timeout=60).start() as server:\n"
               "    socket.create_connection(server.server_address).recv(1)\n")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=GUARD, check=True,
                          capture_output=True)
    assert done.stdout == b"it has ended\n"


def test_idle_threads_are_bounded(serve, monkeypatch):
    """No more than MAX_IDLE threads wait for a client; the others end."""
    monkeypatch.setattr("threaded_echo.hooks_accepting.MAX_IDLE", 2)
    server = serve(Echo)
    clients = [connect(server) for _ in range(5)]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert len(server._threads) == 5
    for client in clients:
        client.close()
    # Threads that become idle at once may each take themselves for one too many: fewer may be left.
    until(lambda: not server.clients and len(server._threads) <= 2)
    assert ask(server) == b"ping\n"


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
    """SystemExit and KeyboardInterrupt end the thread and its client, and handle_error is not called."""
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


def test_threads_of_a_program_are_joined(serve):
    """What existing programs and tests do with socketserver's list of threads works, and a stop joins them."""
    server = serve(Echo)
    for _ in range(10):
        ask(server)
    assert len(server._threads) <= 10 and list(server._threads)
    added, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (added.set(), wait_until(release)))
    server._threads.append(thread)
    thread.start()
    wait_until(added)
    assert thread in list(server._threads)
    release.set()
    server._threads.join()
    assert not thread.is_alive() and not server.clients


def test_backlog_takes_a_burst(serve):
    """More connections than socketserver's five wait in the kernel."""
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


def test_server_that_was_used_with_start_is_collected():
    """Neither the background thread, nor anything else, keeps a stopped server alive."""
    server = ThreadedTCPServer(LOOPBACK, Echo).start()
    assert ask(server) == b"ping\n"
    server.stop()
    found = weakref.ref(server)
    del server
    gc.collect()
    assert found() is None


def test_server_that_was_used_with_run_is_collected():
    """What waits for signals keeps nothing, either."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.run(0)
    found = weakref.ref(server)
    del server
    gc.collect()
    assert found() is None
