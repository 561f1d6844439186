"""The hooks in the order in which a client meets them: accepting, verifying, coming, going, closing."""
from __future__ import annotations

import queue
import socket
import socketserver

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer, current_client

from .conftest import LOOPBACK
from .tools import GUARD, Echo, ask, connect, receive_all, subclass, until


def test_accepted_connection_blocks_where_it_would_inherit_that_it_does_not(serve, monkeypatch):
    """On platforms without accept4 the clients of a listener that does not block do block."""
    monkeypatch.setattr("threaded_echo.hooks_accepting._INHERITS_BLOCKING", True)
    monkeypatch.setattr("threaded_echo.transport.acceptor._CAN_ACCEPT", False)

    class Server(ThreadedTCPServer):
        """Accepts as those platforms do."""

        def get_request(self):
            """Accept."""
            request, address = super().get_request()
            assert request.getblocking()
            return request, address

    assert ask(serve(Echo, Server)) == b"ping\n"


@pytest.mark.parametrize(("host", "via"), [("", "127.0.0.1"), ("::", "127.0.0.1"), ("", "::1")])
def test_address_from_a_get_request_that_accepts_by_itself_is_plain(host, via):
    """Programs that served IPv4 only take two items from it, and know IPv4 addresses as such."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    asked = queue.SimpleQueue()
    server_class = subclass(get_request=lambda self: self.socket.accept(),
                            verify_request=lambda self, request, address: asked.put(address) or True)
    with server_class((host, 0), Echo).start() as server:
        with socket.create_connection((via, server.server_address[1])) as client:
            assert asked.get(timeout=GUARD) == client.getsockname()[:2]


def test_address_that_a_program_makes_is_left_alone():
    """It need not look like one."""
    for made in ("name", ("name", 1, "more"), (1, 2, 3, 4), None):
        clients = queue.SimpleQueue()
        server_class = subclass(get_request=lambda self, made=made: (self.socket.accept()[0], made),
                                client_connected=lambda self, client: clients.put(client.address))
        with server_class(("::", 0), Echo).start() as server, connect(("127.0.0.1", server.server_address[1])):
            assert clients.get(timeout=GUARD) == made


def test_get_request_below_the_mixin_is_used_for_tls_listeners_too(serve):
    """A class below the mix-in may accept in its own way."""
    from .transport.test_tls import TLSServer, connect_tls
    accepted = []

    class Existing(socketserver.ThreadingTCPServer):
        """Counts."""

        def get_request(self):
            """Accept, handshake and all."""
            found = super().get_request()
            accepted.append(found)
            return found

    server_class = type("Server", (ThreadedMixIn, Existing), {"server_activate": TLSServer.server_activate})
    server = server_class(LOOPBACK, Echo)
    with server.start(), connect_tls(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x" and len(accepted) == 1


def test_refused_client_is_closed_and_counted(serve):
    """verify_request knows which client it is asked about, and no hook is called for a refused one."""
    told = []
    server = serve(Echo, subclass(verify_request=lambda self, request, address: told.append(current_client().number),
                                  client_connected=lambda self, client: told.append("came"),
                                  client_disconnected=lambda self, client: told.append("went")))
    with connect(server) as client:
        assert receive_all(client) == b""
    server.stop()
    assert told == [1] and (server.stats().refused, server.stats().finished) == (1, 0)


def test_hooks_tell_of_clients_that_come_and_go(serve):
    """Each is called once, in order, in the handler's thread, and what it raises harms nothing."""
    told = []

    def tell(word):
        def hook(self, client):
            told.append((word, client.number, current_client() is client))
            raise ZeroDivisionError(word)
        return hook

    server = serve(Echo, subclass(client_connected=tell("came"), client_disconnected=tell("went")))
    assert ask(server) == b"ping\n"
    server.stop()
    assert told == [("came", 1, True), ("went", 1, True)]


@pytest.mark.parametrize("hook", ["shutdown_request", "close_request"])
def test_closing_hook_without_super_is_forgotten(serve, hook):
    """The client of an override that closes the request itself is forgotten all the same."""
    server = serve(Echo, subclass(**{hook: lambda self, request: request.close()}))
    assert ask(server) == b"ping\n"
    server.stop()
    assert server.stats().finished == 1 and not server.clients


@pytest.mark.parametrize("hook", ["shutdown_request", "close_request"])
def test_refused_client_that_a_closing_hook_without_super_closes_is_forgotten(serve, hook):
    """No handler thread comes after it to forget the client, and the stop is clean."""
    server = serve(Echo, subclass(**{hook: lambda self, request: request.close(),
                                     "verify_request": lambda self, request, address: False}))
    with connect(server) as client:
        assert receive_all(client) == b""
    report = server.stop()
    assert report.clean and (server.stats().refused, server.stats().finished) == (1, 0) and not server.clients


def test_reason_is_told_to_client_disconnected(serve):
    """It is None if the client has left by itself."""
    told = []
    server = serve(Echo, subclass(client_disconnected=lambda self, client: told.append(client.reason)))
    assert ask(server) == b"ping\n"
    until(lambda: told)
    for end in ("disconnect", "stop"):
        with connect(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            if end == "disconnect":
                [its_client] = server.clients.values()
                its_client.disconnect()
            else:
                server.stop()
            assert receive_all(client) == b""
        until(lambda: told[-1] == end)
    assert told == [None, "disconnect", "stop"]
