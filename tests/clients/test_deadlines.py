"""The deadlines of live clients, by a clock that the tests turn, and a kernel that tells what they say."""
from __future__ import annotations

import gc
import http.server
import logging
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from threaded_echo import (ClientHandler, LineHandler, ServerStats, ThreadedMixIn, ThreadedTCPServer,
                           ThreadedUnixStreamServer, current_client)
from threaded_echo.clients import deadlines
from threaded_echo.clients.deadlines import LOOKS, Watcher
from threaded_echo.clients.period import Period

from ..conftest import LOOPBACK
from ..tools import Echo, Gate, ask, connect, receive, receive_all, running, subclass, until, wait_until


class Clock:
    """Stands in for the module `time`, and for what the kernel says of a connection's bytes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.bytes_at: dict[int, float] = {}  # when a byte has passed, by the number of the client

    def monotonic(self) -> float:
        """Tell the time."""
        return self.now

    def time(self) -> float:
        """Tell the time of the day."""
        return self.now

    def idle_of(self, client) -> float:
        """Tell for how long nothing has passed."""
        return self.now - self.bytes_at.get(client.number, client._accepted)


@pytest.fixture
def clock(monkeypatch):
    """Turn the clock by hand."""
    made = Clock()
    for module in ("client", "deadlines"):
        monkeypatch.setattr(f"threaded_echo.clients.{module}.time", made)
    monkeypatch.setattr("threaded_echo.handlers.monotonic", made.monotonic)
    monkeypatch.setattr(deadlines, "_idle_of", made.idle_of)
    return made


def watcher_of(server):
    """Return the thread that ends the server's clients; ``None`` if there is none."""
    return server._threaded_state.deadlines._watcher


def look(server):
    """Look at the clients, as the watcher does in its thread, and return in how many seconds to look again."""
    return watcher_of(server).look_at_all()


def greet(connection):
    """Say something and receive it: then the client is listed, and its handler runs."""
    connection.sendall(b"x\n")
    assert receive(connection, 2) == b"x\n"


def watchers():
    """List the threads of this kind in the whole process."""
    return [thread for thread in threading.enumerate() if isinstance(thread, Watcher)]


def test_idle_client_is_ended_at_its_time_and_the_other_is_not(serve, clock):
    """The next look is when the first client can be due; who has sent a byte since then is due later."""
    server = serve(Echo, idle_timeout=100.0)
    with connect(server) as one, connect(server) as two:
        greet(one)
        greet(two)
        first = next(client for client in server.clients.values() if client.address == one.getsockname())
        [second] = [client for client in server.clients.values() if client is not first]
        assert look(server) == 100.0
        clock.now += 60
        clock.bytes_at[second.number] = clock.now
        assert look(server) == 40.0
        clock.now += 39.9
        assert look(server) == 100 / LOOKS, "not at once again, although 0.1 s are left"
        assert (first.reason, second.reason) == (None, None)
        clock.now += 0.1
        assert look(server) == 60.0
        assert receive_all(one) == b"" and (first.reason, second.reason) == ("idle", None)
        greet(two)
    server.stop()
    assert (server.stats().finished, server.stats().failed) == (2, 0)


def test_client_that_sends_now_and_then_does_not_outlive_its_lifetime(serve, clock):
    """It is never idle, and is ended all the same, when its time is over."""
    server = serve(Echo, idle_timeout=10.0, lifetime=35.0)
    with connect(server) as connection:
        greet(connection)
        [client] = server.clients.values()
        for _ in range(4):
            assert 0 < look(server) <= 10.0
            clock.now += 8
            clock.bytes_at[1] = clock.now
        assert client.reason is None and look(server) == 3.0
        clock.now += 3
        look(server)
        assert receive_all(connection) == b"" and client.reason == "lifetime"
    server.stop()
    assert client.reason == "lifetime" and server.stats().failed == 0


class Processing:
    """A gate in `process`, for chunks and for lines."""

    def __init__(self, base: type) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        gate = self

        class Handler(base):  # type: ignore[misc]
            """Waits for its release."""

            def process(self, data):
                """Wait, unless it is told not to."""
                if b"quick" in data:
                    return b"quick"
                gate.entered.set()
                wait_until(gate.release)
                return None

        self.handler = Handler


@pytest.mark.parametrize("base, said", [(ClientHandler, b"hold"), (LineHandler, b"hold\n"),
                                        (LineHandler, b"hold\nquick\n"), (LineHandler, b"quick\nhold\n")])
def test_client_whose_handler_is_in_process_is_not_idle(serve, clock, base, said):
    """However long it takes: then its idle time begins, although no byte has passed."""
    gate = Processing(base)
    server = serve(gate.handler, idle_timeout=10.0)
    with connect(server) as connection:
        connection.sendall(said)
        wait_until(gate.entered)
        [client] = server.clients.values()
        for _ in range(5):
            clock.now += 9
            assert look(server) <= 10.0 and client.reason is None
        clock.now += 9
        gate.release.set()
        if b"quick" in said:
            receive(connection, 5)
        until(lambda: not client._activity.busy)
        assert look(server) == 10.0
        clock.now += 9.9
        assert look(server) < 1 and client.reason is None
        clock.now += 0.1
        look(server)
        assert receive_all(connection) in (b"", b"\n") and client.reason == "idle"


def test_process_that_raises_ends_its_client_and_is_busy_no_more(serve, clock):
    """The mark is taken back by whatever ends the call."""
    class Handler(ClientHandler):
        """Fails."""

        def process(self, data):
            """Fail."""
            raise ZeroDivisionError

    server = serve(Handler, subclass(handle_error=lambda self, request, address: None), idle_timeout=10.0)
    clients = []
    with connect(server) as connection:
        until(lambda: server.clients)
        clients += server.clients.values()
        connection.sendall(b"x")
        assert receive_all(connection) == b""
    server.stop()
    assert not clients[0]._activity.busy and server.stats().failed == 1


def test_client_that_takes_none_of_the_replies_to_its_lines_is_idle(serve, clock):
    """That the replies to a batch of lines wait to be sent is not `process`."""
    class Handler(LineHandler):
        """Replies with more than anybody's buffers take."""

        def process(self, line):
            """Reply."""
            return b"x" * 10_000_000

    server = serve(Handler, idle_timeout=10.0)
    with connect(server) as connection:
        connection.sendall(b"one\ntwo\n")
        until(lambda: server.clients)
        [client] = server.clients.values()
        until(lambda: client._connection.sending.locked())
        clock.now += 10
        look(server)
        assert client.reason == "idle"
        receive_all(connection)
    server.stop()
    assert server.stats().failed == 0, "that its send has failed is no failure"


def test_client_whose_handler_computes_is_not_idle(serve, clock):
    """The handler, which knows nothing of idle times, waits for a call; then the client's idle time begins."""
    gate = Gate()

    class Handler(Echo):
        """Computes first."""

        def setup(self):
            """Wait at the gate."""
            self.server.offload(gate.handler, self.request, self.client_address, self.server)

    server = serve(Handler, idle_timeout=10.0)
    with connect(server) as connection:
        wait_until(gate.entered)
        [client] = server.clients.values()
        for _ in range(3):
            clock.now += 9
            look(server)
        assert client.state == "computing" and client.reason is None
        gate.release.set()
        until(lambda: client.state == "serving")
        clock.now += 9
        assert look(server) == 1.0 and client.reason is None
        clock.now += 1
        look(server)
        assert receive_all(connection) == b"" and client.reason == "idle"


def test_computation_that_has_ended_ahead_of_the_first_look_counts(serve, clock):
    """Its end is noted for any handler, and before anybody has looked."""
    ended = threading.Event()

    class Handler(Echo):
        """Computes first."""

        def setup(self):
            """Compute for 9 s."""
            self.server.offload(lambda: setattr(clock, "now", clock.now + 9))
            ended.set()

    server = serve(Handler, idle_timeout=10.0)
    with connect(server):
        wait_until(ended)
        clock.now += 1
        assert look(server) == 9.0
        [client] = server.clients.values()
        assert client.reason is None


def test_handler_that_knows_nothing_of_this_package_is_ended(clock):
    """Here it is the web server's, which waits for a request."""
    class Server(ThreadedMixIn, http.server.HTTPServer):
        """Has both deadlines."""

        idle_timeout = 10.0
        lifetime = 1000.0

    with Server(LOOPBACK, http.server.SimpleHTTPRequestHandler).start() as server, connect(server) as connection:
        connection.sendall(b"GET / HT")
        until(lambda: server.clients and server.clients[1].bytes_received == 8)
        [client] = server.clients.values()
        clock.now += 10
        look(server)
        assert receive_all(connection) == b"" and client.reason == "idle"
        server.stop()
        assert server.stats().failed == 0


def test_clients_of_handle_request_have_deadlines_until_the_stop(clock):
    """The watcher stays between the calls, and there is one."""
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=10.0) as server:
        with connect(server) as one, connect(server) as two:
            server.handle_request()
            watcher = watcher_of(server)
            server.handle_request()
            assert watchers() == [watcher] and watcher_of(server) is watcher
            until(lambda: len(server.clients) == 2)
            clock.now += 10
            look(server)
            assert receive_all(one) == receive_all(two) == b""
        server.shutdown()
        assert watcher_of(server) is None and not watchers()


def test_clients_in_threads_of_the_programs_own_have_deadlines(serve, clock):
    """They are known as soon as they are accepted, whoever serves them, and when."""
    with ThreadPoolExecutor(1) as executor:
        server = serve(Echo, subclass(process_request=lambda self, request, address: executor.submit(
            self.process_request_thread, request, address)), idle_timeout=10.0)
        with connect(server) as served, connect(server) as waiting:
            greet(served)
            until(lambda: len(server.clients) == 2)
            clock.bytes_at[1] = clock.now + 10
            clock.now += 10
            look(server)
            assert [client.reason for client in server.clients.values()] == [None, "idle"]
            greet(served)
            served.close()
            assert receive_all(waiting) == b""


def test_clients_that_a_program_accepts_by_itself_have_deadlines(clock):
    """It has a loop of its own, and hands over what it has accepted."""
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=10.0) as server, connect(server) as connection:
        server.process_request(*server.socket.accept())
        greet(connection)
        clock.now += 10
        look(server)
        assert receive_all(connection) == b""


def test_stop_joins_the_watcher_and_serving_again_makes_another(serve, clock):
    """Nothing is left of the first, which ends by itself, and is not waited for in vain."""
    server = serve(Echo, lifetime=10.0)
    first = watcher_of(server)
    with connect(server) as connection:
        greet(connection)
        server.shutdown()
        assert receive_all(connection) == b""
    assert not watchers() and not first.is_alive()
    server.start()
    second = watcher_of(server)
    assert second is not first and watchers() == [second]
    with connect(server) as connection:
        greet(connection)
        clock.now += 10
        look(server)
        assert receive_all(connection) == b""
    report = server.stop()
    assert report.clean and not watchers() and server._threaded_state.deadlines.to_join() == []


@pytest.fixture
def watcher_returns_late(monkeypatch):
    """Let a watcher that has ended go on until it is joined."""
    release = threading.Event()
    run = Watcher.run

    def run_on(self):
        run(self)
        wait_until(release)

    def join(self, timeout=None):
        release.set()
        threading.Thread.join(self, timeout)

    monkeypatch.setattr(Watcher, "run", run_on)
    monkeypatch.setattr(Watcher, "join", join)


def test_stop_waits_for_the_watcher_to_return(serve, watcher_returns_late):
    """It is one of the threads that the stop joins, not one that is left to itself."""
    server = serve(Echo, lifetime=1000.0)
    watcher = watcher_of(server)
    assert server.stop().clean and not watcher.is_alive()


def test_watcher_that_is_about_to_be_joined_is_no_survivor_for_a_handler_that_stops(serve, watcher_returns_late):
    """The handler has its report, of what it may wait for, before the stop that it follows has joined anything."""
    reports = []

    class Handler(Echo):
        """Joins the stop that has woken it."""

        def handle(self):
            """Wait for it, and join it."""
            self.request.sendall(b"x")
            wait_until(self.server.stopping)
            reports.append(self.server.stop())

    server = serve(Handler, lifetime=1000.0)
    with connect(server) as connection:
        assert connection.recv(1) == b"x"
        assert server.stop(drain=40).clean
    assert reports[0].clean


def test_client_that_a_stop_has_woken_keeps_that_reason(serve, clock):
    """A handler that goes on after the wake has the time of the stop, not that of its deadlines."""
    gate = Gate()
    server = serve(gate.handler, lifetime=10.0, idle_timeout=10.0)
    watcher = watcher_of(server)
    with connect(server):
        wait_until(gate.entered)
        [client] = server.clients.values()
        with running(server.stop, drain=40):
            until(lambda: client.reason == "stop")
            clock.now += 100
            watcher.look_at_all()
            assert (client.reason, client.state) == ("stop", "serving")
            gate.release.set()


def test_handler_that_stops_the_server_ends_the_watcher(serve):
    """The stop that it leads joins it; its own client is not ended by anybody."""
    stopped = []

    class Handler(Echo):
        """Stops the server."""

        def handle(self):
            """Stop it."""
            report = self.server.stop()
            stopped.append((report.clean, watchers(), current_client().reason))

    server = serve(Handler, lifetime=1000.0, idle_timeout=1000.0)
    with connect(server) as connection:
        assert receive_all(connection) == b""
    assert server.stop().clean and stopped == [(True, [], "stop")]


def test_watcher_that_does_not_end_is_a_survivor(serve, monkeypatch):
    """A program's property may block it: the stop gives it up as it does any other thread, and says so."""
    entered, release = threading.Event(), threading.Event()

    class Server(ThreadedTCPServer):
        """Blocks the watcher, if somebody has asked for that."""

        @property
        def lifetime(self):
            """Block."""
            if threading.current_thread() in watchers():
                entered.set()
                wait_until(release)
            return 1000.0

    monkeypatch.setattr("threaded_echo.stopping._TAIL", 0.05)
    server = serve(Echo, Server)
    wait_until(entered)
    report = server.stop()
    assert [survivor.thread.name for survivor in report.survivors] == ["threaded_echo deadlines"]
    release.set()
    until(lambda: not watchers())


def test_server_without_deadlines_has_no_watcher(serve):
    """Time-outs that the kernel or a handshake keeps need none."""
    server = serve(Echo, send_timeout=5.0, handshake_timeout=5.0, keepalive=5.0)
    assert ask(server) == b"ping\n" and not watchers()


def test_watcher_sleeps_until_there_is_a_client(serve, clock):
    """It waits without a time-out, an accept wakes it, and it goes back to sleep when nobody is left."""
    server = serve(Echo, lifetime=10.0)
    registry = server._threaded_state.registry
    until(lambda: registry.arrival is not None)
    with connect(server) as connection:
        greet(connection)
        until(lambda: registry.arrival is None)
        assert look(server) == 10.0
    until(lambda: not server.clients)
    assert look(server) is None
    with registry.lock:
        watcher_of(server).look_locked()  # as at the end of its sleep, which is in the time of the real clock
    until(lambda: registry.arrival is not None)


def test_client_that_comes_just_ahead_of_the_sleep_is_not_slept_over(clock):
    """The watcher has seen nobody, and looks once more with the lock that an accept takes."""
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=10.0) as server:
        state = server._threaded_state
        watcher = Watcher(state.deadlines, state.registry, server)
        with socket.socket() as request:
            client = state.registry.add(request, "nowhere", Period())
            with state.registry.lock:
                watcher._sleep_locked(None)  # returns
            assert watcher.look_at_all() == 10.0
            state.registry.hand_on(client)


@pytest.mark.parametrize("options, reason", [({"idle_timeout": 0.05}, "idle"), ({"lifetime": 0.05}, "lifetime"),
                                             ({"idle_timeout": 50.0, "lifetime": 0.05}, "lifetime")])
def test_client_is_ended_by_the_real_clock(serve, options, reason):
    """The watcher wakes for the client, and for its deadline, by itself."""
    server = serve(Echo, **options)
    with connect(server) as connection:
        until(lambda: server.clients or server.stats().finished)
        clients = list(server.clients.values())
        assert receive_all(connection) == b""
    server.stop()
    assert [client.reason for client in clients] in ([reason], [])
    assert server.stats().finished == 1 and server.stats().failed == 0


def test_change_of_an_option_is_noticed_at_the_next_look(serve, clock):
    """Each may be changed, taken back and set again while the server serves."""
    server = serve(Echo, lifetime=100.0)
    with connect(server) as connection:
        greet(connection)
        [client] = server.clients.values()
        assert look(server) == 100.0
        server.lifetime = None
        assert look(server) == 100.0, "as often as before"
        clock.now += 100
        assert look(server) == 100.0 and client.reason is None
        server.idle_timeout = 150.0
        assert look(server) == 50.0
        server.idle_timeout = 120.0
        assert look(server) == 20.0
        clock.now += 20
        look(server)
        assert receive_all(connection) == b"" and client.reason == "idle"


def test_change_of_an_option_is_noticed_when_the_server_accepts_again(clock):
    """A loop on handle_request does not have the watcher look each time."""
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=100.0) as server:
        server.timeout = 0
        server.handle_request()
        watcher = watcher_of(server)
        until(lambda: server._threaded_state.registry.arrival)
        looks = []
        watcher.look_locked = lambda: looks.append(watcher.look_at_all())
        server.handle_request()
        assert not looks
        server.idle_timeout = 10.0
        server.handle_request()
        assert len(looks) == 1 and watcher.wanted == (10.0, 100.0)


def test_wrong_option_of_a_loop_on_handle_request_is_named():
    """The same error as that of serve_forever, ahead of any connection."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.keepalive = "on"
        with pytest.raises(TypeError, match="keepalive must be a number of seconds"):
            server.handle_request()


def test_wrong_option_of_a_live_server_is_logged_once_and_changes_nothing(serve, clock, caplog):
    """A thread that ends in an error would end nobody's time any more."""
    server = serve(Echo, lifetime=100.0)
    with connect(server) as connection:
        greet(connection)
        look(server)
        for wrong in ("soon", "soon", -1):
            server.lifetime = wrong
            assert look(server) == 100.0
        server.lifetime = 50.0
        assert look(server) == 50.0
    assert [record.getMessage() for record in caplog.records] == [
        "the time-outs are left as they were: lifetime must be a number of seconds, not 'soon'",
        "the time-outs are left as they were: lifetime must be from 0 to "
        f"{threading.TIMEOUT_MAX:.0f} seconds, not -1"]


def test_idle_timeout_on_a_unix_socket_says_once_that_it_has_no_effect(tmp_path, clock, caplog, monkeypatch):
    """The system does not know how long its clients are silent; their lifetime is known."""
    monkeypatch.setattr(deadlines, "_idle_of", lambda client: client.idle)
    with ThreadedUnixStreamServer(str(tmp_path / "socket"), Echo, idle_timeout=10.0) as server:
        with connect(server) as connection:
            server.handle_request()
            greet(connection)
            [client] = server.clients.values()
            clock.now += 50
            look(server)
            assert client.reason is None
            server.lifetime = 50.0
            server.handle_timeout = lambda: None
            server.timeout = 0
            server.handle_request()
            look(server)
            assert receive_all(connection) == b"" and client.reason == "lifetime"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "idle_timeout has no effect on clients of whom the system cannot tell how long they have been silent, such as "
        "those on Unix sockets; lifetime works"]


def test_idle_timeout_of_a_server_with_a_unix_socket_beside_another_says_so(tmp_path, caplog):
    """It has effect on the clients of the other one."""
    with socket.create_server(LOOPBACK) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        with ThreadedTCPServer.from_sockets([tcp, unix], Echo, idle_timeout=10.0).start():
            pass
    assert "idle_timeout has no effect on clients of whom" in caplog.text


def test_end_of_a_client_is_logged_once_with_its_number_and_reason(serve, clock, caplog):
    """At info level, with fields for programs, and within the bound for records of this kind."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(Echo, lifetime=10.0, logs_per_client=1)
    with connect(server) as one, connect(server) as two:
        greet(one)
        greet(two)
        addresses = [one.getsockname(), two.getsockname()]
        clock.now += 10
        look(server)
        look(server)
        assert receive_all(one) == receive_all(two) == b""
    server.stop()
    record, left_out = caplog.records
    number = record.client
    assert record.getMessage() == f"client {number} was disconnected: its lifetime is over"
    assert (record.levelno, record.event) == (logging.INFO, "lifetime")
    assert record.address in addresses
    assert left_out.getMessage() == "1 more clients whose time was up were not logged"


def test_handler_that_sends_after_its_client_was_ended_has_not_failed(serve, clock):
    """Its error is the deadline's doing; `client_disconnected` finds the reason."""
    gate = Gate(lambda handler: handler.request.sendall(b"x" * 10_000_000))
    told = []
    server = serve(gate.handler, subclass(client_disconnected=lambda self, client: told.append(client.reason)),
                   idle_timeout=10.0)
    with connect(server) as connection:
        wait_until(gate.entered)
        clock.now += 10
        look(server)
        gate.release.set()
        assert receive_all(connection) == b""
    server.stop()
    assert told == ["idle"]
    stats: ServerStats = server.stats()
    assert (stats.finished, stats.failed) == (1, 0)


def test_server_that_a_program_drops_lets_its_watcher_end():
    """Nobody stops it, and nothing that the watcher keeps holds it."""
    server = ThreadedTCPServer(LOOPBACK, Echo, idle_timeout=1000.0)
    server.timeout = 0
    server.handle_request()
    watcher = watcher_of(server)
    assert watcher.is_alive()
    server.socket.close()
    del server
    gc.collect()
    until(lambda: not watcher.is_alive())
    assert watcher.look_at_all() is None


def test_watcher_that_cannot_be_started_is_an_error_of_serving(serve, monkeypatch):
    """It is raised, and the next attempt may succeed."""
    starts = []

    def start(thread):
        starts.append(thread)
        if len(starts) == 1:
            raise RuntimeError("can't start new thread")
        threading.Thread.start(thread)

    monkeypatch.setattr(Watcher, "start", start)
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=1000.0) as server:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            server.start()
        assert watcher_of(server) is None
        assert ask(server.start()) == b"ping\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_watcher_that_a_signal_handlers_stop_meets_as_it_is_started_ends(monkeypatch, when):
    """The handler runs in the thread that starts it, with its lock, in the middle of it."""
    started = []

    def start(thread):
        started.append(thread)
        if when == "before":
            server.stop()
        threading.Thread.start(thread)
        if when == "after":
            server._threaded_state.stopping.period.stop()

    monkeypatch.setattr(Watcher, "start", start)
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=1000.0) as server:
        state = server._threaded_state
        state.deadlines.begin(server, state.stopping.period)
        assert watcher_of(server) is None
        [watcher] = started
        until(lambda: not watcher.is_alive())


def test_server_that_is_stopped_as_it_begins_to_serve_starts_no_watcher():
    """The stop that would end it is over already."""
    with ThreadedTCPServer(LOOPBACK, Echo, lifetime=1000.0) as server:
        period = Period()
        period.stop()
        server._threaded_state.deadlines.begin(server, period)
        assert watcher_of(server) is None


def test_own_period_of_a_forked_process_has_no_watcher(serve):
    """The child's copy of a server has a fresh state, as its parent's threads are not there."""
    server = serve(Echo, lifetime=1000.0)
    state = server._threaded_state
    state.process += 1  # as it would be in a child
    try:
        fresh = type(state).of(server)
        assert fresh.deadlines._watcher is None and fresh.registry.arrival is None
    finally:
        state.process -= 1
        server._threaded_state = state


def test_requests_of_the_web_server_are_answered_within_the_deadlines(serve):
    """Many clients come and go while both deadlines are set."""
    class Handler(socketserver.StreamRequestHandler):
        """Answers one line."""

        def handle(self):
            """Answer."""
            self.wfile.write(self.rfile.readline())
            assert current_client().reason is None

    server = serve(Handler, idle_timeout=40.0, lifetime=40.0)
    started = time.monotonic()
    assert [ask(server) for _ in range(20)] == [b"ping\n"] * 20 and time.monotonic() - started < 40
    server.stop()
    assert server.stats().finished == 20
