"""The command with TLS, and the clients that people have: ``openssl s_client`` and ``curl``."""
from __future__ import annotations

import http.server
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threaded_echo import ClientHandler, ThreadedMixIn, ThreadedTCPServer, current_client

from ..conftest import LOOPBACK
from ..tools import GUARD, together, until
from .certificates import Authority
from .commands import command, handlers
from .programs import next_line, program, tell

PAGES = """
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)  # without a length: the end of the stream ends it
        self.end_headers()
        self.wfile.write(b"the page")

    def log_message(self, *arguments):
        pass
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def arguments(authority: Authority) -> list[str]:
    """Return the command's arguments for a certificate of that authority."""
    certificate, key = authority.sign("server")
    return ["--tls-cert", str(certificate), "--tls-key", str(key)]


@pytest.fixture
def curl(authority: Authority) -> Callable[..., tuple[int, str, str]]:
    """Call curl; return its exit status, its output and its errors."""
    def call(address: tuple[str, int], *more: str) -> tuple[int, str, str]:
        """Get the page at an address."""
        done = subprocess.run(["curl", "-sS", "--cacert", authority.certificate, *more,
                               "https://{}:{}/".format(*address)], capture_output=True, text=True, timeout=GUARD)
        return done.returncode, done.stdout, done.stderr

    return call


def s_client(address: tuple[str, int], authority: Authority, *more: str | Path) -> tuple[str, ...]:
    """Name the command of a client that believes in an authority, and in nobody else."""
    return ("openssl", "s_client", "-connect", "{}:{}".format(*address), "-CAfile", str(authority.certificate),
            "-verify_return_error", "-verify_ip", "127.0.0.1", "-brief", *map(str, more))


def read_to(process: subprocess.Popen[str], line: str) -> list[str]:
    """Read up to a line; return the ones before it."""
    lines: list[str] = []
    while (read := next_line(process)) != line:
        assert read or lines[-3:] != ["", "", ""], f"{line!r} does not come after {lines}"
        lines.append(read)
    return lines


@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_s_client_gets_its_echo_and_a_clean_end(version: str, authority: Authority, arguments: list[str]) -> None:
    """The certificate is verified. A stop ends it with a close_notify, without which the client would complain."""
    with command(*arguments) as server, program(*s_client(server.address(), authority, f"-tls{version}")) as client:
        tell(client, "hello")
        said = read_to(client, "hello")
        assert "Verification: OK" in said and f"Protocol version: TLSv{version.replace('_', '.')}" in said
        server.signal()
        assert server.end()[0] == 0
        assert client.wait(GUARD) == 0
        rest = client.stdout.read()  # type: ignore[union-attr]
        assert "errno" not in rest and "error" not in rest, rest


def test_curl_reads_to_the_end_of_the_stream(tmp_path: Path, arguments: list[str], curl: Any) -> None:
    """A page without a length ends with the stream; curl takes that for its end, and has no complaint."""
    folder = handlers(tmp_path, "import http.server\n" + PAGES)
    with command(*arguments, "--handler", "handlers:Pages", folder=folder) as server:
        address = server.address()
        assert curl(address) == (0, "the page", "")
        assert curl(address, "--tlsv1.2", "--tls-max", "1.2") == (0, "the page", "")


def test_client_needs_a_certificate_of_the_authority(tmp_path: Path, authority: Authority, arguments: list[str],
                                                     curl: Any) -> None:
    """With ``--tls-ca``, who has none is turned away, and so is one with somebody else's."""
    folder = handlers(tmp_path, "import http.server\n" + PAGES)
    other = tmp_path / "other"
    other.mkdir()
    with command(*arguments, "--tls-ca", str(authority.certificate), "--handler", "handlers:Pages",
                 folder=folder) as server:
        address = server.address()
        for signer, is_served in ((authority, True), (Authority(other), False)):
            certificate, key = signer.sign("client", "Ada")
            status, page, _ = curl(address, "--cert", str(certificate), "--key", str(key))
            assert (status == 0 and page == "the page") is is_served
        assert curl(address)[0] != 0
        server.signal()
        lines = "\n".join(server.end()[1])
        assert "client 2: its TLS handshake has failed" in lines and "client 3: its TLS handshake has failed" in lines


def test_renewed_certificate_under_load_loses_no_connection(tmp_path: Path, authority: Authority, curl: Any) -> None:
    """Eight clients come again and again, while the certificate is renewed on SIGHUP five times."""
    folder = handlers(tmp_path, "import http.server\n" + PAGES)
    certificate, key = authority.sign("renewed", "first")
    with command("--tls-cert", str(certificate), "--tls-key", str(key), "--handler", "handlers:Pages", "--quiet",
                 folder=folder) as server:
        address = server.address()
        with program(*s_client(address, authority)) as client:
            read_to(client, "Verification: OK")
            answers: list[Any] = []

            def renew() -> None:
                """Renew the certificate, and wait until that is known."""
                for number in range(5):
                    authority.sign("renewed", f"number {number}")
                    server.signal(signal.SIGHUP)
                    assert server.line() == f"certificate reloaded: {certificate}"

            def come() -> None:
                """Get the page some times."""
                answers.extend(curl(address) for _ in range(8))

            tasks = [renew, *[come] * 8]
            together(len(tasks), lambda: tasks.pop()())
            assert answers == [(0, "the page", "")] * 64
            assert "subject: CN=number 4" in curl(address, "--verbose")[2].replace(" = ", "=")
            tell(client, "GET / HTTP/1.0\n")  # the client that was there before the first renewal
            read_to(client, "the page")


class _Earlier(http.server.ThreadingHTTPServer):
    """What `http.server.ThreadingHTTPSServer` does, which came with Python 3.14."""

    def __init__(self, address: tuple[str, int], handler: type, certfile: Path, keyfile: Path) -> None:
        self.files = certfile, keyfile
        super().__init__(address, handler)

    def server_activate(self) -> None:
        """Wrap the listening socket."""
        super().server_activate()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.files)
        self.socket = context.wrap_socket(self.socket, server_side=True)


def test_https_server_of_the_standard_library_is_upgraded(authority: Authority, curl: Any) -> None:
    """It wraps its listening socket; its certificate can be renewed, too."""
    class Page(http.server.BaseHTTPRequestHandler):
        """Answers."""

        def do_GET(self) -> None:
            """Say by which version of TLS."""
            client = current_client()
            assert client is not None and client.tls is not None
            self.send_response(200)
            self.end_headers()
            self.wfile.write(client.tls.version.encode())

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

    base: Any = getattr(http.server, "ThreadingHTTPSServer", _Earlier)
    server_class = type("Server", (ThreadedMixIn, base), {})
    certificate, key = authority.sign("https", "first")
    with server_class(LOOPBACK, Page, certfile=certificate, keyfile=key).start() as server:
        assert curl(server.server_address) == (0, "TLSv1.3", "")
        server.reload_tls(*authority.sign("https", "second"))
        status, page, said = curl(server.server_address, "--verbose")
        assert (status, page) == (0, "TLSv1.3") and "subject: CN=second" in said.replace(" = ", "=")


def test_renegotiation_is_refused(authority: Authority, arguments: list[str]) -> None:
    """A client that asks for one more handshake in TLS 1.2 gets none; others are served on."""
    with command(*arguments) as server:
        address = server.address()
        with program(*s_client(address, authority, "-tls1_2")) as other:
            tell(other, "hello")
            read_to(other, "hello")
            with program(*s_client(address, authority, "-tls1_2")) as client:
                tell(client, "hello")
                read_to(client, "hello")
                tell(client, "R")
                assert "no renegotiation" in client.stdout.read()  # type: ignore[union-attr]
                assert client.wait(GUARD) != 0
            tell(other, "still here")
            read_to(other, "still here")


def test_keys_that_are_renewed_while_another_thread_sends_break_nothing(authority: Authority) -> None:
    """The handler receives each request for a new key in TLS 1.3 in the middle of the other thread's sends."""
    class Silent(ClientHandler):
        """Receives."""

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("server"))
    with ThreadedTCPServer(LOOPBACK, Silent, ssl_context=context).start() as server:
        with program(*s_client(server.server_address, authority, "-tls1_3")) as client:
            read_to(client, "Verification: OK")
            until(lambda: server.clients and server.clients[1].state == "serving")
            asked = threading.Event()

            def ask() -> None:
                """Ask for new keys."""
                for _ in range(500):
                    tell(client, "K")
                tell(client, "enough")
                asked.set()

            def send() -> None:
                """Send all the time."""
                while not asked.is_set():
                    server.clients[1].send(b"x" * 3000 + b"\n")
                server.clients[1].send(b"the end\n")

            tasks = [ask, send, lambda: read_to(client, "the end")]
            together(len(tasks), lambda: tasks.pop()())
    assert server.stats().failed == 0
