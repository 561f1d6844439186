"""Accepting without what `socket.socket.accept` works out anew."""
import os
import socket
import socketserver

import pytest

from tests.tools import Echo, ask
from threaded_echo import ThreadedMixIn
from threaded_echo.transport import acceptor
from threaded_echo.transport.acceptor import acceptor_for


def properties(connection):
    """Return all that may differ between two accepted connections."""
    return (type(connection), connection.family, connection.type, connection.proto, connection.gettimeout(),
            os.get_blocking(connection.fileno()), connection.get_inheritable())


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
@pytest.mark.parametrize("default", [None, 7.0])
@pytest.mark.parametrize("family, address", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connection_is_what_accept_returns(timeout, default, family, address):
    """Its class, kind, time-out and flags are the same, whatever the listener's time-out and the default one are."""
    with socket.create_server((address, 0), family=family) as listener:
        listener.settimeout(timeout)
        place = listener.getsockname()[:2]
        with socket.create_connection(place) as first, socket.create_connection(place) as second:
            socket.setdefaulttimeout(default)
            try:
                expected, its_address = listener.accept()
                found, own_address = acceptor_for(listener).accept()
            finally:
                socket.setdefaulttimeout(None)
            with expected, found:
                assert properties(found) == properties(expected)
                assert (its_address, own_address) == (first.getsockname()[:2] + its_address[2:],
                                                      second.getsockname()[:2] + own_address[2:])


def test_listener_that_is_not_plain_accepts_for_itself(monkeypatch):
    """A subclass's accept runs, and so does what has been put in the place of the standard library's."""
    class Listener(socket.socket):
        """A listener of a program's own."""

    with Listener() as own, socket.socket() as plain, socket.socket() as closed:
        closed.close()
        assert acceptor_for(own) is None and acceptor_for(None) is None and acceptor_for(closed) is None
        assert acceptor_for(plain) is not None
        monkeypatch.setattr(acceptor, "_CAN_ACCEPT", False)
        assert acceptor_for(plain) is None
        monkeypatch.undo()
        monkeypatch.setattr(socket.socket, "accept", lambda listener: None)
        assert acceptor_for(plain) is None
        monkeypatch.undo()
        monkeypatch.setattr(socket, "socket", Listener)
        assert acceptor_for(plain) is None


def test_get_request_of_a_class_below_the_mix_in_runs(serve):
    """The shorter way is not taken past it, and is taken if there is none."""
    class Below(socketserver.ThreadingTCPServer):
        """Counts what it accepts."""

        accepted = 0

        def get_request(self):
            """Count, and accept."""
            self.accepted += 1
            return super().get_request()

    class Server(ThreadedMixIn, Below):
        """A program's class."""

    own, plain = serve(Echo, Server), serve(Echo)
    assert ask(own) == ask(plain) == b"ping\n"
    assert own.accepted == 1 and own._threaded_state.acceptor is None
    assert plain._threaded_state.acceptor.listener is plain.socket
