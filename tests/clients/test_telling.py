"""What the log tells of a client's coming and going."""
from __future__ import annotations

import logging

from threaded_echo import ClientHandler, EchoHandler, ThreadedTCPServer
from threaded_echo.clients.telling import tell_connected

from ..tools import ask, connect, receive, receive_all


def test_echo_tells_who_comes_and_goes_with_the_fields_of_the_client(serve, caplog):
    """Each once, the end after the reason for it, and whatever hooks the server's class has."""
    class Server(ThreadedTCPServer):
        """Tells it, too, as the command does."""

        def client_connected(self, client):
            """Tell it first."""
            tell_connected(client)

        def client_disconnected(self, client):
            """Do nothing."""

    caplog.set_level(logging.DEBUG, logger="threaded_echo")
    server = serve(EchoHandler, Server)
    with connect(server) as client:
        client.sendall(b"x")
        receive(client, 1)
        address = client.getsockname()
        server.clients[1].disconnect()
        receive_all(client)
    server.stop()
    assert [(record.event, record.client, record.address, record.getMessage()) for record in caplog.records] == [
        (event, 1, address, text) for event, text in (
            ("connected", f"client 1 connected from 127.0.0.1:{address[1]}"), ("message", "client 1: x"),
            ("disconnect", "client 1 was ended by the server: disconnect"), ("disconnected", "client 1 disconnected"))]


def test_other_handlers_tell_nothing(serve, caplog):
    """A program that wants the lines calls for them."""
    caplog.set_level(logging.DEBUG, logger="threaded_echo")
    server = serve(ClientHandler)
    assert ask(server) == b""
    server.stop()
    assert not caplog.records


def test_client_that_came_when_nobody_listened_goes_untold(serve, caplog):
    """One whose coming is not in the log would only puzzle its reader."""
    caplog.set_level(logging.WARNING, logger="threaded_echo")
    server = serve(EchoHandler)
    with connect(server) as client:
        client.sendall(b"x")
        receive(client, 1)
        tell_connected(server.clients[1])
        caplog.set_level(logging.INFO, logger="threaded_echo")
        server.stop()
    assert not caplog.records
