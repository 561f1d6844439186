"""The stop: every kind of client, every caller, every state of the server."""
from __future__ import annotations

import logging
import socket
import socketserver
import threading

import pytest

from threaded_echo import ClientHandler, StopReport, ThreadedTCPServer, current_client

from .conftest import LOOPBACK
from .tools import Echo, Gate, ask, connect, receive_all, running, together, wait_until


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
    sending = threading.Event()

    class Flood(socketserver.BaseRequestHandler):
        """Sends without end."""

        def handle(self) -> None:
            """Send until it fails."""
            while True:
                self.request.sendall(b"x" * 100_000)
                sending.set()

    server = serve(Flood)
    with connect(server):
        wait_until(sending)
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


def test_survivor_is_logged_once_for_several_callers(serve, caplog):
    """However many callers: one line in the log, one report."""
    gate = Gate()
    server = serve(gate.handler)
    with connect(server):
        wait_until(gate.entered)
        reports = together(4, lambda: server.stop(drain=0.2, force=0.2))
        gate.release.set()
    assert all(len(report.survivors) == 1 for report in reports)
    assert len([record for record in caplog.records if "still running" in record.getMessage()]) == 1
    server.stop()


@pytest.mark.parametrize("ending", ["stop", "server_close"])
def test_stop_before_start_closes(ending):
    """A server that has never served stops; then serving it is a clear error."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    getattr(server, ending)()
    for serving in (server.start, server.serve_forever, server.handle_request):
        with pytest.raises(RuntimeError, match="closed"):
            serving()


def test_shutdown_before_serve_forever_ends_the_next_one():
    """As in socketserver: a loop that is on its way in a new thread is ended, whoever comes first."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.shutdown()
        server.serve_forever()
        server.shutdown()
        server.start()
        assert ask(server) == b"ping\n", "start() was asked for after the shutdown"


def test_stop_twice_finds_nothing_the_second_time(serve):
    """A second stop is at once through."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        assert server.stop().drained == 1
    again = server.stop()
    assert (again.drained, again.forced, again.clean) == (0, 0, True)


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
def test_eight_callers_at_once_all_return(serve, method):
    """Whoever calls, each returns once everything has ended."""
    server = serve(Echo)
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        results = together(8, getattr(server, method))
        assert receive_all(client) == b""
    if method == "stop":
        assert {report.drained for report in results if report.drained} == {1}
    assert not server.clients


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
def test_stop_from_a_handler_ends_the_others_but_not_itself(serve, method):
    """A handler that stops its server is not waited for, and can still reply."""
    results = []

    class Handler(ClientHandler):
        """Stops its server on demand."""

        def process(self, data: bytes) -> bytes | None:
            """Stop at b"stop"."""
            if data != b"stop":
                return data
            results.append(getattr(self.server, method)())
            assert set(self.server.clients) == {self.client.number}
            return b"stopped"

    server = serve(Handler)
    with connect(server) as other, connect(server) as client:
        for each in (other, client):
            each.sendall(b"x")
            each.recv(1)
        client.sendall(b"stop")
        assert receive_all(client) == b"stopped"
        assert receive_all(other) == b""
    if method == "stop":
        assert (results[0].drained, results[0].clean) == (1, True)
    assert server.stop().clean
    assert not server.clients


def test_handlers_that_stop_at_once_do_not_wait_for_each_other(serve):
    """Two handlers and the main thread stop at once: nobody waits for a time-out."""
    barrier = threading.Barrier(3)
    reports: list[StopReport] = []

    class Handler(socketserver.BaseRequestHandler):
        """Stops its server, with others."""

        def handle(self) -> None:
            """Meet the others, then stop."""
            barrier.wait(20)
            reports.append(self.server.stop(drain=30, force=30))

    server = serve(Handler)
    with connect(server), connect(server):
        barrier.wait(20)
        outside = server.stop(drain=30, force=30)
    assert outside.clean and outside.seconds < 25
    assert len(reports) == 2 and all(report.clean and report.forced == 0 for report in reports)


@pytest.mark.parametrize("method", ["stop", "shutdown", "server_close"])
@pytest.mark.parametrize("hook", ["service_actions", "verify_request"])
def test_stop_from_the_serving_thread_does_not_wait_for_it(serve, method, hook):
    """A stop in a hook that the loop calls ends the clients, and the loop afterwards."""
    # One is called at each poll, the other for a client, which is then served and woken like those before it.
    wanted = threading.Event()

    def stop(self, *arguments):
        if wanted.is_set():
            wanted.clear()
            getattr(self, method)()
        return True

    server = serve(Echo, type("Server", (ThreadedTCPServer,), {hook: stop}))
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        wanted.set()
        if hook == "verify_request":
            with connect(server) as second:
                assert receive_all(second) == b""
        assert receive_all(client) == b""
    report = server.stop()
    assert report.clean and report.forced == 0


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


def test_stop_after_a_start_that_failed_is_clean():
    """A start on a socket that does not listen is an error, and leaves nothing."""
    server = ThreadedTCPServer(LOOPBACK, Echo, bind_and_activate=False)
    with pytest.raises(RuntimeError, match="listen"):
        server.start()
    assert server.stop().clean


def test_second_stop_can_shorten_the_first(serve):
    """stop(0) while a patient stop is draining cuts at once."""
    sending = threading.Event()

    class Flood(socketserver.BaseRequestHandler):
        """Sends without end."""

        def handle(self) -> None:
            """Send until it fails."""
            while True:
                self.request.sendall(b"x" * 100_000)
                sending.set()

    server = serve(Flood)
    reports: list[StopReport] = []
    with connect(server):
        wait_until(sending)
        with running(lambda: reports.append(server.stop(drain=3600, force=3600))):
            wait_until(server.stopping)
            assert server.stop(drain=0).forced == 1
    assert reports[0].forced == 1


def test_second_stop_shortens_the_force_too(serve):
    """stop(force=0) gives up on a survivor that a patient stop waits for."""
    gate = Gate()
    server = serve(gate.handler)
    reports: list[StopReport] = []
    with connect(server) as client:
        wait_until(gate.entered)
        with running(lambda: reports.append(server.stop(drain=0, force=3600))):
            assert receive_all(client) == b"", "it has been cut"
            server.stop(force=0)
        gate.release.set()
    assert not reports[0].clean
    server.stop()


def test_close_does_not_shorten_a_patient_stop(serve):
    """What asks for nothing in particular leaves the time of the stop in progress as it is."""
    gate = Gate()
    server = serve(gate.handler, drain_timeout=0.0, force_timeout=0.0)
    reports: list[StopReport] = []
    with connect(server):
        wait_until(gate.entered)
        with running(lambda: reports.append(server.stop(drain=3600))):
            wait_until(server.stopping)
            with running(server.server_close):
                gate.release.set()
    assert reports[0].clean and reports[0].forced == 0


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
    """A stop that comes between start() and the first accept is told there."""
    server: ThreadedTCPServer

    class Server(ThreadedTCPServer):
        """Is shut down as it starts."""

        def serve_forever(self, poll_interval=0.5):
            """Shut down, then serve."""
            self.shutdown()
            super().serve_forever(poll_interval)

    with Server(LOOPBACK, Echo) as server, pytest.raises(RuntimeError, match="stopped while"):
        server.start()


def test_server_close_of_a_subclass_is_called_once(serve):
    """However many stops at once: a clean-up in server_close that works only once is safe."""
    calls = []

    class Server(ThreadedTCPServer):
        """Counts."""

        def server_close(self):
            """Count, and close."""
            calls.append(current_client())
            super().server_close()

    server = serve(Echo, Server)
    together(8, server.stop)
    server.stop()
    assert len(calls) == 1


def test_second_stop_leaves_the_closing_to_the_first(serve):
    """While one is in the server's server_close, another waits for that."""
    closing, asked = threading.Event(), threading.Event()
    calls = []

    class Server(ThreadedTCPServer):
        """Takes its time to close, and notes who asks whether it is open."""

        def server_close(self):
            """Wait until the second has asked."""
            calls.append(1)
            closing.set()
            wait_until(asked)
            super().server_close()

        def fileno(self):
            """Note the second caller."""
            number = super().fileno()
            if closing.is_set():
                asked.set()
            return number

    server = serve(Echo, Server)
    with running(server.stop):
        wait_until(closing)
        assert server.stop().clean
        assert server.fileno() < 0
    assert calls == [1]


def test_server_close_that_waits_for_its_clients_does_not_hang(serve):
    """A subclass's server_close that first joins what serves its clients finds them woken by the stop."""
    entered, done = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Waits for its client ahead of closing."""

        def server_close(self):
            """Wait, then close."""
            wait_until(done)
            super().server_close()

    class Handler(socketserver.BaseRequestHandler):
        """Says when it is done."""

        def handle(self) -> None:
            """Wait for end of file."""
            entered.set()
            self.request.recv(1)
            done.set()

    server = serve(Handler, Server)
    with connect(server):
        wait_until(entered)
        assert server.stop().clean


def test_stop_without_patience_waits_for_the_loop_to_return(serve, caplog):
    """A loop that only has to return is joined, and not told of, however little time a stop is given."""
    class Server(ThreadedTCPServer):
        """Its loop is in a hook when the stop begins, and needs a moment to leave it."""

        def service_actions(self) -> None:
            """Take a moment once a stop has begun."""
            if gate.entered.is_set():
                wait_until(self.stopping)
                threading.Event().wait(0.1)

    gate = Gate()
    for server_class in [Server, *[ThreadedTCPServer] * 20]:
        server = serve(gate.handler, server_class)
        with connect(server):
            wait_until(gate.entered)
            report = server.stop(0, 0)
        gate.entered.clear()
        assert not any(thread.name.endswith("serving") for thread in threading.enumerate())
        assert len(report.survivors) == 1
    assert "serving loop" not in caplog.text
    gate.release.set()


def test_serving_loop_that_hangs_is_reported(serve, caplog):
    """A hook that never returns bounds the stop, and its lines are logged."""
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
        assert [survivor.client.number for survivor in report.survivors] == [1]
        assert any("the serving loop is still running" in record.getMessage() and "wait_until(release)"
                   in record.getMessage() for record in caplog.records)
        release.set()
    server.stop()


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


def test_loop_on_handle_request_is_joined(serve):
    """A serve_forever of the program's own that comes back during the stop is sent away, not served."""
    between, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Loops itself, and tarries between two requests."""

        def serve_forever(self, poll_interval=0.5):
            """Handle requests until a stop."""
            self.handle_request()
            between.set()
            wait_until(release)
            self.handle_request()

    server = serve(Echo, Server)
    with connect(server):
        wait_until(between)
        with running(server.stop):
            wait_until(server.stopping)
            release.set()


def test_handle_request_in_another_thread_returns_at_a_stop():
    """A thread that waits in handle_request is woken like a loop."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.timeout = 3600
    with running(server.handle_request):
        while not server._threaded_state.serving.turns:
            pass
        server.stop()


def test_wrong_seconds_are_named():
    """Bad arguments are told, and stop nothing."""
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
        assert report.clean, "its client has gone"
        release.set()
    server.stop()


def test_survivors_of_a_handlers_stop_do_not_include_itself(serve):
    """The caller from inside is told of the others only."""
    gate = Gate()
    reports = []

    class Handler(ClientHandler):
        """Stops its server; the first client's handler never ends."""

        def process(self, data: bytes) -> bytes:
            """Stop, or wait at the gate."""
            if data == b"stop":
                reports.append(self.server.stop(drain=0.01, force=0.01))
            else:
                gate.entered.set()
                wait_until(gate.release)
            return b"done"

    server = serve(Handler)
    with connect(server) as first, connect(server) as second:
        first.sendall(b"wait")
        wait_until(gate.entered)
        second.sendall(b"stop")
        assert receive_all(second) == b"done"
        gate.release.set()
    [survivor] = reports[0].survivors
    assert survivor.client.number == 1
    server.stop()


def test_handler_that_stops_is_not_cut_by_its_own_stop(serve):
    """The force spares the connections of those who wait for it."""
    sending = threading.Event()

    class Handler(ClientHandler):
        """Stops its server, or sends without end."""

        def process(self, data: bytes) -> bytes:
            """Stop, or flood."""
            if data == b"stop":
                return b"%d" % self.server.stop(drain=0.01).forced
            while True:
                self.send(b"x" * 100_000)
                sending.set()

    server = serve(Handler)
    with connect(server) as first, connect(server) as second:
        first.sendall(b"flood")
        wait_until(sending)
        second.sendall(b"stop")
        assert receive_all(second) == b"1"


def test_survivors_of_a_stop_in_the_serving_thread_are_reported(serve):
    """A stop in a hook of the loop gives up as any other."""
    gate = Gate()
    reports = []

    def service_actions(self):
        if gate.entered.is_set() and not reports:
            reports.append(self.stop(drain=0.01, force=0.01))

    server = type("Server", (ThreadedTCPServer,), {"service_actions": service_actions})(LOOPBACK, gate.handler)
    with connect(server):
        server.serve_forever(poll_interval=0.001)
        gate.release.set()
    assert [survivor.client.number for survivor in reports[0].survivors] == [1]
    server.stop()
