"""Several listeners of one server: all of them or none, in turns, handed in, and closed together."""
from __future__ import annotations

import errno
import select
import socket
from contextlib import ExitStack

import pytest

from threaded_echo import ThreadedTCPServer, ThreadedUnixStreamServer
from threaded_echo.transport import several
from threaded_echo.transport.several import Listeners

from ..conftest import LOOPBACK
from ..tools import Echo, ask, connect, receive, subclass

TWO = [("127.0.0.1", 0), ("127.0.0.2", 0)]


def test_all_addresses_are_served():
    """The first one is the server's in socketserver's own words; port 0 is another one for each."""
    with ThreadedTCPServer(TWO, Echo).start() as server:
        first, second = server.server_addresses
        assert (first[0], second[0]) == ("127.0.0.1", "127.0.0.2")
        assert server.server_address == first == server.socket.getsockname()
        assert [listener.getsockname() for listener in server.listeners] == [first, second]
        assert server.fileno() == server.listeners[0].fileno()
        for address in (first, second, second, first):
            assert ask(address) == b"ping\n"
        assert server.stats().accepted == 4
    assert [listener.fileno() for listener in server.listeners] == [-1, -1]
    assert server.server_addresses == (first, second)


def test_address_of_a_list_may_be_the_only_one():
    """It is then the same as without the list."""
    with ThreadedTCPServer([LOOPBACK], Echo).start() as server:
        assert ask(server) == b"ping\n"
        assert server._threaded_listeners is None
    with pytest.raises(ValueError, match="empty list"):
        ThreadedTCPServer([], Echo)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_address_that_is_taken_leaves_none_of_them_open(place):
    """The error names that address."""
    with socket.create_server(LOOPBACK) as other:
        addresses = [("127.0.0.1", 0), ("127.0.0.2", 0)]
        addresses.insert(place, other.getsockname())
        with pytest.raises(OSError, match=f"Address already in use: 127.0.0.1:{other.getsockname()[1]}$"):
            ThreadedTCPServer(addresses, Echo)


def test_address_that_cannot_be_listened_on_leaves_none_of_them_open(monkeypatch):
    """Also if that comes to light after all have been bound."""
    listen = socket.socket.listen

    def fail(listener, *arguments):
        if listener.getsockname()[0] == "127.0.0.2":
            raise OSError(errno.EADDRINUSE, "in use")
        listen(listener, *arguments)

    monkeypatch.setattr(socket.socket, "listen", fail)
    with pytest.raises(OSError, match="in use: 127.0.0.2:"):
        ThreadedTCPServer(TWO, Echo)


def test_addresses_are_bound_as_the_program_calls():
    """Without bind_and_activate, the steps are the program's to take, as in socketserver."""
    with ThreadedTCPServer(TWO, Echo, bind_and_activate=False) as server:
        server.server_bind()
        with pytest.raises(RuntimeError, match="does not listen"):
            server.start()
        server.server_activate()
        server.start()
        assert [ask(address) for address in server.server_addresses] == [b"ping\n"] * 2


def test_class_that_sets_its_family_has_it_at_all_addresses():
    """An IPv6 address is none of that family."""
    server_class = subclass(address_family=socket.AF_INET)
    with server_class(TWO, Echo):
        pass
    with pytest.raises(OSError):
        server_class([LOOPBACK, ("::1", 0)], Echo)


def test_options_of_a_listener_are_those_of_all():
    """Each socket has what the server's options say."""
    numbers = [getattr(socket, name) for name in ("SO_REUSEADDR", "SO_REUSEPORT")]
    for wanted in (True, False):
        with ThreadedTCPServer(TWO, Echo, allow_reuse_address=wanted, allow_reuse_port=wanted) as server:
            assert [[bool(listener.getsockopt(socket.SOL_SOCKET, number)) for number in numbers]
                    for listener in server.listeners] == [[wanted, wanted]] * 2


def test_two_servers_share_a_port_if_both_want_to():
    """As two processes do; without the option the port is taken."""
    with ThreadedTCPServer(LOOPBACK, Echo, allow_reuse_port=True) as one:
        with ThreadedTCPServer(one.server_address, Echo, allow_reuse_port=True):
            with pytest.raises(OSError, match="in use"):
                ThreadedTCPServer(one.server_address, Echo)


def test_listeners_take_turns():
    """A flood at one of them does not keep the clients of another one waiting."""
    with ThreadedTCPServer(TWO, Echo) as server, ExitStack() as stack:
        flood, other = server.server_addresses
        for address in (flood, flood, flood, other):
            stack.enter_context(connect(address))
        listeners = []
        for _ in range(2):
            request, _ = server.get_request()
            with request:
                listeners.append(request.getsockname())
        assert sorted(listeners) == sorted([flood, other])


@pytest.mark.parametrize("has_poll", [True, False])
def test_accepting_without_a_connection_does_not_block(has_poll, monkeypatch):
    """Another thread or process may have been faster. Platforms without poll have select."""
    if not has_poll:
        monkeypatch.delattr(select, "poll")
    with ThreadedTCPServer(TWO, Echo) as server:
        with pytest.raises(BlockingIOError):
            server.get_request()
        with connect(server.server_addresses[1]):
            server.get_request()[0].close()
        server.listeners[1].close()
        with pytest.raises(BlockingIOError):
            server.get_request()


def test_further_listener_that_the_program_has_closed_is_left_out(serve):
    """The others go on."""
    with ThreadedTCPServer(TWO, Echo).start() as server:
        server.listeners[1].close()
        assert [ask(server), ask(server)] == [b"ping\n"] * 2


def test_server_with_a_get_request_of_its_own_has_one_address_only():
    """It accepts from ``socket``, and would never get the other's connections: that is told when it is to serve."""
    with subclass(get_request=lambda server: server.socket.accept())(TWO, Echo) as server:
        for serve in (server.start, server.handle_request):
            with pytest.raises(RuntimeError, match="get_request of its own can listen on one address only"):
                serve()


def test_server_whose_first_socket_was_wrapped_has_one_address_only():
    """The others would be served without what is wrapped around the first."""
    class Wrapped(socket.socket):
        """As a TLS socket is one."""

    with ThreadedTCPServer(TWO, Echo) as server:
        server.socket = Wrapped(fileno=server.socket.detach())
        with pytest.raises(RuntimeError, match="has been wrapped"):
            server.start()


def test_server_bind_of_a_program_has_one_address_only():
    """It binds the first one, and has never heard of the others."""
    def bind(server):
        server.socket.bind(server.server_address)

    with pytest.raises(RuntimeError, match="server_bind of its own can listen on one address only"):
        subclass(server_bind=bind)(TWO, Echo)


def test_handle_request_takes_a_client_of_any_listener():
    """A loop of the program's own serves them all."""
    with ThreadedTCPServer(TWO, Echo) as server:
        for address in server.server_addresses:
            with connect(address) as client:
                server.handle_request()
                client.sendall(b"x")
                assert receive(client, 1) == b"x"


def test_sockets_are_served_and_closed(tmp_path, monkeypatch):
    """They may be of several families. The file of a Unix socket is its maker's."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("here")
        unix.listen()
        tcp = socket.create_server(LOOPBACK)
        with ThreadedTCPServer.from_sockets([unix, tcp], Echo, drain_timeout=1).start() as server:
            assert server.drain_timeout == 1 and server.listeners == (unix, tcp)
            assert server.server_address == "here" and server.server_addresses[1] == tcp.getsockname()
            assert [ask(address) for address in server.server_addresses] == [b"ping\n"] * 2
    assert (unix.fileno(), tcp.fileno()) == (-1, -1)
    assert (tmp_path / "here").exists()


def test_unix_server_takes_sockets_too(tmp_path, monkeypatch):
    """It closes all of them."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for listener, path in zip(made, ("one", "two"), strict=True):
            listener.bind(path)
            listener.listen()
        with ThreadedUnixStreamServer.from_sockets(made).start() as server:
            assert [ask(address) for address in server.server_addresses] == [b"ping\n"] * 2
        assert [listener.fileno() for listener in made] == [-1, -1]


def test_socket_for_both_families_shows_plain_addresses():
    """So does one that systemd hands in, where that is the default. Its own kind keeps its own."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    for dual in (True, False):
        listener = socket.create_server(("::" if dual else "::1", 0), family=socket.AF_INET6, dualstack_ipv6=dual)
        with ThreadedTCPServer.from_sockets([listener]) as server:
            with connect(("127.0.0.1", listener.getsockname()[1])) if dual else socket.create_connection(
                    listener.getsockname()[:2]) as client:
                request, address = server.get_request()
                request.close()
                assert address == client.getsockname()


def not_listening():
    """Make a socket that does not listen."""
    return socket.socket()


def datagrams():
    """Make a socket of another type."""
    return socket.socket(type=socket.SOCK_DGRAM)


def closed():
    """Make a closed socket."""
    made = socket.socket()
    made.close()
    return made


@pytest.mark.parametrize(("make", "error", "reason"), [
    (not_listening, ValueError, "socket 2 does not listen"),
    (datagrams, ValueError, "socket 2 is no stream socket: its type is SOCK_DGRAM"),
    (closed, ValueError, "socket 2 is closed"), (lambda: 3, TypeError, "socket 2 is not a socket: 3")])
def test_socket_that_cannot_be_accepted_from_is_an_error(make, error, reason):
    """All of them are still the caller's."""
    wrong = make()
    with socket.create_server(LOOPBACK) as listener:
        with pytest.raises(error, match=reason):
            ThreadedTCPServer.from_sockets([listener, wrong])
        assert listener.fileno() >= 0
    if isinstance(wrong, socket.socket):
        wrong.close()


def test_no_socket_is_an_error():
    """A server has to listen somewhere."""
    with pytest.raises(ValueError, match="no socket was given"):
        ThreadedTCPServer.from_sockets([])


def test_platform_that_cannot_tell_takes_what_it_is_given(monkeypatch):
    """It finds out when it accepts."""
    monkeypatch.delattr(socket, "SO_ACCEPTCONN")
    with not_listening() as made:
        assert several.fault_of(made) is None


def test_names_of_the_listeners_are_the_programs_if_it_wants_them():
    """A program may have attributes of these names."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.listeners = server.server_addresses = "mine"
        assert server.start().listeners == server.server_addresses == "mine"
        assert ask(server) == b"ping\n"


def test_clients_of_a_listener_alone_keep_their_form():
    """Nothing is looked at if there is one listener, for one family."""
    assert Listeners().show(("::1", 80, 0, 0)) == ("::1", 80, 0, 0)
    assert Listeners(is_short=True).show("") == ""
