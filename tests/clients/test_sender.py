"""The thread that sends what waits: what it waits for, and what becomes of a client for which it waits in vain."""
from __future__ import annotations

import selectors
import socket
import threading
from contextlib import contextmanager

import pytest

from threaded_echo import ClientHandler, ThreadedUnixStreamServer
from threaded_echo.clients import broadcast
from threaded_echo.clients.backlog import Offer
from threaded_echo.clients.broadcast import Broadcasts, Sender
from threaded_echo.clients.connection import Connection
from threaded_echo.clients.period import Period
from threaded_echo.clients.registry import HandlerRegistry
from threaded_echo.clients.threads import HandlerThreads
from threaded_echo.transport.kernel_timeouts import KernelTimeouts
from threaded_echo.transport.waker import Waker

from ..conftest import LOOPBACK
from ..tools import Gate, receive, receive_all, until, wait_until
from .slow import PIECE, SMALL, connect_slowly, hold_little, waiting


class Quiet(ClientHandler):
    """Receives, and sends nothing."""


@contextmanager
def slow_client():
    """Make the parts of a server with one slow client, whose sender is the test's to run; yield them and the client."""
    parts = Broadcasts(HandlerThreads(HandlerRegistry()), KernelTimeouts())
    with socket.create_server(LOOPBACK) as listener, socket.socket() as outer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        outer.settimeout(20)
        outer.connect(listener.getsockname())
        request, address = listener.accept()
        with request:
            client = parts._registry.add(request, address, Period())
            client._begin(threading.current_thread(), "serving")
            parts.sender = sender = Sender(parts)
            now = [100.0]
            parts.clock = lambda: now[0]
            assert parts.send_to_all(PIECE) == ()
            sender._go_on(sender._added.popleft())
            try:
                yield sender, client, outer, now
            finally:
                client._end()
                if parts.sender is sender:
                    sender._ends = True
                    sender.run()


def test_client_whose_handler_has_not_begun_is_not_reached():
    """It may be refused yet, or have no thread for long."""
    parts = Broadcasts(HandlerThreads(HandlerRegistry()), KernelTimeouts())
    request, outer = socket.socketpair()
    with request, outer:
        client = parts._registry.add(request, "", Period())
        assert parts.send_to_all(b"too early") == (1,)
        client._begin(threading.current_thread(), "serving")
        assert parts.send_to_all(b"x") == () and outer.recv(100) == b"x"
        client._end()


def test_client_that_takes_nothing_for_the_send_timeout_is_disconnected(monkeypatch):
    """The sender wakes at that time, and not before."""
    with slow_client() as (sender, client, outer, now):
        sender._broadcasts.timeouts.send_timeout = 3.0
        assert sender._patience() == 3.0
        now[0] += 2
        assert sender._patience() == 1.0
        sender._end_late(now[0])
        assert client.reason is None
        now[0] += 1
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "go_on", lambda connection: Offer.WAITS)
            patch.setattr(broadcast, "has_stalled", lambda connection, seconds: seconds == 3.0)  # no time has passed
            sender._end_late(now[0])
        assert client.reason == "send" and sender._patience() == 3.0


def test_client_that_the_kernel_sees_take_something_is_not_late(monkeypatch):
    """It reads slowly, so that there is no room for long."""
    with slow_client() as (sender, client, outer, now):
        sender._broadcasts.timeouts.send_timeout = 3.0
        now[0] += 3
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "go_on", lambda connection: Offer.WAITS)
            sender._end_late(now[0])  # by the kernel's clock, no time has passed
        assert client.reason is None and sender._patience() == 3.0


def test_client_that_takes_something_at_the_last_moment_is_not_late(monkeypatch):
    """The sender tries once more before it looks at the kernel's clock."""
    with slow_client() as (sender, client, outer, now):
        sender._broadcasts.timeouts.send_timeout = 3.0
        now[0] += 3
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "go_on", lambda connection: Offer.MOVED)
            patch.setattr(broadcast, "has_stalled", lambda connection, seconds: True)
            sender._end_late(now[0])
        assert client.reason is None and sender._patience() == 3.0


def test_client_that_takes_a_part_has_its_time_anew():
    """As soon as there is room, the sender sends."""
    with slow_client() as (sender, client, outer, now):
        sender._broadcasts.timeouts.send_timeout = 3.0
        before = waiting(client)
        now[0] += 2
        until(lambda: outer.recv(65536) and sender._wait() and waiting(client) < before)
        assert sender._patience() == 3.0
        sender._end_late(now[0] + 2)
        assert client.reason is None


def test_client_to_whom_another_thread_sends_is_tried_again_a_little_later():
    """There is room, so that waiting for room would be no waiting."""
    with slow_client() as (sender, client, outer, now):
        with client._connection.sending:
            sender._go_on(client, has_room=True)
            assert sender._patience() == pytest.approx(broadcast.PAUSE) and not sender._descriptors
            sender._go_on(client)
            assert not sender._descriptors, "it is still paused"
        now[0] += broadcast.PAUSE
        sender.look_at(client)  # whatever wakes it
        assert sender._wait()
        assert sender._descriptors and sender._patience() == broadcast.STAY


def test_client_whose_queue_is_taken_over_is_forgotten():
    """Nobody waits for it any more, nor keeps its connection open."""
    with slow_client() as (sender, client, outer, now):
        receiving = threading.Thread(target=receive, args=[outer, len(PIECE) + 1])
        receiving.start()
        client.send(b"x")
        receiving.join()
        assert sender._added
        sender._go_on(sender._added.popleft())
        assert not sender._since and not sender._descriptors


def test_client_that_is_cut_is_forgotten():
    """Its error ends the waiting for room."""
    with slow_client() as (sender, client, outer, now):
        client.disconnect()
        assert sender._wait()
        assert not sender._since and client.reason == "disconnect"
        assert sender._broadcasts.send_to_all(b"x") == (1,)


def test_client_is_tried_from_time_to_time_when_descriptors_have_run_out(monkeypatch):
    """It needs one to wait with."""
    def fail(connection):
        raise OSError(24, "Too many open files")

    with slow_client() as (sender, client, outer, now):
        sender._forget_descriptor(client)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "duplicate", fail)
            sender._go_on(client)
        assert client in sender._paused

        def refuse(*_):
            raise OSError(28, "No space left on device")

        del sender._paused[client]
        with monkeypatch.context() as patch:
            patch.setattr(sender._selector, "register", refuse)
            sender._go_on(client)
        assert client in sender._paused and not sender._descriptors


def test_sender_ends_when_nothing_has_waited_for_a_while(serve, monkeypatch):
    """The next message that has to wait starts another one."""
    monkeypatch.setattr(broadcast, "STAY", 0.0)
    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow:
        for _ in range(2):
            assert server.broadcast(PIECE) == ()
            assert receive(slow, len(PIECE)) == PIECE
            until(lambda: server._threaded_state.broadcasts.sender is None)


def test_signal_handler_that_needs_the_sender_while_it_is_made_makes_the_only_one(serve, monkeypatch):
    """It has interrupted the thread that makes one, and cannot wait for it."""
    interrupted = []

    def make():
        if not interrupted:
            interrupted.append(None)
            interrupted[0] = server.broadcast(b"from a signal handler")
        return Waker()

    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow:
        monkeypatch.setattr(broadcast, "Waker", make)
        assert server.broadcast(PIECE) == () and interrupted == [()]
        assert len([thread for thread in threading.enumerate() if isinstance(thread, Sender)]) == 1
        assert receive(slow, len(PIECE) + 21) == PIECE + b"from a signal handler"


def test_sender_that_fails_leaves_room_for_another(monkeypatch):
    """Whatever that may be, nothing of it stays open."""
    parts = Broadcasts(HandlerThreads(HandlerRegistry()), KernelTimeouts())
    parts.sender = sender = Sender(parts)
    monkeypatch.setattr(sender, "_wait", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sender.run()
    assert parts.sender is None and sender._waker.fileno() < 0


def test_sender_that_fails_leaves_no_client_waiting(monkeypatch):
    """A client must not miss a part; the next sender would not know of it."""
    with slow_client() as (sender, client, outer, now):
        monkeypatch.setattr(sender, "_wait", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sender.run()
        assert (client.state, client.reason) == ("disconnecting", "send")


@pytest.mark.parametrize("error, cls, name", [
    (RuntimeError("can't start new thread"), Sender, "start"), (MemoryError(), Sender, "start"),
    (OSError(24, "Too many open files"), selectors, "DefaultSelector"),
    (OSError(24, "Too many open files"), broadcast, "Waker"),
])
def test_client_whose_message_cannot_be_sent_on_is_disconnected(serve, monkeypatch, error, cls, name):
    """There is no thread, or no descriptor, for the sender; the client must not miss a part."""
    def fail(*_):
        raise error

    server = hold_little(serve(Quiet))
    with connect_slowly(server) as slow, monkeypatch.context() as patch:
        patch.setattr(cls, name, fail)
        assert server.broadcast(PIECE) == (1,)
        patch.undo()
        assert len(receive_all(slow)) < len(PIECE)
    until(lambda: not server.clients)
    with connect_slowly(server) as slow:
        assert server.broadcast(PIECE) == ()
        assert receive(slow, len(PIECE)) == PIECE


def test_unix_client_that_takes_nothing_is_disconnected(tmp_path):
    """The kernel has no time-out for that which the sender could leave it to."""
    gate, reasons = Gate(), []

    class Server(ThreadedUnixStreamServer):
        """Says why a client was disconnected."""

        def client_disconnected(self, client):
            """Note it."""
            reasons.append(client.reason)

    with Server(str(tmp_path / "socket"), gate.handler, send_timeout=0.1).start() as server:
        with connect_slowly(hold_little(server)) as slow:
            wait_until(gate.entered)
            assert server.broadcast(PIECE * 3) == ()
            until(lambda: server.clients[1].state == "disconnecting")
            gate.release.set()
            assert len(receive_all(slow)) < 3 * len(PIECE)
    assert reasons == ["send"]


def test_tcp_client_that_takes_nothing_is_disconnected(serve):
    """The kernel's time-out ends its connection."""
    server = hold_little(serve(Quiet, send_timeout=0.2))
    with connect_slowly(server):
        client = server.clients[1]
        assert server.broadcast(PIECE) == ()
        until(lambda: client.state == "gone")
    assert client.reason == "send"
