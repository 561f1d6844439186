"""The channel between two processes: whole messages, whatever the system does with them on their way."""
from __future__ import annotations

import multiprocessing
import select
import socket
import threading

import pytest

from threaded_echo.offloading import channel
from threaded_echo.offloading.pipe_channel import PipeChannel
from threaded_echo.offloading.wire import HEADER, Disconnected, Incoming, wait

from ..tools import running, wait_until
from .tools import calling, channels, pipes

LARGE = 1_000_000


def everything(incoming: Incoming, size: int) -> bytes:
    """Read the bytes of a message into one object."""
    target = bytearray(size)
    assert incoming.stream.readinto(target) == size
    return bytes(target)


@pytest.mark.parametrize("kind", [channels, pipes])
def test_messages_arrive_in_order_and_whole(kind):
    """Small ones come together, and a large one in pieces."""
    with kind() as (near, far):
        def send() -> None:
            """Send three."""
            near.send(1, b"one", [b"abc", b"", bytearray(b"def")])
            near.send(2)
            near.send(3, b"x" * 60_000, [bytes([number % 251]) * 1000 for number in range(1000)])

        with running(send):
            first = far.receive()
            assert (first.kind, first.name, first.stream.read(100)) == (1, b"one", b"abcdef")
            assert far.receive()[:2] == (2, b"")
            third = far.receive()
            assert (third.kind, len(third.name)) == (3, 60_000)
            data = everything(third, LARGE)
            assert data[::1000] == bytes(number % 251 for number in range(1000))
        assert not far.has_data()


@pytest.mark.parametrize("kind", [channels, pipes])
def test_it_is_known_whether_there_is_data(kind):
    """What was received ahead counts."""
    with kind() as (near, far):
        assert not far.has_data()
        near.send(1)
        near.send(2)
        assert far.has_data()
        far.receive()
        assert far.has_data() and far.is_ahead() == (kind is channels)
        far.receive()
        assert not far.has_data()


@pytest.mark.parametrize("kind", [channels, pipes])
def test_each_call_that_has_begun_is_told_once(kind):
    """Nothing is told of one that has not, nor by an end that is closed."""
    with kind() as (near, far):
        assert not near.was_begun()
        far.tell_begun()
        assert near.was_begun()
        assert not near.was_begun()
        far.close()
        assert not near.was_begun()


@pytest.mark.parametrize("kind", [channels, pipes])
def test_closed_end_is_noticed(kind):
    """Whoever sends or receives gets one error, whatever the system calls it."""
    with kind() as (near, far):
        far.close()
        with pytest.raises(Disconnected):
            near.receive()
        with pytest.raises(Disconnected):
            for _ in range(2):
                near.send(1, b"", [bytes(LARGE)])


@pytest.mark.parametrize("read", [lambda stream: stream.read(LARGE), lambda stream: stream.read(70_000),
                                  lambda stream: stream.readinto(memoryview(bytearray(LARGE))),
                                  lambda stream: stream.skip()])
def test_end_that_is_closed_in_a_message_is_noticed(read):
    """A part of it has come."""
    with channels() as (near, far):
        near._socket.sendall(HEADER.pack(1, 0, 0, LARGE) + bytes(1000))
        near.close()
        incoming = far.receive()
        with pytest.raises(Disconnected):
            read(incoming.stream)


def test_stream_of_a_message_ends_with_it():
    """The next message is not touched, however much is asked for. There are no lines."""
    with channels() as (near, far), running(lambda: (near.send(1, b"", [bytes(LARGE)]), near.send(2))):
        stream = far.receive().stream
        with pytest.raises(EOFError):
            stream.readline()
        assert len(stream.read(10)) == 10
        assert stream.readinto(bytearray(LARGE)) == LARGE - 10
        assert stream.read(10) == b"" and stream.readinto(bytearray(10)) == 0
        stream.skip()
        assert far.receive().kind == 2


def test_read_that_was_interrupted_leaves_nothing_to_go_on_with(monkeypatch):
    """A signal handler has raised, and nobody knows how much had been received."""
    with channels() as (near, far), calling(near.send, 1, b"", [bytes(LARGE)]):
        stream = far.receive().stream
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(far, "take", interrupt)
            stream.read(10)
        with pytest.raises(Disconnected):
            stream.skip()
        far.close()


def interrupt(size: int) -> bytes:
    """Raise as a signal handler does."""
    raise KeyboardInterrupt


class Waiting:
    """Answers whether the other process has ended: says that it was asked so often, and answers as the test does."""

    def __init__(self, answer: bool, times: int = 1) -> None:
        self.asked = threading.Event()
        self.answer = answer
        self._left = times

    def __call__(self) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.asked.set()
        return self.answer


MEDIUM = 100_000  # more than is received ahead, less than a socket holds

READS = [lambda stream: stream.read(80_000), lambda stream: stream.read(1000), lambda stream: stream.skip(),
         lambda stream: stream.readinto(memoryview(bytearray(MEDIUM)))]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("is_over", [True, False])
def test_receiver_looks_from_time_to_time_whether_the_sender_is_there(monkeypatch, read, is_over):
    """A process that the sender has forked may keep its end open. While the sender is there, it is waited for."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 0.01)
    with channels() as (near, far):
        near._socket.sendall(HEADER.pack(1, 0, 0, MEDIUM))
        far._is_over = Waiting(is_over)
        with calling(lambda: read(far.receive().stream)) as outcome:
            wait_until(far._is_over.asked)
            near._socket.sendall(bytes(MEDIUM))
        assert isinstance(outcome[0], Disconnected) == is_over


@pytest.mark.parametrize("read", READS[::3])
def test_receiver_looks_earlier_if_it_is_hastened(monkeypatch, read):
    """Also after a wait in which something came."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 1000.0)
    with channels() as (near, far):
        far._is_over = Waiting(True)
        far.hasten(0.01)
        near._socket.sendall(HEADER.pack(1, 0, 0, MEDIUM) + bytes(70_000))
        with pytest.raises(Disconnected):
            read(far.receive().stream)
        assert far._is_over.asked.is_set()


def test_pipe_cannot_be_hastened():
    """That is no error."""
    with pipes() as (near, far):
        far.hasten(0.01)
        near.send(1)
        assert far.receive().kind == 1


@pytest.mark.parametrize("is_over", [True, False])
def test_sender_looks_from_time_to_time_whether_the_receiver_is_there(monkeypatch, is_over):
    """It cannot go on, since the receiver does not read: at first a part of a piece is sent, and then nothing."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 0.01)
    with channels() as (near, far):
        near._is_over = Waiting(is_over, 1 if is_over else 3)
        with calling(near.send, 1, b"", [bytes(LARGE)] * 2) as outcome:
            wait_until(near._is_over.asked)
            if not is_over:
                far.receive().stream.skip()
        assert outcome == [None] if not is_over else isinstance(outcome[0], Disconnected)


def test_sender_looks_though_the_receiver_goes_on(monkeypatch):
    """One that reads slowly would otherwise keep the sender for as long as it likes."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", 1000.0)
    with channels() as (near, far):
        near._is_over = Waiting(True)
        with calling(near.send, 1, b"", [bytes(1000), bytes(LARGE), bytes(LARGE)]) as outcome:
            far.receive().stream.read(channel._PIECE - 1000)  # the rest of a piece has room in the socket
            wait_until(near._is_over.asked)
        assert isinstance(outcome[0], Disconnected)


def test_worker_that_waits_for_a_call_is_not_woken():
    """Only the end that can tell whether the other process has ended looks from time to time, and at each piece."""
    ours, theirs = channel.make_ends(multiprocessing.get_context("spawn"))
    looks, sleeps = channel.open_end(ours, bool), channel.open_end(theirs)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        assert any(looks._socket.getsockopt(socket.SOL_SOCKET, option, 16))
        assert not any(sleeps._socket.getsockopt(socket.SOL_SOCKET, option, 16))
    with running(sleeps.send, 1, b"", [bytes(LARGE)]):  # in one piece
        assert everything(looks.receive(), LARGE) == bytes(LARGE)
    looks.close()
    sleeps.close()


def test_wait_ends_with_the_time_or_the_data(monkeypatch):
    """A platform without poll waits as multiprocessing does."""
    for _ in range(2):
        with channels() as (near, far):
            assert wait([near, far], 0) == []
            near.send(1)
            assert wait([near, far], 5) == [far]
            assert wait([far.fileno()]) == [far.fileno()]
        monkeypatch.delattr(select, "poll", raising=False)


def test_platform_with_other_times_has_channels(monkeypatch):
    """The option is refused, and transfers work all the same."""
    monkeypatch.setattr(channel, "CHECK_INTERVAL", -1.0)
    with channels() as (near, far):
        near.send(1)
        assert far.receive().kind == 1


def test_channel_without_descriptors_leaves_none(monkeypatch):
    """The socket pair is closed if there is no descriptor for the pipe. The fixture of every test looks for both."""
    def fail(*_, **__):
        """Be out of descriptors."""
        raise OSError(24, "Too many open files")

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(context, "Pipe", fail, raising=False)
    with pytest.raises(OSError, match="Too many"):
        channel.make_ends(context)


def test_platform_without_unix_sockets_has_pipes(monkeypatch):
    """They are multiprocessing's own."""
    monkeypatch.setattr(channel, "HAS_SOCKETS", False)
    with channels() as (near, far):
        assert isinstance(near, PipeChannel)
        near.send(1, b"name")
        assert far.receive().name == b"name"
        assert wait([near, far], 0) == []
