"""The messages between the server and its workers: what is pickled, and what becomes of descriptors."""
from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import threading
from functools import partial

import pytest

from threaded_echo.offloading import channel, messages
from threaded_echo.offloading.messages import RESULT, Message, Received, pickle_call
from threaded_echo.offloading.wire import Disconnected

from .. import calls
from ..tools import GUARD, running
from .tools import call_in, calling, channels, pool


class Compute:
    """Has a method, and an attribute that cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def run(self) -> None:
        """Do nothing."""


def test_a_socket_is_handed_over_to_the_worker():
    """What the worker writes arrives, and after it the end of the stream: nothing keeps a copy of the socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    with ours, pool(1) as workers:
        with theirs:
            assert call_in(workers, calls.write, theirs, b"from the worker") != os.getpid()
        assert ours.recv(64) == b"from the worker"
        assert ours.recv(64) == b""


def test_a_socket_keeps_its_timeout():
    """Whether a socket blocks is the same for both copies, so that the worker's has to know."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pool(1) as workers:
        for timeout in (None, 2.5):
            theirs.settimeout(timeout)
            assert call_in(workers, calls.timeout_of, theirs) == timeout


def test_a_connection_is_handed_over_to_the_worker():
    """multiprocessing's own pipes work as they do with its processes."""
    ours, theirs = multiprocessing.Pipe()
    with ours, pool(1) as workers:
        with theirs:
            assert call_in(workers, calls.write, theirs, b"from the worker") != os.getpid()
        assert ours.recv_bytes() == b"from the worker"
        with pytest.raises(EOFError):
            ours.recv_bytes()


def test_connection_arrives_with_its_direction():
    """A connection that only sends still does."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with channels() as (near, far), receiver:
        with sender, Message(RESULT, sender) as message:
            message.send(near)
        with Received(far) as received, received.load() as arrived:
            assert (arrived.readable, arrived.writable) == (False, True)
            arrived.send_bytes(b"x")
        assert receiver.recv_bytes() == b"x"


def test_sockets_are_handed_over_to_the_server():
    """A result may hold them, too."""
    with pool(1) as workers:
        process, one, other = call_in(workers, calls.return_a_socket)
        with one, other:
            assert process != os.getpid()
            one.sendall(b"x")
            assert other.recv(1) == b"x"


def test_message_that_cannot_be_pickled_keeps_no_descriptor():
    """The fixture of every test looks for descriptors that are left. The peer sees the end of the stream."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    with ours:
        with theirs, pytest.raises(TypeError, match="arguments have to be objects that can be pickled"):
            pickle_call(calls.write, (theirs, threading.Lock()), {})
        assert ours.recv(1) == b""


def test_message_that_cannot_be_unpickled_keeps_no_descriptor():
    """The socket comes after an object that fails, and nobody takes it over."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    with channels() as (near, far), ours:
        with theirs, Message(RESULT, (calls.Traveller(), theirs)) as message:
            message.send(near)
        with Received(far) as received, pytest.raises(LookupError):
            received.load()
        assert ours.recv(1) == b""


def test_message_whose_descriptors_do_not_come_keeps_none(monkeypatch):
    """The receiver has no place for more: the kernel has closed the rest, and the message is lost."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    monkeypatch.setattr(channel, "_ANCILLARY", socket.CMSG_LEN(4))
    with ours:
        with theirs, Message(RESULT, (theirs, ours)) as message, channels() as (near, far):
            message.send(near)
            with pytest.raises(Disconnected):
                Received(far)
        assert ours.recv(1) == b""


def test_message_with_too_many_descriptors_is_a_type_error(monkeypatch):
    """One byte says how many there are."""
    monkeypatch.setattr(messages, "MOST_DESCRIPTORS", 1)
    one, other = socket.socketpair()
    with one, other:
        pickle_call(calls.write, (one, one), {}).close()  # the same one twice is one
        with pytest.raises(TypeError, match="more than 1 sockets"):
            pickle_call(calls.write, (one, other), {})


def test_socket_on_a_platform_that_cannot_send_one_goes_multiprocessings_own_way(monkeypatch):
    """What multiprocessing starts for that ends with the interpreter."""
    monkeypatch.setattr(messages, "HAS_SOCKETS", False)
    monkeypatch.setitem(messages.ForkingPickler._extra_reducers, socket.socket, lambda each: (str, ("a socket",)))
    ours, theirs = socket.socketpair()
    with ours, theirs, Message(RESULT, theirs) as message, channels() as (near, far):
        message.send(near)
        assert Received(far).load() == "a socket"


LARGE = 300_000  # more than the unpickler's own buffer, and than one system call takes


@pytest.mark.parametrize("made", [
    bytes(LARGE), bytearray(LARGE), b"x" * LARGE, "é" * LARGE, [b"x" * LARGE, bytearray(b"y" * LARGE), b"z"],
    [b"x" * 65536] * 3 + [bytearray(65536)], list(range(LARGE)), [bytes([number]) * 65536 for number in range(10)],
    {"empty": b"", "small": bytearray(3), "large": (bytearray(65535), bytearray(65536))},
], ids=lambda made: type(made).__name__)
def test_large_objects_come_back_as_they_were(made):
    """They have the type that they had, also within others, and what can be written to can be still."""
    with pool(1) as workers:
        found = call_in(workers, calls.same, made)
        assert found == made and type(found) is type(made)
        assert call_in(workers, calls.square, 2) == 4


def test_large_buffers_are_not_copied_as_they_are_sent():
    """The message has views on the objects themselves, which keep their size until it is closed."""
    fixed, loose = b"x" * LARGE, bytearray(LARGE)
    with Message(RESULT, (fixed, loose, pickle.PickleBuffer(loose))) as message:
        owners = [each.obj if isinstance(each, memoryview) else each for each in message._buffers]
        assert sum(owner is fixed for owner in owners) == 1
        assert sum(owner is loose for owner in owners) == 2
        with pytest.raises(BufferError):
            loose.append(1)
    loose.append(1)


class Writable:
    """Holds a buffer, as a NumPy array does."""

    def __init__(self, buffer) -> None:
        self.view = memoryview(buffer)

    def __reduce_ex__(self, protocol):
        """Pickle it without a copy."""
        return Writable, (pickle.PickleBuffer(self.view),)


@pytest.mark.parametrize("readonly", [True, False])
def test_buffer_of_another_object_is_writable_or_not_as_it_was(readonly):
    """The object is made again from what has been received."""
    data = bytes(LARGE) if readonly else bytearray(LARGE)
    with Message(RESULT, Writable(data)) as message, channels() as (near, far):
        with running(message.send, near), Received(far) as received:
            view = received.load().view
        assert view.readonly == readonly and view == data


def test_object_that_cannot_be_loaded_takes_nothing_of_the_next_message():
    """What comes after it in its message is large, and is not received into anything."""
    with channels() as (near, far), Message(RESULT, (calls.Traveller(), bytes(LARGE))) as one:
        with Message(RESULT, "the next") as other, running(lambda: (one.send(near), other.send(near))):
            with pytest.raises(LookupError):
                Received(far).load()
            assert Received(far).load() == "the next"


def test_call_that_an_object_makes_as_it_is_loaded_leaves_its_descriptors_alone():
    """Loading a message within another one ends, and the outer one goes on with its own sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs, channels() as (near, far), Message(RESULT, (Nested(near, far), theirs)) as outer:
        outer.send(near)
        with Received(far) as received:
            found, arrived = received.load()
        with arrived:
            assert found == "inner" and os.fstat(arrived.fileno()).st_ino == os.fstat(theirs.fileno()).st_ino


class Nested:
    """Sends and receives another message as it is loaded."""

    ends: tuple = ()

    def __init__(self, *ends) -> None:
        Nested.ends = ends

    def __reduce__(self):
        """Be loaded so."""
        return exchange, ()


def exchange() -> str:
    """Send and receive a message."""
    near, far = Nested.ends
    with Message(RESULT, "inner") as message:
        message.send(near)
    with Received(far) as received:
        return received.load()


@pytest.mark.parametrize(("function", "name"), [
    (lambda: None, "test_messages.<lambda>"),
    (Compute().run, "Compute.run"),
    (partial(Compute().run), "Compute.run"),
])
def test_function_that_is_not_a_modules_is_named(function, name):
    """The error says what to do."""
    with pytest.raises(TypeError) as raised:
        pickle_call(function, (), {})
    assert f"{name} cannot be sent to a worker process: use a function of a module" in str(raised.value)


def test_local_function_is_named():
    """A worker could not find it."""
    def local() -> None:
        """Do nothing."""

    with pytest.raises(TypeError, match="<locals>.local cannot be sent .*: use a function of a module"):
        pickle_call(local, (), {})


def test_arguments_are_named_as_the_reason():
    """A function of a module is not to blame."""
    with pytest.raises(TypeError, match="calls.square cannot be sent .* its arguments have to be .*lock"):
        pickle_call(calls.square, (threading.Lock(),), {})


def test_name_of_any_length_is_sent():
    """A very long one is cut short, wherever that is."""
    for name in ("é" * 40_000, "\udcff" * 20_000):
        with channels() as (near, far), Message(RESULT, 1, name) as message:
            message.send(near)
            with Received(far) as received:
                assert len(received.name) > 30_000 and received.load() == 1


def test_function_is_named_without_its_repr():
    """A repr may take long, or fail."""
    class Mute:
        """A function object without a repr."""

        def __repr__(self) -> str:
            """Fail."""
            raise ValueError("no words")

        def __call__(self) -> None:
            """Do nothing."""

    with pytest.raises(TypeError, match="Mute cannot be sent"):
        pickle_call(Mute(), (), {})


def test_socket_of_a_call_that_a_worker_did_not_begin_is_sent_again():
    """The worker died while it was idle; the new one gets the same socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pool(1) as workers:
        workers._idle[0].kill()
        with calling(call_in, workers, calls.write, theirs, b"x") as outcome:
            assert ours.recv(1) == b"x"
        assert isinstance(outcome[0], int)
