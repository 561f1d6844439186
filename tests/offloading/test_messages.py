"""The messages between the server and its workers: what is pickled, and what becomes of descriptors."""
from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from functools import partial

import pytest

from threaded_echo.offloading import messages
from threaded_echo.offloading.messages import Message, Received
from threaded_echo.offloading.worker import pickle_call

from .. import calls
from ..tools import GUARD
from .tools import call_in, calling, pool


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
    near, far = multiprocessing.Pipe()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with near, far, receiver:
        with sender, Message(sender) as message:
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
    near, far = multiprocessing.Pipe()
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    with near, far, ours:
        with theirs, Message(calls.Traveller(), theirs) as message:
            message.send(near)
        with Received(far) as received, pytest.raises(LookupError):
            received.load()
        assert ours.recv(1) == b""


def test_message_whose_descriptors_do_not_come_keeps_none():
    """The sender has ended in the middle of it, or the receiver has no more descriptors."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    with ours:
        with theirs, Message(theirs, ours) as message:
            for sent in [], [theirs.fileno()]:
                near, far = multiprocessing.Pipe()
                with near, far:
                    near.send_bytes(message.data)
                    with messages._as_socket(near) as pipe:
                        socket.send_fds(pipe, [b"\0"], sent)
                    with pytest.raises(EOFError):
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
    monkeypatch.setattr(messages, "_SENDS_DESCRIPTORS", False)
    monkeypatch.setitem(messages.ForkingPickler._extra_reducers, socket.socket, lambda each: (str, ("a socket",)))
    ours, theirs = socket.socketpair()
    with ours, theirs, Message(theirs) as message:
        assert messages.pickle.loads(message.data) == "a socket"


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
