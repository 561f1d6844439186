"""Where a server listens: addresses as they are shown, IPv4 and IPv6 at once, addresses that are taken."""
from __future__ import annotations

import errno
import socket
from contextlib import suppress

import pytest

from threaded_echo import ThreadedTCPServer, ThreadedUnixStreamServer
from threaded_echo.transport.listeners import (Place, is_same_peer, place_of, places_of, plain_address, resolve_ipv6,
                                               resolve_name, show_address)

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo, Gate, ask, connect, receive_all, subclass, wait_until

HAS_IPV6 = False
with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
    probe.bind(("::1", 0))
    HAS_IPV6 = True

IPV6 = pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")


@pytest.mark.parametrize(("address", "shown"), [
    (("127.0.0.1", 9999), "127.0.0.1:9999"), (("", 80), ":80"), (("::1", 80, 0, 0), "[::1]:80"),
    ("/run/echo", "/run/echo"), (b"/run/echo", "/run/echo"), ("", ""), (b"", ""),
    (b"\0name", "@name"), (b"\0a\nclient 1 disconnected\x1b[2J", "@a\\nclient 1 disconnected\\x1b[2J"),
    ("/tmp/a\rb", "/tmp/a\\rb"), (b"\xff", "\\udcff"), (None, "None"), ((1,), "(1,)"),
])
def test_address_is_shown_as_people_write_it(address, shown):
    """What a peer has chosen can neither drive a terminal nor forge a line."""
    assert show_address(address) == shown


@IPV6
def test_server_on_an_ipv6_address_serves():
    """The family is that of the address."""
    with ThreadedTCPServer(("::1", 0), Echo).start() as server:
        with socket.create_connection(server.server_address[:2]) as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"x"


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("localhost", 0), ("", 0), ("2:d", 0), ("::1", "no port"),
                                     "path", ("::1",), (b"::1", 0)])
def test_what_is_not_an_ipv6_address_is_left_to_the_server(address):
    """Names and the empty host stay what they are, and binding raises the error of a wrong address."""
    assert resolve_ipv6(address) is None


def test_ipv6_address_with_a_scope_is_complete():
    """The interface is the fourth item of the address."""
    name = socket.if_nameindex()[0][1]
    assert resolve_ipv6((f"fe80::1%{name}", 80)) == ("fe80::1", 80, 0, socket.if_nametoindex(name))
    assert resolve_ipv6(("::1", 80, 0, 7)) == ("::1", 80, 0, 7)


@pytest.mark.parametrize("where", ["class", "base"])
def test_class_that_sets_its_family_keeps_it(where):
    """A program's own choice wins, also one that a base has made."""
    base = type("Base", (ThreadedTCPServer,), {"address_family": socket.AF_INET})
    server_class = base if where == "class" else type("Server", (base,), {})
    with pytest.raises(OSError), server_class(("::1", 0), Echo):
        pass
    six = type("Six", (ThreadedTCPServer,), {"address_family": socket.AF_INET6})
    if HAS_IPV6:
        with six(("::", 0), Echo) as server:
            assert server.socket.family == socket.AF_INET6


def test_address_that_is_taken_is_named_by_the_error():
    """Its type and number are the system's."""
    with socket.create_server(LOOPBACK) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError) as raised:
            ThreadedTCPServer(("127.0.0.1", port), Echo)
    assert str(raised.value) == f"[Errno {errno.EADDRINUSE}] Address already in use: 127.0.0.1:{port}"
    assert (type(raised.value), raised.value.errno) == (OSError, errno.EADDRINUSE)


def test_path_that_is_taken_is_named_by_the_error(monkeypatch, tmp_path):
    """A Unix socket's server says so as well, and leaves the socket alone."""
    monkeypatch.chdir(tmp_path)
    with ThreadedUnixStreamServer("here", Echo).start() as server:
        with pytest.raises(OSError, match="Address already in use: here$"):
            ThreadedUnixStreamServer("here", Echo)
        assert ask(server) == b"ping\n"


def test_error_without_a_reason_of_the_system_stays_as_it_is(monkeypatch, tmp_path):
    """A path that is too long is Python's own error."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="^AF_UNIX path too long$"):
        ThreadedUnixStreamServer("a" * 300, Echo)


@pytest.fixture
def dual(monkeypatch):
    """Have the system say that a socket can serve IPv4 and IPv6."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)


@pytest.mark.parametrize(("address", "place"), [
    (("", 80), Place(("::", 80), socket.AF_INET6, v6only=False, is_short=True)),
    (("::", 80), Place(("::", 80, 0, 0), socket.AF_INET6, v6only=False)),
    (("::1", 80), Place(("::1", 80, 0, 0), socket.AF_INET6)),
    (("0.0.0.0", 80), Place(("0.0.0.0", 80), socket.AF_INET)),
    (("localhost", 80), Place(("localhost", 80), socket.AF_INET)),
    ("path", Place("path", socket.AF_INET)),
])
def test_everywhere_is_ipv4_and_ipv6(address, place, dual):
    """All other addresses are of one family. ``""`` is the host of programs that know IPv4 only."""
    assert place_of(address) == place


@pytest.mark.parametrize(("address", "place"), [
    (("", 80), Place(("", 80), socket.AF_INET)), (("::", 80), Place(("::", 80, 0, 0), socket.AF_INET6))])
def test_system_without_dual_stack_serves_one_family(address, place, monkeypatch):
    """There, each socket is as the system makes it."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert place_of(address) == place


def test_ipv4_is_left_to_its_own_address_of_the_same_port(dual):
    """Otherwise the second of the two would find it taken. Port 0 is another one for each."""
    assert [place.v6only for place in places_of([("0.0.0.0", 80), ("::", 80)])] == [None, True]
    assert [place.v6only for place in places_of([("::", 80), ("127.0.0.1", 81)])] == [False, None]
    assert [place.v6only for place in places_of([("::", 0), ("127.0.0.1", 0)])] == [False, None]
    assert [place.v6only for place in places_of(["path", ("",), ("", 80)])] == [None, None, False]


@pytest.mark.parametrize(("address", "plain"), [
    (("::ffff:192.0.2.1", 80, 0, 0), ("192.0.2.1", 80)), (("::1", 80, 0, 0), ("::1", 80, 0, 0)),
    (("::ffff:1:2", 80, 0, 0), ("::ffff:1:2", 80, 0, 0)), (("192.0.2.1", 80), ("192.0.2.1", 80)),
    ("::ffff:1.2", "::ffff:1.2"), (b"\0name", b"\0name"), ("", "")])
def test_ipv4_address_of_an_ipv6_socket_is_plain(address, plain):
    """What is no such address stays as it is."""
    assert plain_address(address) == plain


@pytest.mark.parametrize(("one", "other", "same"), [
    (("::ffff:192.0.2.1", 80, 0, 0), ("192.0.2.1", 80), True), (("::1", 80, 0, 0), ("::1", 80), True),
    (("192.0.2.1", 80), ("192.0.2.1", 81), False), (b"\0name", b"\0name", True), ("path", ("path", 80), False)])
def test_peer_is_the_same_in_any_form(one, other, same):
    """The kernel's form of its address is compared with the one that programs have."""
    assert is_same_peer(one, other) is same


@IPV6
@pytest.mark.parametrize("host", ["", "::"])
def test_server_everywhere_serves_both_families(host):
    """An IPv4 client has its plain address, and a stop wakes both of them."""
    seen = []
    server_class = subclass(client_connected=lambda server, client: seen.append(client.address))
    with server_class((host, 0), Echo).start() as server:
        assert server.server_address[0] == "::" and len(server.server_address) == (4 if host else 2)
        assert server.server_addresses == (server.server_address,) and server.listeners == (server.socket,)
        port = server.server_address[1]
        with socket.create_connection(("127.0.0.1", port)) as four, socket.create_connection(("::1", port)) as six:
            for client in (four, six):
                client.settimeout(GUARD)
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            # In either order: both of them wait when the first one is accepted.
            assert set(seen) == {four.getsockname(), six.getsockname() if host else six.getsockname()[:2]}
            assert server.stop().drained == 2


def test_host_that_is_empty_is_ipv4_where_there_is_no_dual_stack(monkeypatch):
    """The server is as that of socketserver."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with ThreadedTCPServer(("", 0), Echo).start() as server:
        assert server.socket.family == socket.AF_INET
        assert ask(("127.0.0.1", server.server_address[1])) == b"ping\n"


@IPV6
def test_client_that_has_detached_its_socket_is_woken_by_its_plain_address():
    """The connection is found again by its peer, whose address the kernel gives in another form."""
    detached = []
    gate = Gate(lambda handler: (detached.append(socket.socket(fileno=handler.request.detach())),
                                 taken_over.release.set(), detached[0].recv(1)))
    taken_over = Gate()
    gate.release.set()
    with ThreadedTCPServer(("", 0), gate.handler).start() as server:
        with connect(("127.0.0.1", server.server_address[1])) as client:
            wait_until(taken_over.release)
            report = server.stop()
            detached[0].close()
            assert receive_all(client) == b""
    assert (report.drained, report.forced) == (1, 0)


def test_error_has_the_address_as_an_attribute():
    """Whoever shows it in another way need not take the text apart."""
    with socket.create_server(LOOPBACK) as other:
        with pytest.raises(OSError) as raised:
            ThreadedTCPServer(other.getsockname(), Echo)
        assert raised.value.listener == other.getsockname()


@pytest.mark.parametrize("host", ["", "::"])
def test_name_for_everywhere_is_not_looked_up(host):
    """The server knows what it means."""
    assert resolve_name(host, 80) == [(host, 80)]


def test_name_has_all_its_addresses_but_those_of_others(monkeypatch):
    """One that the system does not have is left out, unless there is no other."""
    found = [("127.0.0.1", 80), ("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0), ("127.0.0.1", 80)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **keywords: [
        (None, None, None, None, address) for address in found])
    assert resolve_name("name", 80) == [("127.0.0.1", 80)]
    del found[0], found[-1]
    assert resolve_name("name", 80) == found
    del found[0]
    assert resolve_name("name", 80) == found


def test_name_of_an_address_that_may_not_be_tried_is_listened_on(monkeypatch):
    """Listening will raise the error."""
    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **keywords: [
        (None, None, None, None, (host, 80)) for host in ("127.0.0.1", "127.0.0.2")])
    assert resolve_name("name", 80) == [("127.0.0.1", 80), ("127.0.0.2", 80)]


@pytest.mark.parametrize("address", [
    "127.0.0.1:0", ("127.0.0.1", "0"), ("127.0.0.1",), (("127.0.0.1", 0), ("::1", 0)), (None, 0),
    ["127.0.0.1", 0], [("127.0.0.1", 0), "/run/echo"],
])
def test_address_of_a_wrong_type_is_an_error_that_says_what_it_is_to_be(address):
    """Python's own error would speak of `bind`, and of no option."""
    with pytest.raises(TypeError, match=r"server_address must be \(host, port\), a str and an int, or a list of such"):
        ThreadedTCPServer(address, Echo)


def test_address_that_is_not_bound_is_not_checked():
    """A program that has a socket of its own may give anything."""
    with ThreadedTCPServer("mine", Echo, bind_and_activate=False) as server:
        assert server.server_address == "mine"
