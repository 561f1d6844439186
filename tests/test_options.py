"""The options: keywords, class attributes, instance attributes, and who wins."""
from __future__ import annotations

import http.server
import math
import socket
import socketserver

import pytest

from threaded_echo import ThreadedMixIn, ThreadedTCPServer
from threaded_echo.options import is_live

from .conftest import LOOPBACK
from .tools import Echo, ask


@pytest.mark.parametrize("options, error", [
    ({"max_pigeons": 3}, TypeError),
    ({"drain_timeout": "5"}, TypeError),
    ({"drain_timeout": True}, TypeError),
    ({"drain_timeout": None}, TypeError),
    ({"force_timeout": -0.1}, ValueError),
    ({"force_timeout": math.nan}, ValueError),
    ({"force_timeout": math.inf}, ValueError),
    ({"unix_mode": "660"}, TypeError),
    ({"unix_mode": 0o1777}, ValueError),
    ({"allow_reuse_port": None}, TypeError),
    ({"linger_timeout": -1}, ValueError),
    ({"request_queue_size": 1.5}, TypeError),
    ({"request_queue_size": True}, TypeError),
    ({"request_queue_size": -1}, ValueError),
    ({"reuse_threads": "no"}, TypeError),
    ({"idle_timeout": 0}, ValueError),
    ({"idle_timeout": -1}, ValueError),
    ({"lifetime": "long"}, TypeError),
    ({"lifetime": math.inf}, ValueError),
    ({"send_timeout": 0.0}, ValueError),
    ({"handshake_timeout": True}, TypeError),
    ({"keepalive": 0}, ValueError),
    ({"keepalive": 32768}, ValueError),
    ({"keepalive": False}, TypeError),
    ({"ssl_context": "certificate.pem"}, TypeError),
    ({"proxy_protocol": None}, TypeError),
    ({"proxy_protocol": b"10.0.0.0/8"}, TypeError),
    ({"proxy_protocol": [10]}, TypeError),
    ({"proxy_protocol": iter(["10.0.0.0/8"])}, TypeError),
    ({"proxy_protocol": ""}, ValueError),
    ({"proxy_protocol": "10.0.0.5/8"}, ValueError),  # is it the network or the address that is meant?
    ({"proxy_protocol": ["10.0.0.0/8", "localhost"]}, ValueError),
    ({"executor": 0}, ValueError),
    ({"executor": True}, TypeError),
    ({"executor": "threads"}, TypeError),
    ({"max_offloads": 0}, ValueError),
    ({"max_offloads": 2.0}, TypeError),
    ({"at_offload_limit": "panic"}, ValueError),
    ({"at_offload_limit": None}, ValueError),
    ({"max_clients": 0}, ValueError),
    ({"max_clients": "3"}, TypeError),
    ({"at_limit": "panic"}, ValueError),
    ({"limit_reply": "sorry"}, TypeError),
    ({"limit_reply": None}, TypeError),
    ({"max_clients_per_host": -1}, ValueError),
    ({"max_clients_per_host": True}, TypeError),
    ({"reserve_descriptors": -1}, ValueError),
    ({"reserve_descriptors": None}, TypeError),
    ({"max_offloads_per_host": 0}, ValueError),
    ({"offload_timeout": "1"}, TypeError),
    ({"offload_timeout": -1}, ValueError),
    ({"slow_offload": True}, TypeError),
    ({"daemon_threads": 2}, TypeError),
    ({"allow_reuse_address": "yes"}, TypeError),
])
def test_wrong_option_is_named(options, error):
    """An unknown keyword or a wrong value is an error that names the option, and opens nothing."""
    with pytest.raises(error, match=next(iter(options))):
        ThreadedTCPServer(LOOPBACK, Echo, **options)


def test_wrong_class_attribute_is_named():
    """A class body is checked as it is defined."""
    with pytest.raises(ValueError, match="drain_timeout"):
        type("Server", (ThreadedTCPServer,), {"drain_timeout": -1})


def test_option_that_is_a_property_is_checked_when_serving():
    """A program's class may compute an option: it is the value on the instance that counts."""
    seconds = [2.0, -1]
    server_class = type("Server", (ThreadedTCPServer,), {
        "daemon_threads": property(lambda server: True),
        "drain_timeout": property(lambda server: seconds[0])})
    with server_class(LOOPBACK, Echo) as server:
        assert ask(server.start()) == b"ping\n"
        server.shutdown()
        seconds.reverse()
        with pytest.raises(ValueError, match="drain_timeout"):
            server.start()
        seconds.reverse()


def test_wrong_instance_attribute_is_named_when_serving():
    """What was set on the instance is checked before it serves."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.drain_timeout = "long"
        with pytest.raises(TypeError, match="drain_timeout"):
            server.start()
        server.drain_timeout = 1


def test_handler_that_cannot_be_called_is_an_error():
    """The handler class is checked where it is given."""
    with pytest.raises(TypeError, match="RequestHandlerClass"):
        ThreadedTCPServer(LOOPBACK, "EchoHandler")


def test_keywords_set_this_server_only():
    """An option given as a keyword leaves the class alone."""
    with ThreadedTCPServer(LOOPBACK, Echo, drain_timeout=1, force_timeout=2.5, reuse_threads=False,
                           request_queue_size=7, daemon_threads=False, allow_reuse_address=False) as server:
        assert (server.drain_timeout, server.force_timeout, server.reuse_threads) == (1, 2.5, False)
        assert (server.request_queue_size, server.daemon_threads, server.allow_reuse_address) == (7, False, False)
        assert not server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert (ThreadedTCPServer.drain_timeout, ThreadedTCPServer.request_queue_size) == (5.0, socket.SOMAXCONN)


@pytest.mark.parametrize("base", [socketserver.TCPServer, socketserver.ThreadingTCPServer,
                                  socketserver.ThreadingUDPServer])
def test_defaults_win_over_those_of_socketserver(base):
    """The mix-in brings its defaults to any class of socketserver's."""
    server_class = type("Server", (ThreadedMixIn, base), {})
    assert server_class.daemon_threads is True
    assert server_class.request_queue_size == socket.SOMAXCONN
    assert server_class.allow_reuse_address is True


def test_mistakes_with_the_mixin_are_told():
    """The error says what to do: nothing of this would work, and the first would go unnoticed."""
    with pytest.raises(TypeError, match="put ThreadedMixIn ahead"):
        type("Server", (socketserver.TCPServer, ThreadedMixIn), {})
    with pytest.raises(TypeError, match="drain_timeout is not a keyword of the class statement: set it in the body"):
        class Server(ThreadedMixIn, socketserver.TCPServer, drain_timeout=1):
            """Gives an option to the class statement."""
    server_class = type("Server", (ThreadedMixIn, socketserver.TCPServer), {})
    with pytest.raises(TypeError, match="drain_timeout is not a keyword of Server: set it in the body of the class"):
        server_class(LOOPBACK, Echo, drain_timeout=1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        server_class(LOOPBACK, Echo, colour=1)


def test_class_of_the_program_wins_over_the_defaults():
    """Above or below the mix-in, what the program's own class body sets counts."""
    own = {"daemon_threads": False, "request_queue_size": 50, "drain_timeout": 1.0}
    below = type("Server", (ThreadedMixIn, type("Existing", (socketserver.ThreadingTCPServer,), own)), {})
    above = type("Server", (ThreadedMixIn, socketserver.ThreadingTCPServer), own)
    for server_class in (below, above, type("Sub", (below,), {})):
        assert (server_class.daemon_threads, server_class.request_queue_size) == (False, 50)
        assert server_class.drain_timeout == 1.0
    assert type("Server", (below,), {"request_queue_size": 3}).request_queue_size == 3
    assert type("Server", (ThreadedMixIn, http.server.HTTPServer), {}).allow_reuse_address


def test_members_of_an_existing_class_win():
    """A class that has start, stop, clients or stats of its own keeps them, and is stopped all the same."""
    class Existing(socketserver.ThreadingTCPServer):
        """Has names that the mix-in has too."""

        clients = "its clients"
        stopping = False

        def __init__(self, *arguments):
            """Set one more on the instance."""
            self.stats = {"mine": 1}
            super().__init__(*arguments)

        def start(self):
            """Not the mix-in's."""
            return "its start"

        def stop(self):
            """Not the mix-in's."""
            return "its stop"

    class Server(ThreadedMixIn, Existing):
        """Upgraded."""

    with Server(LOOPBACK, Echo) as server:
        assert (server.start(), server.stop(), server.clients, server.stopping, server.stats) == (
            "its start", "its stop", "its clients", False, {"mine": 1})
        server._threaded_state.loops.start(server.serve_forever)
        assert ask(server) == b"ping\n"
    assert server.fileno() < 0


def test_private_attributes_of_a_program_are_its_own():
    """Programs have names such as ``_stop`` for themselves: nothing of the mix-in's is called like that."""
    class Server(ThreadedTCPServer):
        """Has attributes of its own."""

        def __init__(self, *arguments):
            """Set some."""
            for name in ("_stop", "_close", "_log", "_accept", "_serve", "_run", "_find", "_lock", "_clients"):
                setattr(self, name, name)
            super().__init__(*arguments)

    with Server(LOOPBACK, Echo).start() as server:
        assert ask(server) == b"ping\n"
    names = {name for cls in ThreadedMixIn.__mro__[:-1] for name in vars(cls) if name.startswith("_")}
    assert {name for name in names if not name.startswith(("_threaded", "__", "_BaseServer__"))} == {
        "_threads", "_handle_request_noblock"}, "these two are socketserver's"


def test_instance_attributes_of_a_program_win():
    """A program may set attributes of these names on its instance, before or after __init__."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        server.clients = server.stopping = []
        assert server.clients == server.stopping == []


def test_option_may_be_assigned_before_the_server_is_made():
    """There is nobody to tell yet."""
    class Server(ThreadedTCPServer):
        """Sets a limit ahead of socketserver's own __init__."""

        def __init__(self):
            """Set it."""
            self.max_clients = 3
            super().__init__(LOOPBACK, Echo)

    with Server() as server:
        assert server.max_clients == 3 and ask(server.start()) == b"ping\n"


def test_limit_of_any_class_is_told_to_a_server_when_it_is_assigned():
    """Set in the body of a class, of one below the mix-in, of one that a subclass inherits from, or as a keyword."""
    below = type("Server", (ThreadedMixIn, type("Existing", (socketserver.ThreadingTCPServer,), {"max_clients": 4})),
                 {})
    above = type("Server", (ThreadedTCPServer,), {"max_clients": 4})
    for server_class in (below, above, type("Sub", (below,), {})):
        assert server_class.max_clients == 4
        server = server_class(LOOPBACK, Echo)
        with server:
            assert server.max_clients == 4 and is_live(server, "max_clients")
    computed = type("Server", (ThreadedTCPServer,), {"max_clients": property(lambda server: 4)})
    with computed(LOOPBACK, Echo) as server:
        assert server.max_clients == 4 and not is_live(server, "max_clients")
