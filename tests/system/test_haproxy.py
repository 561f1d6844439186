"""Behind a real HAProxy: both versions of its header, plain, with TLS ended at the proxy, and TLS passed through."""
from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..tools import connect, receive, receive_all, until
from .certificates import Authority
from .commands import Command, command

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")

CONFIGURATION = """
defaults
    mode tcp
    timeout connect 30s
    timeout client 60s
    timeout server 60s
    timeout check 30s
listen proxy
    bind fd@{listener}{bind}
    server one {address} {server}
"""

CHECK = """
    option tcp-check
    tcp-check send alive\\n
    tcp-check expect string alive"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def haproxy(folder: Path, address: str, server: str, bind: str = "") -> Iterator[tuple[str, int]]:
    """Run HAProxy ahead of a server, with more words for the lines of its configuration; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configuration = folder / "haproxy.cfg"
        configuration.write_text(CONFIGURATION.format(listener=listener.fileno(), bind=bind, address=address,
                                                      server=server))
        with subprocess.Popen(["haproxy", "-q", "-db", "-f", configuration], pass_fds=[listener.fileno()],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                yield listener.getsockname()
            finally:
                process.kill()


def own_name(client: socket.socket) -> str:
    """Tell the address that a client calls from, as the command shows it."""
    return "{}:{}".format(*client.getsockname())


def echoes(client: socket.socket) -> None:
    """Check that what a client says comes back."""
    client.sendall(b"hello\n")
    assert receive(client, 6) == b"hello\n"


def next_connected(server: Command, start: str) -> str:
    """Read up to a line that begins so; return it."""
    while not (line := server.line()).startswith(start):
        assert line, f"{start!r} does not come: {server.end()}"
    return line


@pytest.fixture
def trusting(authority: Authority) -> Callable[[socket.socket], ssl.SSLSocket]:
    """Wrap a client's side in TLS, and verify the certificate."""
    def wrap(connection: socket.socket) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=authority.certificate)
        return context.wrap_socket(connection, server_hostname="127.0.0.1")

    return wrap


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
@pytest.mark.parametrize("tls", ["none", "at the proxy", "passed through", "both"])
def test_client_has_its_real_address(tmp_path: Path, authority: Authority,
                                     trusting: Callable[[socket.socket], ssl.SSLSocket], version: str,
                                     tls: str) -> None:
    """It is its own, not the proxy's; with TLS, wherever that ends, the header comes first and in the clear."""
    certificate, key = authority.sign("server")
    (tmp_path / "both.pem").write_text(certificate.read_text() + key.read_text())
    ours = ["--tls-cert", str(certificate), "--tls-key", str(key)] if tls in ("passed through", "both") else []
    with ExitStack() as stack:
        server = stack.enter_context(command("--proxy-protocol", "127.0.0.0/8", *ours))
        bind = f" ssl crt {tmp_path / 'both.pem'}" if tls in ("at the proxy", "both") else ""
        options = f"{version} ssl verify none" if tls == "both" else version
        address = stack.enter_context(haproxy(tmp_path, "{}:{}".format(*server.address()), options, bind))
        with connect(address) as plain:
            name = own_name(plain)
            with plain if tls == "none" else trusting(plain) as client:
                echoes(client)
                assert server.line() == f"client 1 connected from {name}"
                assert server.line() == "client 1: hello"
                server.signal()
                assert receive_all(client) == b""
        assert server.end()[0] == 0


def test_proxy_that_looks_whether_the_server_lives_is_no_failure(tmp_path: Path) -> None:
    """Its health checks have a header of their own kind, and its address."""
    options = f"send-proxy-v2 check inter 100ms fall 1000{CHECK}"  # it is not given up if a check takes too long
    with (command("--proxy-protocol", "127.0.0.1") as server,
          haproxy(tmp_path, "{}:{}".format(*server.address()), options) as address):
        next_connected(server, "client 2 connected from 127.0.0.1:")
        with connect(address) as client:
            echoes(client)
            until(lambda: server.line().endswith(f" connected from {own_name(client)}"))
        server.signal()
        status, _, errors = server.end()
        assert (status, errors) == (0, "")


def test_unix_socket_behind_the_proxy(tmp_path: Path) -> None:
    """The proxy is trusted by the word for such peers."""
    path = str(tmp_path / "socket")
    with (command("--unix", path, "--proxy-protocol", "unix") as server,
          haproxy(tmp_path, f"unix@{server.address()}", "send-proxy-v2") as address, connect(address) as client):
        echoes(client)
        assert server.line() == f"client 1 connected from {own_name(client)}"


def test_proxy_that_sends_no_header_is_refused_and_direct_clients_are_served(tmp_path: Path) -> None:
    """A forged header from elsewhere is refused as well."""
    with command("--proxy-protocol", "127.0.0.1") as server:
        with (haproxy(tmp_path, "{}:{}".format(*server.address()), "") as address, connect(address) as client):
            client.sendall(b"hello\n" * 3)
            assert receive_all(client) == b""
        assert server.line().startswith("client 1: its PROXY header was refused: no header, but ")
    with command("--proxy-protocol", "192.0.2.1") as server:
        address = server.address()
        with connect(address) as client:
            echoes(client)
            assert server.line() == f"client 1 connected from {own_name(client)}"
        with haproxy(tmp_path, "{}:{}".format(*address), "send-proxy") as address, connect(address) as client:
            client.sendall(b"hello\n")
            assert receive_all(client) == b""
        next_connected(server, "client 2: its PROXY header was refused: a header from an address that is not in ")
