"""The stop: every state that the server may be in, and its way back to serving."""
from __future__ import annotations

import os
import threading

import pytest

from threaded_echo import ThreadedTCPServer, stopping
from threaded_echo.state import ServerState
from threaded_echo.stopping import Stopping

from .conftest import LOOPBACK
from .tools import GUARD, Echo, Gate, ask, connect, receive, receive_all, running, until, wait_until


@pytest.mark.parametrize("ending", ["stop", "server_close"])
def test_stop_before_start_closes(ending):
    """A server that has never served stops; then serving it is a clear error."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    getattr(server, ending)()
    for serving in (server.start, server.serve_forever, server.handle_request):
        with pytest.raises(RuntimeError, match=r"closed and cannot serve again; shutdown\(\), in place of stop\(\)"):
            serving()


def test_shutdown_before_serve_forever_ends_the_next_one():
    """A loop that is on its way in a new thread is ended, whoever comes first, as in socketserver."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.shutdown()
        server.serve_forever()
        server.shutdown()
        server.start()
        assert ask(server) == b"ping\n", "start() was asked for after the shutdown"


def test_stop_twice_finds_nothing_the_second_time(serve):
    """The second stop has nothing to wait for."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        assert server.stop().drained == 1
    again = server.stop()
    assert (again.drained, again.forced, again.clean) == (0, 0, True)


def test_stop_after_a_start_that_failed_is_clean():
    """A start on a socket that does not listen is an error, and leaves nothing."""
    server = ThreadedTCPServer(LOOPBACK, Echo, bind_and_activate=False)
    with pytest.raises(RuntimeError, match="listen"):
        server.start()
    assert server.stop().clean


def test_shutdown_leaves_the_server_able_to_serve_again(serve):
    """The listening socket stays, the numbers go on, and there is a new stopping event."""
    server = serve(Echo)
    address, event = server.server_address, server.stopping
    assert ask(server) == b"ping\n"
    server.shutdown()
    assert event.is_set()
    with connect(address) as waiting:  # in the backlog meanwhile
        server.start()
        assert not server.stopping.is_set() and event.is_set()
        waiting.sendall(b"y")
        assert waiting.recv(1) == b"y"
        assert list(server.clients) == [2]


def test_serving_again_waits_for_the_stop_in_progress(serve, monkeypatch):
    """A new start during a shutdown begins when that is over."""
    gate = Gate()
    server = serve(gate.handler)
    changed = server._threaded_state.registry.changed
    waits = threading.Event()

    def wait(timeout=None, wait=changed.wait):
        if timeout is None:  # a stop's own waits have one
            waits.set()
        return wait(timeout)

    monkeypatch.setattr(changed, "wait", wait)
    with connect(server):
        wait_until(gate.entered)
        with running(server.shutdown):
            wait_until(server.stopping)
            with running(server.start):
                wait_until(waits)
                gate.release.set()
    assert not server.stopping.is_set()


def test_stop_while_starting_raises_in_start():
    """A stop that comes between start() and the first accept is an error of start()."""
    server: ThreadedTCPServer

    class Server(ThreadedTCPServer):
        """Is shut down as it starts."""

        def serve_forever(self, poll_interval=0.5):
            """Shut down, then serve."""
            self.shutdown()
            super().serve_forever(poll_interval)

    with Server(LOOPBACK, Echo) as server, pytest.raises(RuntimeError, match="stopped while"):
        server.start()


def test_stop_without_patience_waits_for_a_loop_that_only_has_to_return(serve, caplog, monkeypatch):
    """It is in a hook when the stop begins; it is joined and not reported, however few seconds a stop is given."""
    asked, waiting, gate = threading.Event(), threading.Event(), Gate()

    class Server(ThreadedTCPServer):
        """Leaves its hook when the stop waits for its loop."""

        def service_actions(self):
            """Wait for that."""
            if gate.entered.is_set():
                asked.set()
                wait_until(waiting)

    def wait(self, *arguments):
        waiting.set()
        return stopping_wait(self, *arguments)

    stopping_wait = Stopping._wait
    monkeypatch.setattr(Stopping, "_wait", wait)
    monkeypatch.setattr("threaded_echo.stopping._TAIL", GUARD)
    server = serve(gate.handler, Server)
    with connect(server):
        wait_until(asked)
        report = server.stop(0, 0)
        assert not any(thread.name.endswith("serving") for thread in threading.enumerate())
        assert [survivor.client.number for survivor in report.survivors] == [1]
        assert "threaded_echo serving" not in caplog.text
        gate.release.set()
    assert server.stop(drain=GUARD).clean


def test_serving_loop_that_hangs_is_reported(serve, caplog, monkeypatch):
    """A hook that never returns bounds the stop, and its lines are logged."""
    monkeypatch.setattr(stopping, "_TAIL", 0.01)
    entered, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Hangs in its loop."""

        def verify_request(self, request, client_address):
            """Wait to be released."""
            entered.set()
            wait_until(release)
            return True

    server = serve(Echo, Server)
    with connect(server):
        wait_until(entered)
        report = server.stop(drain=0.01, force=0.01)
        assert [survivor.client and survivor.client.number for survivor in report.survivors] == [1, None]
        assert "wait_until(release)" in str(report.survivors[1])
        assert "thread threaded_echo serving" in caplog.text and "wait_until(release)" in caplog.text
        release.set()
    server.stop(drain=GUARD)


def test_loop_on_handle_request_that_comes_back_during_a_stop_is_sent_away_and_joined(serve):
    """The client that waits in the queue by then is not served, and the stop waits for the loop to end."""
    between, release, threads = threading.Event(), threading.Event(), []

    class Server(ThreadedTCPServer):
        """Loops itself, and tarries between two requests."""

        def serve_forever(self, poll_interval=0.5):
            """Handle requests until a stop."""
            threads.append(threading.current_thread())
            self.handle_request()
            between.set()
            wait_until(release)
            self.handle_request()
            between.clear()

    server = serve(Echo, Server)
    with connect(server), connect(server):
        wait_until(between)
        with running(server.stop):
            wait_until(server.stopping)
            release.set()
    assert not between.is_set() and not threads[0].is_alive()
    assert server.stats().accepted == 1


def test_handle_request_in_another_thread_returns_at_a_stop():
    """A thread that waits in handle_request is woken like a loop."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.timeout = 3600
    with running(server.handle_request):
        until(lambda: server._threaded_state.loops.running)
        server.stop()


@pytest.mark.parametrize("leave", ["exit", "stop", "server_close", "shutdown"])
def test_survivor_that_a_stop_has_given_up_on_is_not_waited_for_again(serve, leave):
    """Leaving the ``with`` after ``stop(0, 0)`` returns though the handler never ends: it would take two hours."""
    gate = Gate()
    server = serve(gate.handler, drain_timeout=3600.0, force_timeout=3600.0)
    with connect(server):
        wait_until(gate.entered)
        thread = server.clients[1].thread
        assert len(server.stop(0, 0).survivors) == 1
        if leave == "exit":
            server.__exit__(None, None, None)
        else:
            getattr(server, leave)()
        assert thread.is_alive() and list(server.clients) == [1]
        gate.release.set()
        thread.join(GUARD)
    assert server.stop(drain=GUARD).clean


def test_survivor_is_waited_for_again_if_seconds_are_given(serve):
    """A stop with seconds of its own waits for what an earlier one has given up on."""
    gate, reports = Gate(), []
    server = serve(gate.handler)
    with connect(server):
        wait_until(gate.entered)
        assert not server.stop(0, 0).clean
        with running(lambda: reports.append(server.stop(drain=GUARD))):
            gate.release.set()
    assert reports[0].clean and not server.clients


def test_stop_in_a_signal_handler_that_interrupts_the_holder_of_the_lock_joins_all_threads(monkeypatch, caplog):
    """The watcher of deadlines, and who waits for refused clients, take the server's lock in order to end."""
    monkeypatch.setattr(stopping, "_TAIL", GUARD)
    options = {"idle_timeout": GUARD, "max_clients": 1, "at_limit": "refuse", "limit_reply": b"full"}
    with ThreadedTCPServer(LOOPBACK, Echo, **options) as server, connect(server) as client:
        server.handle_request()
        with connect(server) as refused:
            server.handle_request()
            assert receive(refused, 4) == b"full"
            client.close()
            until(lambda: not server._threads)
            with server._threaded_state.registry.lock:
                assert server.stop(GUARD).clean
    assert not caplog.messages


def test_serving_from_inside_ones_own_stop_is_an_error():
    """It would wait for itself."""
    errors = []

    class Server(ThreadedTCPServer):
        """Serves again when it is closed."""

        def server_close(self):
            """Serve, then close."""
            for serve_again in (self.serve_forever, self.handle_request):
                with pytest.raises(RuntimeError, match="cannot serve from inside its own stop"):
                    serve_again()
                errors.append(serve_again.__name__)
            super().server_close()

    with Server(LOOPBACK, Echo):
        pass
    assert errors == ["serve_forever", "handle_request"]


def test_error_of_a_programs_server_close_is_raised_after_the_stop(serve):
    """The clients have been ended by then, and the threads joined."""
    class Server(ThreadedTCPServer):
        """Cannot remove a file of its own."""

        def server_close(self):
            """Close, then fail."""
            super().server_close()
            if not self.failed:
                self.failed = True
                raise FileNotFoundError("a file of its own")

        failed = False

    server = serve(Echo, Server)
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        with pytest.raises(FileNotFoundError, match="a file of its own"):
            server.stop()
        assert receive_all(client) == b"" and not server.clients
    assert (server.stats().threads_busy, server.stats().threads_idle) == (0, 0)
    assert server.stop().clean


def test_forked_process_has_a_copy_that_knows_no_clients(monkeypatch):
    """They are its parent's, as the threads and the locks are."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        server.handle_request()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        state = server._threaded_state
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            copied = ServerState.of(server)
            assert copied is not state and copied.registry.lock is not state.registry.lock
            assert not server.clients and server.stats().accepted == 0
            assert server.stop().clean and server.fileno() < 0
        vars(server)["_threaded_state"] = state
        client.sendall(b"y")
        assert client.recv(1) == b"y"


def test_background_thread_that_goes_on_behind_its_loop_is_waited_for_and_reported(serve, monkeypatch):
    """What a program does at the end of its own serve_forever belongs to the serving."""
    monkeypatch.setattr(stopping, "_TAIL", 0.01)
    over, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Takes its time to end."""

        def serve_forever(self, poll_interval=0.5):
            """Serve, then wait."""
            super().serve_forever(poll_interval)
            over.set()
            wait_until(release)

    server = serve(Echo, Server)
    [survivor] = server.stop(0, 0).survivors
    assert (survivor.client, survivor.thread.name) == (None, "threaded_echo serving")
    wait_until(over)
    release.set()
    assert server.stop(GUARD).clean


def test_forked_process_that_looks_at_its_copy_first_finds_no_clients(monkeypatch):
    """Whatever it asks: its parent's clients would be disconnected, and its parent's locks may be held for ever."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        server.handle_request()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        state = server._threaded_state
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            found = dict(server.clients), server.stats().accepted, len(server._threads), "0 live" in repr(server)
        vars(server)["_threaded_state"] = state
    assert found == ({}, 0, 0, True)
