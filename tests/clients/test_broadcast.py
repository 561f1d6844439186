"""Broadcasts of a server: to all, and none of them waits for another."""
from __future__ import annotations

import signal
import socket
import ssl
import threading
from contextlib import ExitStack

import pytest

from threaded_echo import ClientHandler, LineHandler, ThreadedTCPServer, ThreadedUnixStreamServer
from threaded_echo.clients import broadcast, client as client_module
from threaded_echo.clients.backlog import MOST_WAITING

from ..conftest import LOOPBACK
from ..overrides import InOwnThread, InPool, InPoolByFinishRequest, OwnAccept, OwnClose, OwnShutdown, OwnThreadBody
from ..tools import GUARD, Echo, Gate, connect, receive, receive_all, running, subclass, until, wait_until
from ..transport.test_tls import CERTIFICATE, server_context, wrap_tls
from .slow import PIECE, connect_slowly, frame, frames, hold_little, waiting


class Quiet(ClientHandler):
    """Receives, and sends nothing."""


class Answering(LineHandler):
    """Answers each line."""

    def process(self, line):
        """Return the line in capitals."""
        return line.upper()


def senders():
    """Find the sender threads that run."""
    return [thread for thread in threading.enumerate() if isinstance(thread, broadcast.Sender)]


def several(stack, server, count):
    """Connect so many clients, whose handlers have begun."""
    clients = [stack.enter_context(connect(server)) for _ in range(count)]
    until(lambda: [client.state for client in server.clients.values()].count("serving") == count)
    return clients


def test_every_client_gets_it_but_those_that_are_excluded(serve):
    """They are named by numbers, by clients, or both; one of them needs no list."""
    server = serve(Quiet)
    with ExitStack() as stack:
        clients = several(stack, server, 4)
        assert server.broadcast(b"to all\n") == ()
        assert server.broadcast(bytearray(b"not to 1\n"), exclude=1) == ()
        assert server.broadcast(memoryview(b"not to 2\n"), exclude=server.clients[2]) == ()
        assert server.broadcast(b"not to 3, 4\n", exclude=[3, server.clients[4]]) == ()
        assert server.broadcast(b"") == ()
        assert not senders(), "nothing has to wait"
        for number, connection in enumerate(clients, 1):
            expected = b"".join(message for message in (b"to all\n", b"not to 1\n", b"not to 2\n", b"not to 3, 4\n")
                                if b"%d" % number not in message)
            assert receive(connection, len(expected)) == expected
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_broadcast_of_a_handler_comes_to_itself_too_unless_it_is_excluded(serve):
    """It may name itself as its client."""
    class Handler(LineHandler):
        """Broadcasts each line."""

        def process(self, line):
            """Send to all, or to the others."""
            assert self.server.broadcast(line + b"\n", exclude=[self.client] if line == b"others" else ()) == ()

    server = serve(Handler)
    with ExitStack() as stack:
        one, two = several(stack, server, 2)
        one.sendall(b"others\nall\n")
        assert receive(one, 4) == b"all\n"
        assert receive(two, 11) == b"others\nall\n"


@pytest.mark.parametrize("data, named", [("text", "'text'; encode it first"), (7, "7"), (None, "None"),
                                         ([1], r"\[1\]")])
def test_data_that_is_not_bytes_is_an_error_that_names_it(serve, data, named):
    """Nothing is sent to anybody."""
    with pytest.raises(TypeError, match=f"^broadcast: data must be bytes-like, not {named}$"):
        serve(Quiet).broadcast(data)


@pytest.mark.parametrize("exclude, named", [("ab", "'[ab]'"), (["1"], "'1'"), (None, "None"), ([[1]], r"\[\[1\]\]")])
def test_exclude_that_names_no_clients_is_an_error_that_names_it(serve, exclude, named):
    """Neither a text nor None stands for clients."""
    with pytest.raises(TypeError, match=f"^broadcast: exclude must be clients or their numbers, not {named}$"):
        serve(Quiet).broadcast(b"x", exclude)


def test_client_that_reads_nothing_holds_up_nobody(serve):
    """The others get all of it at once; when it reads at last, it gets the same."""
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow, connect_slowly(server) as quick:
        for _ in range(3):
            with running(receive, quick, len(PIECE)):
                assert server.broadcast(PIECE) == ()
        assert waiting(server.clients[1]) > 2 * len(PIECE) and len(senders()) == 1
        assert receive(slow, 3 * len(PIECE)) == 3 * PIECE
        until(lambda: server.clients[1]._connection.obstacle is None)


def test_client_for_which_too_much_waits_is_disconnected(serve, caplog):
    """The reason and the log say so, and its number is returned; one long message may wait."""
    caplog.set_level("INFO", logger="threaded_echo")
    server = hold_little(serve(Quiet))
    long = bytes(MOST_WAITING + 100_000)
    with connect_slowly(server) as slow:
        client = server.clients[1]
        assert server.broadcast(long) == ()
        assert server.broadcast(b"x") == (1,)
        assert client.reason == "send"
        assert server.broadcast(b"y") in ((1,), ())  # it may have gone already
        until(lambda: client.state == "gone")
        assert b"x" not in receive_all(slow)
    server.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "client 1 was disconnected: it did not take what was sent to it"]
    assert server.stats().disconnected == {"send": 1} and server.stats().failed == 0


def test_reply_goes_after_what_waits(serve):
    """The handler itself sends the rest of the message first."""
    server = hold_little(serve(Answering))
    with connect_slowly(server) as slow:
        assert server.broadcast(PIECE) == ()
        slow.sendall(b"hello\n")
        until(lambda: waiting(server.clients[1]) == 0)  # it has taken the queue over
        assert server.broadcast(b"last\n") == ()
        assert receive(slow, len(PIECE) + 11) == PIECE + b"HELLO\nlast\n"


def test_send_of_another_thread_goes_after_what_waits(serve):
    """What one thread broadcasts, and what it then sends, arrive in this order."""
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow:
        assert server.broadcast(PIECE) == ()
        with running(server.clients[1].send, b"then this"):
            assert receive(slow, len(PIECE) + 9) == PIECE + b"then this"


TLS, UNIX = "TLS", "Unix"


@pytest.mark.parametrize("kind", ["TCP", UNIX, TLS])
def test_messages_of_several_threads_are_whole_and_in_order(tmp_path, kind):
    """Two threads broadcast while each handler sends long replies of its own; every message has a checksum."""
    count, clients = 20, 3

    class Handler(ClientHandler):
        """Sends long messages when it is asked to."""

        def process(self, data):
            """Return the last one, and send the others."""
            for number in range(count - 1):
                self.send(frame(3, number, 30_000))
            return frame(3, count - 1, 30_000)

    server = (ThreadedUnixStreamServer(str(tmp_path / "socket"), Handler) if kind == UNIX else
              ThreadedTCPServer(LOOPBACK, Handler, ssl_context=server_context() if kind == TLS else None))
    with hold_little(server).start(), ExitStack() as stack:
        connections = []
        for _ in range(clients):
            connection = stack.enter_context(connect(server))
            connections.append(stack.enter_context(wrap_tls(connection)) if kind == TLS else connection)
        until(lambda: [client.state for client in server.clients.values()].count("serving") == clients)

        def tell(sender):
            for number in range(count):
                assert server.broadcast(frame(sender, number, 7000 * sender)) == ()

        def check(connection):
            connection.sendall(b"go")
            got = frames(connection)
            found.append([next(got) for _ in range(3 * count)])

        found = []
        with ExitStack() as threads:
            for target, argument in [*((check, each) for each in connections), (tell, 1), (tell, 2)]:
                threads.enter_context(running(target, argument))
    assert len(found) == clients
    for messages in found:
        for sender in (1, 2, 3):
            assert [number for who, number in messages if who == sender] == list(range(count))


def test_client_to_which_another_thread_sends_gets_it_afterwards(serve):
    """The broadcast does not wait for that thread, which waits for the client."""
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow, running(server.clients[1].send, PIECE):
        until(server.clients[1]._connection.sending.locked)
        assert server.broadcast(b"afterwards") == ()
        assert receive(slow, len(PIECE) + 10) == PIECE + b"afterwards"


def test_broadcast_in_a_signal_handler_that_interrupts_a_send_is_queued(serve):
    """It may have interrupted the thread that holds the connection."""
    server = serve(Quiet)
    with connect(server) as connection:
        until(lambda: server.clients and server.clients[1].state == "serving")
        before = signal.signal(signal.SIGUSR1, lambda *_: missed.append(server.broadcast(b"from the handler")))
        missed = []
        try:
            with server.clients[1]._connection.sending:
                signal.raise_signal(signal.SIGUSR1)
                assert missed == [()] and waiting(server.clients[1]) == 16
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert receive(connection, 16) == b"from the handler"


def test_client_that_is_still_shaking_hands_is_not_reached(serve):
    """Its number is returned, and nothing goes out in the clear."""
    server = serve(Quiet, ssl_context=server_context())
    with connect(server) as connection:
        until(lambda: server.clients and server.clients[1].state == "handshaking")
        assert server.broadcast(b"secret") == (1,)
        with wrap_tls(connection) as client:
            until(lambda: server.clients[1].state == "serving")
            assert server.broadcast(b"now") == ()
            assert client.recv(100) == b"now"


def test_client_that_is_being_disconnected_is_not_reached(serve):
    """That is no error."""
    gate = Gate()
    server = serve(gate.handler)
    with connect(server):
        wait_until(gate.entered)
        server.clients[1].disconnect()
        assert server.broadcast(b"x") == (1,)
        gate.release.set()


def test_client_that_has_reset_is_not_reached(serve):
    """Its handler does something else, and has not seen it yet."""
    gate = Gate()
    server = serve(gate.handler)
    with connect(server) as connection:
        wait_until(gate.entered)
        server.clients[1]._connection.request.shutdown(socket.SHUT_WR)  # as for a send after a reset
        assert server.broadcast(b"x") == (1,)
        assert server.broadcast(b"x") == (1,)
        assert connection.recv(1) == b"" and server.clients[1].reason is None
        gate.release.set()


class Wrapped(socket.socket):
    """A program's own, which sends in its own form."""

    def sendall(self, data, flags=0):
        """Send in brackets."""
        super().sendall(b"[" + data + b"]")


class Counting(socket.socket):
    """A program's own, which sends as sockets do."""


@pytest.mark.parametrize("cls, reached", [(Wrapped, False), (Counting, True)])
def test_connection_of_a_class_of_ones_own_is_reached_if_it_sends_as_sockets_do(serve, cls, reached):
    """Whoever has a form of its own must not get anything without it."""
    def get_request(server):
        request, address = ThreadedTCPServer.get_request(server)
        return cls(fileno=request.detach()), address

    server = serve(Quiet, subclass(get_request=get_request))
    with connect(server) as connection:
        until(lambda: server.clients and server.clients[1].state == "serving")
        assert server.broadcast(b"x") == (() if reached else (1,))
        with server.clients[1]._connection.sending:  # it makes no difference that somebody sends just now
            assert server.broadcast(b"x") == (() if reached else (1,))
        server.clients[1].send(b"y")
        assert receive(connection, 3) == (b"xxy" if reached else b"[y]")


@pytest.mark.parametrize("timeout", [0.0, GUARD])
def test_socket_that_has_a_time_out_is_not_waited_for(serve, timeout):
    """The program has set its connection to that, and the broadcast goes by what there is room for."""
    gate = Gate(lambda handler: handler.request.settimeout(GUARD))

    class Handler(gate.handler):
        """Has a time-out."""

        def setup(self):
            """Set it."""
            self.request.settimeout(timeout)

    server = hold_little(serve(Handler))
    with connect_slowly(server) as slow:
        wait_until(gate.entered)
        assert server.broadcast(PIECE) == () == server.broadcast(PIECE)
        assert server.clients[1]._connection.request.gettimeout() == timeout
        assert receive(slow, 2 * len(PIECE)) == 2 * PIECE
        gate.release.set()


def test_handler_that_ends_sends_what_is_queued(serve):
    """The client has ended its stream, and gets what was sent to it before that."""
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow:
        assert server.broadcast(PIECE) == ()
        slow.shutdown(socket.SHUT_WR)
        assert receive_all(slow) == PIECE


@pytest.mark.parametrize("override", [InPool, InPoolByFinishRequest, InOwnThread, OwnThreadBody, OwnShutdown, OwnClose,
                                      OwnAccept])
def test_hook_that_a_program_overrides_loses_nothing(serve, override):
    """Whoever closes the connection, what is queued goes out before."""
    server = hold_little(serve(Quiet, type("Server", (override, ThreadedTCPServer), {})))
    with connect_slowly(server) as slow:
        assert server.broadcast(PIECE) == ()
        slow.shutdown(socket.SHUT_WR)
        assert receive_all(slow) == PIECE


def test_handler_that_ends_waits_for_a_while_only(serve, monkeypatch):
    """Then the connection is closed in the middle of a message, and nothing follows."""
    monkeypatch.setattr(client_module, "LINGER", 0.0)
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow:
        client = server.clients[1]
        assert server.broadcast(PIECE) == ()
        slow.shutdown(socket.SHUT_WR)
        until(lambda: client.state == "gone")
        assert PIECE.startswith(received := receive_all(slow)) and len(received) < len(PIECE)


@pytest.mark.parametrize("tls", [False, True])
def test_stop_sends_what_is_queued_while_it_drains(serve, tls):
    """The client begins to read after the stop has begun, and gets a proper end."""
    server = hold_little(serve(Answering, ssl_context=server_context() if tls else None))
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.check_hostname = False
    reports = []
    with connect(server) as slow:
        if tls:
            slow = context.wrap_socket(slow, suppress_ragged_eofs=False)
        with slow:
            until(lambda: server.clients and server.clients[1].state == "serving")
            big = bytes(1_000_000)  # more than the kernel takes for who does not receive
            assert server.broadcast(big) == ()
            with running(lambda: reports.append(server.stop(drain=GUARD))):
                wait_until(server.stopping)
                assert receive_all(slow) == big
    assert (reports[0].drained, reports[0].forced, reports[0].survivors) == (1, 0, ())
    assert not senders()


def test_stop_drops_what_is_queued_when_it_cuts(serve):
    """Nothing follows a message that was sent in part, and no thread is left."""
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow:
        assert server.broadcast(PIECE) == () == server.broadcast(b"next")
        report = server.stop(drain=0)
        assert (report.forced, report.survivors) == (1, ()) and not senders()
        assert b"next" not in receive_all(slow)


def test_handler_that_has_stopped_its_server_may_still_broadcast(serve):
    """To itself, as nobody else is left; but nothing waits any more."""
    missed = []

    def stop_and_send(handler):
        handler.server.stop(0, 0)
        missed.extend([handler.server.broadcast(b"x"), handler.server.broadcast(PIECE)])

    gate = Gate(stop_and_send)
    server = hold_little(serve(gate.handler))
    with connect_slowly(server) as slow:
        wait_until(gate.entered)
        gate.release.set()
        assert receive_all(slow).startswith(b"x")
        until(lambda: missed)
    assert missed == [(), (1,)] and not senders()


def test_server_that_is_not_serving_has_nobody_to_reach():
    """Before it serves, and after it has stopped."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert server.broadcast(b"x") == ()
    assert server.broadcast(b"x") == ()
