"""The stop: what it does to clients of every kind."""
from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from threaded_echo import ClientHandler, StopReport, ThreadedTCPServer

from .conftest import LOOPBACK
from .tools import GUARD, Echo, Flood, Gate, ask, connect, receive, receive_all, running, wait_until


def test_idle_clients_are_drained(serve):
    """A handler blocked in recv gets end of file, and its client sees the connection end."""
    server = serve(Echo)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    report = server.stop()
    assert (report.drained, report.forced, report.survivors, report.clean) == (3, 0, (), True)
    assert report.seconds > 0
    for client in clients:
        assert receive_all(client) == b""
        client.close()
    assert not server.clients


def test_client_in_the_middle_of_its_work_gets_its_reply(serve):
    """A handler that is woken while it computes finishes, and can still send."""
    gate = Gate(lambda handler: handler.request.sendall(b"the answer"))
    server = serve(gate.handler)
    reports: list[StopReport] = []
    with connect(server) as client:
        wait_until(gate.entered)
        with running(lambda: reports.append(server.stop())):
            wait_until(server.stopping)
            gate.release.set()
            assert receive_all(client) == b"the answer"
    assert (reports[0].drained, reports[0].forced) == (1, 0)


def test_data_that_has_arrived_is_processed(serve):
    """What a client sent before the stop is not lost."""
    entered, release = threading.Event(), threading.Event()

    class Handler(ClientHandler):
        """Waits ahead of its second chunk."""

        def process(self, data: bytes) -> bytes:
            """Echo; the first chunk waits."""
            if not entered.is_set():
                entered.set()
                wait_until(release)
            return data

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"first")
        wait_until(entered)
        client.sendall(b"second")
        with running(server.stop):
            wait_until(server.stopping)
            release.set()
            assert receive_all(client) == b"firstsecond"


def test_send_blocked_on_a_client_that_reads_nothing_is_cut(serve):
    """What the drain cannot end, the force does: the blocked send fails."""
    flood = Flood()
    server = serve(flood.handler)
    with connect(server):
        wait_until(flood.sending)
        report = server.stop(drain=0.05)
    assert (report.drained, report.forced, report.clean) == (0, 1, True)
    assert server.stats().failed == 0, "a send that the stop has cut is no failure"


def test_handler_that_never_ends_is_reported_with_its_stack(serve, caplog):
    """A survivor bounds the stop, is named with its lines, and ends cleanly when its handler does."""
    gate = Gate()
    server = serve(gate.handler)
    with connect(server):
        wait_until(gate.entered)
        [client] = server.clients.values()
        thread = client.thread
        report = server.stop(drain=0.01, force=0.01)
        assert (report.drained, report.forced, report.clean) == (0, 0, False)
        [survivor] = report.survivors
        assert survivor.client is client
        assert any("wait_until(gate.release)" in line for line in survivor.stack)
        assert list(server.clients) == [1], "it is still there"
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "client 1" in record.getMessage() and "gate.release" in record.getMessage()
        assert server.stop(drain=0, force=0).survivors[0].client is client, "a later stop finds it again"
        gate.release.set()
        thread.join()
    assert not server.clients
    assert server.stop().clean
    assert client.state == "gone"


def test_stop_while_clients_connect_leaves_none(serve):
    """Clients that come while a stop is on its way are ended or refused, never left over."""
    server = serve(Echo)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            try:
                with connect(server) as client:
                    client.sendall(b"x")
                    client.recv(1)
            except OSError:
                continue

    with running(come_and_go), running(come_and_go):
        try:
            assert ask(server) == b"ping\n"
            report = server.stop()
        finally:
            over.set()
    assert report.clean
    stats = server.stats()
    assert stats.live == 0 and stats.accepted == stats.finished + stats.refused


def test_client_accepted_during_a_stop_is_woken(serve):
    """The connection that is being accepted as a stop begins is ended with the others."""
    accepted, stopping = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Holds a connection between its accept and its number."""

        def get_request(self):
            """Accept, and wait for the stop to begin."""
            found = super().get_request()
            accepted.set()
            wait_until(stopping)
            return found

    server = serve(Echo, Server)
    with connect(server) as client:
        wait_until(accepted)
        with running(server.stop):
            wait_until(server.stopping)
            stopping.set()
            assert receive_all(client) == b""


def test_shutdown_drains_clients_of_handle_request():
    """Without a loop, shutdown still ends the clients."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, connect(server) as client:
        server.handle_request()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        server.shutdown()
        assert receive_all(client) == b""
        with connect(server) as second:
            server.handle_request()
            second.sendall(b"y")
            assert second.recv(1) == b"y", "a new request is served after a shutdown"


def test_survivor_is_not_waited_for_again_when_the_with_block_ends():
    """A stop has given up on it: leaving the block afterwards takes no time."""
    gate = Gate()
    with ThreadedTCPServer(LOOPBACK, gate.handler, drain_timeout=GUARD, force_timeout=GUARD).start() as server:
        with connect(server):
            wait_until(gate.entered)
            thread = server.clients[1].thread
            assert not server.stop(0, 0).clean
            left = time.monotonic()
    assert time.monotonic() - left < GUARD
    gate.release.set()
    thread.join(GUARD)


def test_wrong_seconds_are_named():
    """The error names the argument, and nothing is stopped."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        with pytest.raises(TypeError, match="drain"):
            server.stop(drain="5")
        with pytest.raises(ValueError, match="force"):
            server.stop(force=-1)
        assert server.fileno() >= 0


def test_thread_added_by_a_program_is_joined_too(serve):
    """A process_request that was copied from socketserver, threads list included, is joined with a bound."""
    entered, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Starts its threads itself."""

        def process_request(self, request, client_address):
            """As socketserver does."""
            vars(self).setdefault("_threads", socketserver._Threads())
            thread = threading.Thread(target=self.process_request_thread, args=(request, client_address))
            thread.daemon = False  # socketserver's list takes no others
            self._threads.append(thread)
            thread.start()

        def shutdown_request(self, request):
            """Hold the thread after the client has gone."""
            super().shutdown_request(request)
            entered.set()
            wait_until(release)

    server = serve(Echo, Server)
    with connect(server) as client:
        client.shutdown(socket.SHUT_WR)
        wait_until(entered)
        report = server.stop(drain=0.01, force=0.01)
        [survivor] = report.survivors
        assert survivor.client is None and "wait_until(release)" in str(survivor), "its client has gone; it has not"
        server.drain_timeout = server.force_timeout = 3600.0
        assert len(server.stop().survivors) == 1, "it is told again, and not waited for again"
        release.set()
    assert server.stop(drain=GUARD).clean
    server.stop()


def test_stacks_of_threads_that_are_about_to_end_are_not_read(serve, monkeypatch):
    """The closing in the middle of a stop reads no stacks: without the GIL, that of an ending thread is unsafe to read.
    """
    asked = []
    monkeypatch.setattr("threaded_echo.stopping.stacks_of", lambda threads: asked.extend(threads) or {})
    gate = Gate()
    server = serve(gate.handler)
    with connect(server):
        wait_until(gate.entered)
        with running(server.stop):
            wait_until(server.stopping)
            gate.release.set()
    assert not asked


def test_client_that_waits_for_a_programs_thread_is_given_up_once(serve):
    """A client in the queue of a program's own executor is a survivor without a thread: the next stop does not wait."""
    gate = Gate()
    queued = threading.Event()

    class Server(ThreadedTCPServer):
        """Serves one client; the others wait."""

        def process_request(self, request, client_address):
            """Hand the client over."""
            executor.submit(self.process_request_thread, request, client_address)
            if len(self.clients) == 2:
                queued.set()

    with ThreadPoolExecutor(1) as executor:
        server = serve(gate.handler, Server, drain_timeout=GUARD)
        with connect(server), connect(server):
            wait_until(queued)
            assert len(server.stop(0, 0).survivors) == 2
            report = server.stop()
            gate.release.set()
        assert len(report.survivors) == 2 and report.seconds < GUARD / 2
    assert server.stop().clean


def test_thread_that_a_program_has_added_and_not_started_is_left_alone(serve):
    """There is nothing to wait for."""
    server = serve(Echo)
    server._threads.append(threading.Thread(target=print))
    assert server.stop().clean


def test_stop_with_wrong_options_stops_all_the_same(serve, caplog):
    """They were assigned to the server, which takes its defaults, and says so."""
    server = serve(Echo)
    server.drain_timeout, server.force_timeout = "3", -1.0
    with connect(server) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        assert server.stop().drained == 1
    assert "drain_timeout must be a number of seconds, not '3'; the stop takes 5.0" in caplog.text
    assert "force_timeout must be from 0 to" in caplog.text
