"""A connection to which something is sent without waiting: what is queued, and who sends it on."""
from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress

import pytest

from threaded_echo import ClientHandler
from threaded_echo.clients import connection as connection_module
from threaded_echo.clients.backlog import MOST_WAITING, Backlog, Offer
from threaded_echo.transport.at_once import is_behind

from ..test_every_step import Steps, each_step
from ..tools import connect, receive, receive_all, running, until
from ..transport.test_at_once import Narrow
from ..transport.test_tls import server_context
from ..transport.test_tls_sharing import pair as tls_pair  # noqa: F401 - a fixture
from .conftest import make
from .slow import hold_little, waiting

BIG = bytes(20_000_000)
"""More than the kernel takes."""


def test_queue_has_a_bound():
    """One message may be longer; what was sent of it makes room."""
    backlog = Backlog()
    assert backlog.first() == b"" and backlog.take(0)
    assert backlog.add(bytes(MOST_WAITING + 1)) and not backlog.add(b"x")
    assert not backlog.take(2) and backlog.add(b"x")
    assert (backlog.size, len(backlog.first())) == (MOST_WAITING, MOST_WAITING - 1)
    assert not backlog.take(MOST_WAITING - 1) and backlog.first() == b"x" and backlog.take(1)
    backlog.put_back(b"")
    assert not backlog.pieces and backlog.size == 0
    backlog.tell_sender()  # there is none


def test_what_is_offered_in_the_meantime_comes_after_the_rest(pair, monkeypatch):
    """Another thread has found the connection busy, and queued its message when the first one was sent in part."""
    outer, client = pair
    connection = client._connection
    send = connection_module.send_at_once

    def send_and_queue(request, data):
        assert connection.offer(b"second") is Offer.BUSY and connection.queue(b"second") is Offer.WAITS
        return send(request, data[:3])

    monkeypatch.setattr(connection_module, "send_at_once", send_and_queue)
    assert connection.offer(b"first") is Offer.WAITS and waiting(client) == 8
    monkeypatch.undo()
    assert connection.offer(b"third") is Offer.WAITS
    assert connection.go_on() is Offer.SENT and connection.obstacle is None
    assert receive(outer, 16) == b"firstsecondthird"
    assert connection.go_on() is Offer.SENT, "nothing is left to do"
    client._end()


def test_long_queue_is_sent_in_turns(pair):
    """So that a client that is as fast as the others are slow does not hold them up."""
    outer, client = pair
    connection = client._connection
    with connection.sending:
        for _ in range(connection_module._TURN + 1):
            assert connection.queue(b"x") is Offer.WAITS
        assert connection.go_on() is Offer.BUSY
    assert connection.go_on() is Offer.MOVED and waiting(client) == 1
    assert connection.go_on() is Offer.SENT
    client._end()


def test_connection_that_fails_takes_nothing_more(pair):
    """What was queued is dropped, and the sender is told."""
    outer, client = pair
    connection, told = client._connection, []
    assert connection.offer(BIG) is Offer.WAITS and connection.go_on() is Offer.WAITS
    connection.backlog().look_again = lambda: told.append(True)
    client.disconnect()
    with pytest.raises(OSError):
        connection.go_on()
    assert told == [True] and connection.backlog() is None
    assert connection.offer(b"x") is Offer.MISSED is connection.queue(b"x")
    with pytest.raises(ConnectionAbortedError, match="an earlier send has failed"):
        client.send(b"x")
    client._end()


def test_send_that_fails_ahead_of_its_own_data_is_the_last(pair):
    """The rest of what was queued could be sent in part only."""
    outer, client = pair
    assert client._connection.offer(BIG) is Offer.WAITS
    client.disconnect()
    with pytest.raises(OSError):
        client.send(b"x")
    with pytest.raises(ConnectionAbortedError, match="an earlier send has failed"):
        client.send(b"x")
    assert b"x" not in receive_all(outer)
    client._end()


def test_offer_that_is_interrupted_is_the_last(pair, monkeypatch):
    """A signal handler has raised an exception when a part was sent."""
    def interrupt(request, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(connection_module, "send_at_once", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pair[1]._connection.offer(b"x")
    assert pair[1]._connection.offer(b"x") is Offer.MISSED
    pair[1]._end()


def test_what_is_left_when_the_client_goes_is_dropped(pair):
    """The sender is told, as it may have a descriptor that would keep the connection open."""
    outer, client = pair
    connection, told = client._connection, []
    assert connection.offer(BIG) is Offer.WAITS
    connection.backlog().look_again = lambda: told.append(True)
    assert client._end() and told == [True]
    assert connection.queue(b"x") is Offer.MISSED and connection.go_on() is Offer.SENT
    client._finish_sending()


def test_handler_that_wraps_its_connection_drops_what_is_queued(pair):
    """That was meant for the connection as it was; ahead of the handshake, nothing can be sent."""
    outer, client = pair
    connection, told = client._connection, []
    assert connection.offer(BIG) is Offer.WAITS
    connection.backlog().look_again = lambda: told.append(True)
    with server_context().wrap_socket(connection.request, server_side=True, do_handshake_on_connect=False) as wrapped:
        connection.follow(wrapped)
        connection.follow(wrapped)  # which changes nothing more
        assert told == [True] and connection.offer(b"x") is Offer.MISSED
        client._end()


def test_connection_that_is_wrapped_meanwhile_gets_no_rest(pair, monkeypatch):
    """Between the send of a part and the queueing of the rest, the handler has wrapped it."""
    outer, client = pair
    connection = client._connection
    wrapped = []

    def send_and_wrap(request, data):
        wrapped.append(server_context().wrap_socket(request, server_side=True, do_handshake_on_connect=False))
        connection.follow(wrapped[0])
        return 1

    monkeypatch.setattr(connection_module, "send_at_once", send_and_wrap)
    assert connection.offer(b"xx") is Offer.MISSED and connection.obstacle is not None
    client._end()
    wrapped[0].close()


def test_finish_waits_until_all_is_sent(pair):
    """The sender is told that nothing waits any more."""
    outer, client = pair
    told = []
    client._connection.finish(None)  # nothing waits
    assert client._connection.offer(BIG) is Offer.WAITS
    client._connection.backlog().look_again = lambda: told.append(True)
    with running(client._finish_sending):
        assert receive(outer, len(BIG)) == BIG
    assert told == [True] and client._connection.obstacle is None
    client._end()


def test_finish_does_not_wait_for_a_send_for_longer_than_it_may(pair):
    """Another thread sends, and its client reads nothing."""
    outer, client = pair
    assert client._connection.offer(BIG) is Offer.WAITS
    with client._connection.sending:
        client._connection.finish(0.0)
    assert client._connection.backlog() is None
    client._end()


def test_finish_waits_once_however_often_it_is_called(pair):
    """Each hook that may close the connection calls it; what was too much for the first one is dropped."""
    outer, client = pair
    connection, told = client._connection, []
    assert connection.offer(BIG) is Offer.WAITS
    connection.backlog().look_again = lambda: told.append(True)
    connection.finish(0.01)
    assert connection.backlog() is None and told
    connection.finish(None)
    assert connection.offer(b"x") is Offer.MISSED
    client._end()


def test_client_that_the_server_has_disconnected_gets_nothing_more(pair):
    """Its handler does not wait for what is queued."""
    outer, client = pair
    assert client._connection.offer(BIG) is Offer.WAITS
    client.disconnect()
    client._finish_sending()
    assert client._connection.backlog() is not None
    client._end()


def test_finish_ends_when_the_connection_is_cut(pair):
    """So ends a stop what drains."""
    outer, client = pair
    assert client._connection.offer(BIG) is Offer.WAITS
    client._period.stop()
    with running(client._finish_sending) as thread:
        until(lambda: not client._connection.sending.locked() and thread.is_alive())
        client._cut("stop")
    assert client._connection.obstacle == "an earlier send has failed"
    client._end()


def test_finish_pauses_if_there_is_room_and_nothing_can_be_sent(pair, monkeypatch):
    """TLS may wait for something else."""
    outer, client = pair
    connection, pauses = client._connection, []
    with connection.sending:
        assert connection.queue(b"x") is Offer.WAITS
    send = connection_module.send_at_once
    monkeypatch.setattr(connection_module, "send_at_once", lambda request, data: 0)

    def sleep(seconds):
        pauses.append(seconds)
        monkeypatch.setattr(connection_module, "send_at_once", send)

    monkeypatch.setattr(time, "sleep", sleep)
    connection.finish(None)
    assert pauses == [connection_module._PAUSE] and receive(outer, 1) == b"x"
    client._end()


def test_end_in_the_middle_of_a_message_is_no_proper_end_of_tls(serve):
    """The client can tell, since there is no close_notify."""
    server = hold_little(serve(ClientHandler, ssl_context=server_context()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(connect(server), suppress_ragged_eofs=False) as outer:
        until(lambda: server.clients and server.clients[1].state == "serving")
        assert server.broadcast(BIG) == ()
        client = server.clients[1]
        client._period.forced = True  # as a stop does, so that the handler's end waits for nothing
        socket.socket.shutdown(outer, socket.SHUT_WR)
        with pytest.raises(OSError):  # which one depends on the version of Python
            while outer.recv(65536):
                pass


@pytest.mark.parametrize("data", [b"", "text"])
def test_send_of_nothing_sends_the_rest_of_a_record(tls_pair, data):  # noqa: F811
    """TLS has stopped in the middle of the last record, and nothing else is queued that would end it."""
    ours, theirs = tls_pair
    own, client = ours._sslobj, make(ours)
    ours._sslobj = Narrow(own)
    assert client._connection.offer(b"begun") is Offer.WAITS and is_behind(ours)
    with suppress(TypeError):
        client.send(data)
    assert not is_behind(ours) and client._connection.obstacle is None
    assert receive(theirs, 5) == b"begun"
    ours._sslobj = own
    client._end()


@pytest.mark.parametrize("act", [lambda client: client._connection.go_on(), lambda client: client.send(b"own")])
def test_handler_that_ends_tls_drops_what_is_queued(tls_pair, act):  # noqa: F811
    """That must not go out in the clear; so its own sends fail, too, as they come after it."""
    ours, theirs = tls_pair
    client = make(ours)
    with client._connection.sending:
        assert client._connection.queue(b"secret") is Offer.WAITS
    with running(theirs.unwrap):
        ours.unwrap()
    with pytest.raises(ConnectionAbortedError, match="TLS has ended"):
        act(client)
    client._connection.obstacle = None
    assert client._connection.offer(b"secret") is Offer.MISSED
    ours.shutdown(socket.SHUT_WR)
    assert socket.socket.recv(theirs, 100) == b""
    client._end()


def test_client_that_goes_in_the_middle_is_no_error_of_the_sender(pair, monkeypatch):
    """Its handler has closed the connection by itself, and so its thread does not wait for whoever is sending."""
    outer, client = pair
    first = Backlog.first

    def go_first(backlog):
        monkeypatch.undo()
        client._connection.request.close()
        assert client._end()
        return first(backlog)

    assert client._connection.offer(BIG) is Offer.WAITS
    monkeypatch.setattr(Backlog, "first", go_first)
    assert client._go_on() is Offer.SENT and client.state == "gone"
    assert client._connection.queue(b"x") is Offer.MISSED


def test_client_that_goes_at_any_step_of_a_send_is_an_oserror(pair):
    """As above: the thread that sends must not meet anything else."""
    outer, template = pair

    def once(at):
        with template._connection.request.dup() as request:
            client = make(request)

            def go():
                request.close()
                client._end()

            with Steps(at, go) as steps, suppress(OSError):
                client.send(b"x")
            client._end()
            return steps.count

    assert each_step(once) > 3
