"""What `dump` tells of each client, and the signal that has it logged."""
from __future__ import annotations

import _thread
import logging
import os
import queue
import re
import signal
import socketserver
import threading
import weakref

import pytest

from threaded_echo import ClientHandler, ThreadedMixIn, ThreadedTCPServer, WorkerThreads, dumping

from .tools import GUARD, LOOPBACK, Echo, connect, running, wait_until

USR1 = signal.SIGUSR1

ENTERED: queue.SimpleQueue[None] = queue.SimpleQueue()
RELEASE: queue.SimpleQueue[None] = queue.SimpleQueue()


def stay():
    """Say that this thread is here, and wait, on one line and in C: so that its stack is known from then on."""
    ENTERED.put(None), RELEASE.get(True, GUARD)


class Stay(socketserver.BaseRequestHandler):
    """Stays."""

    def handle(self) -> None:
        """Stay."""
        stay()


class Offload(ClientHandler):
    """Offloads the same."""

    def process(self, data):
        """Offload."""
        return self.offload(stay)


class Opening(ThreadedTCPServer):
    """Stays in a hook of the serving thread."""

    def verify_request(self, request, client_address):
        """Stay."""
        stay()
        return True


@pytest.fixture(autouse=True)
def nothing_stays():
    """Check that each thread that has stayed was released."""
    yield
    assert ENTERED.empty() and RELEASE.empty()


def entered(count=1):
    """Wait until so many threads stay."""
    for _ in range(count):
        ENTERED.get(True, GUARD)


def release(count=1):
    """Let them go on."""
    for _ in range(count):
        RELEASE.put(None)


def parts(text):
    """Split a dump into paragraphs of lines, without ages, line numbers and the folders of files."""
    text = re.sub(r"\d+\.\d s old", "AGE", re.sub(r'"/.*/(\w+\.py)", line \d+', r"\1", text))
    return [paragraph.splitlines() for paragraph in text.split("\n\n")]


def shown(client):
    """Return a client's address as the dump shows it."""
    return f"127.0.0.1:{client.getsockname()[1]}"


STACK = ["  File test_dumping.py, in stay", "    ENTERED.put(None), RELEASE.get(True, GUARD)"]
HANDLE = ["  File test_dumping.py, in handle", "    stay()", *STACK]


def test_clients_are_told_with_their_state_and_their_stack(serve):
    """The stack begins at the program's own first call. Clients that are at the same lines are listed together."""
    server = serve(Stay)
    assert server.dump() == f"0 clients live on 127.0.0.1:{server.server_address[1]}\n"
    with connect(server) as one, connect(server) as other:
        entered(2)
        first, group = parts(server.dump())
        release(2)
        names = [f"client {number}, from {shown(client)}: serving, AGE" for number, client in ((1, one), (2, other))]
    assert first == [f"2 clients live on 127.0.0.1:{server.server_address[1]}"]
    assert group == [*names, *HANDLE]


def test_client_that_is_being_disconnected_is_told_with_the_reason(serve):
    """Its handler may take no notice."""
    server = serve(Stay)
    with connect(server):
        entered()
        server.clients[1].disconnect()
        _, group = parts(server.dump())
        release()
    assert re.search(": disconnecting \\(disconnect\\), AGE$", group[0])


def test_client_that_has_no_thread_yet_is_told_with_the_serving_thread(serve):
    """A hook of the program's may hold that up."""
    server = serve(Echo, Opening)
    with connect(server):
        entered()
        first, client, thread = parts(server.dump())
        release()
    assert first[0].startswith("1 client live on ")
    assert client[0].endswith(": accepted, AGE") and client[1:] == ["  (no thread serves it yet)"]
    assert thread[0].endswith(", which accepts clients") and thread[-2:] == STACK


def test_client_that_computes_is_told_with_its_call(serve, meet, meeting):
    """In a worker process the function has no stack here: its name is told."""
    server = meet(executor=1)
    with connect(server) as client:
        client.sendall(b"\n")
        meeting.welcome()
        _, group = parts(server.dump())
        meeting.dismiss()
        assert group[0] == f"client 1, from {shown(client)}: computing, AGE"
        assert group[1] == "  offloads tests.calls.meet, running, AGE"
        assert group[2].endswith("in process")


@pytest.mark.filterwarnings("ignore:WorkerThreads")
def test_client_that_computes_in_a_thread_is_told_with_the_stack_of_that(serve):
    """And with its own; what the program offloads by itself is not told."""
    server = serve(Offload, executor=WorkerThreads(2))
    with connect(server) as client, running(server.offload, stay):
        client.sendall(b"\n")
        entered(2)
        _, group = parts(server.dump())
        release(2)
    assert group[1] == "  offloads tests.test_dumping.stay, running, AGE"
    assert re.fullmatch("  in thread .*worker thread .:", group[2])
    assert group[3:6] == [*STACK, "  and its own thread:"]
    assert group[6:8] == ["  File test_dumping.py, in process", "    return self.offload(stay)"]


def test_stack_that_cannot_be_read_is_told(serve, monkeypatch):
    """So may be those of more threads than the interpreter tells of."""
    monkeypatch.setattr(dumping, "stacks_of", lambda threads: {})
    server = serve(Stay)
    with connect(server):
        entered()
        _, group = parts(server.dump())
        release()
    assert group[1:] == ["  (its lines cannot be read now)"]


def test_handler_can_dump_its_own_server(serve):
    """Its own stack ends in that."""
    class Dumps(ClientHandler):
        """Replies with the dump."""

        def process(self, data):
            """Dump."""
            return self.server.dump().encode()

    server = serve(Dumps)
    with connect(server) as client:
        client.sendall(b"x")
        assert b"\n    return self.server.dump().encode()\n" in client.recv(65536)


def test_dump_of_a_program_is_left_alone(records):
    """An existing server may have a method of that name; the signal logs this package's all the same."""
    class Server(socketserver.ThreadingTCPServer):
        """Dumps something else."""

        def dump(self):
            """Do."""
            return "its own"

    with type("Mixed", (ThreadedMixIn, Server), {})(LOOPBACK, Echo) as server:
        assert server.dump() == "its own"
        server.dump_on_signal()
        signal.raise_signal(USR1)
        assert records.next().startswith("SIGUSR1: 0 clients live")


# The signal.


class Records(logging.Handler):
    """Keeps the dumps that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record):
        """Keep it."""
        if getattr(record, "event", None) == "dump":
            self._records.put(record)

    def next(self):
        """Wait for the next one."""
        return self._records.get(True, GUARD).getMessage()

    def are_there(self):
        """Return whether there is another one."""
        return not self._records.empty()


@pytest.fixture
def records():
    """Collect the dumps; afterwards the signal does what it did before."""
    before = signal.getsignal(USR1)
    handler = Records()
    logger = logging.getLogger("threaded_echo")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    signal.signal(USR1, before)


def test_signal_has_the_dump_logged(serve, records):
    """At WARNING, in a thread that a stop joins."""
    before = signal.getsignal(USR1)
    server = serve(Stay)
    assert server.dump_on_signal() is before
    with connect(server):
        entered()
        signal.raise_signal(USR1)
        text = records.next()
        release()
    first, group = parts(text)
    assert first == [f"SIGUSR1: 1 client live on 127.0.0.1:{server.server_address[1]}"] and group[1:] == HANDLE
    server.stop()
    assert not [thread for thread in threading.enumerate() if "SIGUSR1" in thread.name]


@pytest.mark.parametrize("lock", ["server", "logging", "threading"])
def test_signal_that_comes_while_the_main_thread_holds_a_lock_waits_for_nothing(serve, records, lock):
    """The handler returns at once, and the dump comes when the lock is free."""
    server = serve(Echo)
    server.dump_on_signal()
    with {"server": server._threaded_state.registry.lock, "logging": records.lock,
          "threading": threading._active_limbo_lock}[lock]:
        signal.raise_signal(USR1)
        assert not records.are_there()
    assert records.next().startswith("SIGUSR1: 0 clients live")


@pytest.mark.parametrize("serve_until", ["run", "serve_forever"])
def test_signal_that_comes_while_the_main_thread_serves_has_the_dump_logged(records, serve_until):
    """And the server goes on."""
    told: list[str] = []
    with ThreadedTCPServer(LOOPBACK, Stay) as server:
        server.dump_on_signal()

        def operate():
            """Ask, and stop."""
            with connect(server):
                entered()
                os.kill(os.getpid(), USR1)
                with connect(server):  # wakes the main thread also if the signal came just before it began to wait
                    told.append(records.next())
                    entered()
                release(2)
            server.stop()

        with running(operate):
            getattr(server, serve_until)()
    assert parts(told[0])[1][-4:] == HANDLE


def test_signal_that_comes_while_a_dump_is_written_is_left_out(serve, records):
    """However many come, one thread at most waits for the log."""
    server = serve(Echo)
    server.dump_on_signal()
    handler = signal.getsignal(USR1)
    with handler._in_progress:
        handler._log([server])
    assert not records.are_there()
    handler._log([server])
    assert records.are_there()


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="the platform has no real-time signals")
def test_signal_without_a_name_is_told_by_its_number(serve, records):
    """Real-time signals have none but for the first and the last."""
    number = signal.SIGRTMIN + 1
    before = serve(Echo).dump_on_signal(number)
    signal.raise_signal(number)
    assert records.next().startswith(f"signal {int(number)}: 0 clients live")
    signal.signal(number, before)


def test_servers_may_share_a_signal(serve, records):
    """Each is told once, also if it has asked for it twice."""
    one, other = serve(Echo), serve(Echo)
    for server in (one, other, one):
        server.dump_on_signal(USR1)
    signal.raise_signal(USR1)
    assert {records.next().rpartition(":")[2] for _ in range(2)} == {
        str(server.server_address[1]) for server in (one, other)}
    one.stop()  # which joins the thread that tells
    assert not records.are_there()


def test_signal_after_the_end_of_the_server_finds_no_clients_and_keeps_no_server_alive(records):
    """A late one does not end the process, as it would without a handler."""
    server = ThreadedTCPServer(LOOPBACK, Echo)
    server.dump_on_signal()
    server.stop()
    signal.raise_signal(USR1)
    assert records.next().startswith("SIGUSR1: 0 clients live")
    server.stop(drain=GUARD)  # joins the thread that has told it
    gone = threading.Event()
    weakref.finalize(server, gone.set)
    del server
    wait_until(gone)
    signal.getsignal(USR1)._start()  # as its handler does, in a thread
    assert not records.are_there()


@pytest.mark.parametrize("where", ["a thread for the handler", "the thread of the dump"])
def test_signal_for_which_there_is_no_thread_does_nothing(serve, records, monkeypatch, where):
    """Nor does it harm the program's main thread."""
    def fail(*arguments, **keywords):
        raise RuntimeError("can't start new thread")

    server = serve(Echo)
    server.dump_on_signal()
    if where == "a thread for the handler":
        monkeypatch.setattr(_thread, "start_new_thread", fail)
        signal.raise_signal(USR1)
    else:
        monkeypatch.setattr(threading.Thread, "start", fail)
        signal.getsignal(USR1)._start()
    assert not records.are_there()


def test_signal_can_be_asked_for_in_the_main_thread_only(serve, records):
    """The error says so."""
    server = serve(Echo)
    caught: list[ValueError] = []

    def ask():
        with pytest.raises(ValueError) as found:
            server.dump_on_signal()
        caught.append(found.value)

    with running(ask):
        pass
    assert "must be called in the main thread" in str(caught[0])


@pytest.mark.parametrize("number, message", [
    (None, "no SIGUSR1"), (signal.SIGKILL, "SIGKILL cannot be handled"), (signal.NSIG + 1, "out of range")])
def test_signal_that_cannot_be_handled_is_an_error(serve, records, number, message):
    """So is the default, if the platform has none."""
    with pytest.raises(ValueError, match=message):
        serve(Echo).dump_on_signal(number)
