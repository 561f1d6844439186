"""A server's certificate: what is loaded, what is refused, and what stays if the new one does not load."""
from __future__ import annotations

import os
import socketserver
import ssl
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from threaded_echo import ThreadedMixIn
from threaded_echo.transport import certificates, tls
from threaded_echo.transport.certificates import server_context

from ..conftest import LOOPBACK
from ..tools import Echo, connect
from .test_tls import CERTIFICATE, TLSServer, connect_tls, server_context as context_of_a_program

RENEWED = CERTIFICATE.with_name("renewed.pem")


def split(folder: Path, source: Path = CERTIFICATE) -> tuple[Path, Path]:
    """Write the certificate and the key of a file into one each; return their paths."""
    key, end, certificate = source.read_text().partition("-----END PRIVATE KEY-----\n")
    (folder / "key.pem").write_text(key + end)
    (folder / "certificate.pem").write_text(certificate)
    return folder / "certificate.pem", folder / "key.pem"


def name_of(server) -> str:
    """Ask a server for the name in its certificate, as a new client sees it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    context.load_verify_locations(RENEWED)
    with context.wrap_socket(connect(server), server_hostname="localhost") as client:
        return dict(pair for pairs in client.getpeercert()["subject"] for pair in pairs)["commonName"]


def test_context_of_a_server_is_sensible(tmp_path):
    """It is Python's default for servers, without renegotiation, and asks clients for nothing."""
    context = server_context(*split(tmp_path))
    assert context.protocol == ssl.PROTOCOL_TLS_SERVER and context.verify_mode == ssl.CERT_NONE
    assert context.minimum_version == ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).minimum_version
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_authority_makes_a_certificate_of_the_client_required(serve):
    """One with a certificate that it has signed is served, and the certificate is on the client."""
    seen = []

    class Handler(Echo):
        """Says what the client has shown."""

        def setup(self):
            """Look."""
            seen.append(self.server.clients[1].tls)

    server = serve(Handler, ssl_context=server_context(CERTIFICATE, None, RENEWED))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    context.load_cert_chain(RENEWED)
    with context.wrap_socket(connect(server), server_hostname="localhost") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    with connect_tls(server) as client, pytest.raises((ssl.SSLError, ConnectionError)):
        client.recv(1)  # in TLS 1.3 only the first read tells
    server.stop()
    assert seen[0].certificate["subject"] == ((("commonName", "renewed"),),)
    assert (server.stats().refused, server.stats().finished) == (1, 1)


@pytest.mark.parametrize(("name", "error", "text"), [
    ("missing.pem", FileNotFoundError, "missing.pem"),
    (".", IsADirectoryError, "."),
    ("empty.pem", ssl.SSLError, "empty.pem"),
    ("certificate.pem", ssl.SSLError, "certificate.pem"),  # without its key
    ("mixed.pem", ssl.SSLError, "mixed.pem: key values mismatch"),
    ("encrypted.pem", ssl.SSLError, "encrypted.pem: the key is encrypted"),
])
def test_certificate_that_does_not_load_is_named_and_the_old_one_stays(serve, tmp_path, monkeypatch, name, error, text):
    """Whether the file is missing, is none, or does not fit to its key."""
    monkeypatch.chdir(tmp_path)
    split(tmp_path)
    (tmp_path / "empty.pem").touch()
    key = CERTIFICATE.read_text().partition("-----BEGIN CERTIFICATE-----")[0]
    (tmp_path / "mixed.pem").write_text(key + split(tmp_path, RENEWED)[0].read_text())
    subprocess.run(["openssl", "pkcs8", "-topk8", "-in", CERTIFICATE, "-passout", "pass:secret", "-out",
                    "encrypted.pem"], check=True)
    with open("encrypted.pem", "a") as file:
        file.write(Path("certificate.pem").read_text())
    server = serve(Echo, ssl_context=server_context(CERTIFICATE))
    with pytest.raises(error) as raised:
        server.reload_tls(name)
    assert text in str(raised.value)
    with pytest.raises(error):
        server_context(name)
    assert name_of(server) == "localhost"
    with pytest.raises(RuntimeError, match="does not know the files"):
        server.reload_tls()


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_authority_that_does_not_load_is_named(tmp_path, text):
    """A server that would let everybody in does not start."""
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OSError, match="ca.pem"):
        server_context(CERTIFICATE, None, path)


def test_renewed_certificate_is_for_new_clients_and_live_ones_stay(serve, tmp_path):
    """The files that were loaded last are read anew without arguments."""
    files = split(tmp_path)
    server = serve(Echo, ssl_context=server_context(*files))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    with context.wrap_socket(connect(server), server_hostname="localhost") as client:
        server.reload_tls(*files)
        assert name_of(server) == "localhost"
        split(tmp_path, RENEWED)
        server.reload_tls()
        assert name_of(server) == "renewed"
        client.sendall(b"still here")
        assert client.recv(100) == b"still here"


def test_files_that_change_meanwhile_are_loaded_as_they_were_read(serve, tmp_path, monkeypatch):
    """What was tried is what the live context gets; while that is changed, no connection is wrapped."""
    certificate, key = split(tmp_path, RENEWED)
    server = serve(Echo, ssl_context=server_context(CERTIFICATE))
    changing, real = certificates._changing(server.ssl_context), certificates._load
    free = []

    def load(*arguments):
        with ThreadPoolExecutor(1) as other:
            free.append(other.submit(changing.acquire, blocking=False).result())
            if free[-1]:
                other.submit(changing.release).result()
        real(*arguments)
        certificate.write_text("broken")

    monkeypatch.setattr(certificates, "_load", load)
    server.reload_tls(certificate, key)
    assert name_of(server) == "renewed" and free == [True, False]


def test_servers_that_share_a_context_do_not_change_it_while_the_other_wraps(serve, monkeypatch):
    """OpenSSL, which copies the certificate without a lock, would crash."""
    context = context_of_a_program()
    servers = serve(Echo, ssl_context=context), serve(Echo, ssl_context=context)
    holders = []

    def holding(function):
        def call(*arguments):
            with ThreadPoolExecutor(1) as other:
                if other.submit(certificates._changing(context).acquire, blocking=False).result():
                    other.submit(certificates._changing(context).release).result()
                else:
                    holders.append(function.__name__)
            return function(*arguments)

        return call

    monkeypatch.setattr(certificates, "_load", holding(certificates._load))
    monkeypatch.setattr(tls, "wrap", holding(tls.wrap))
    for server in servers:
        server.reload_tls(RENEWED)
        assert name_of(server) == "renewed"
    assert holders == ["_load", "wrap"] * 2


def test_listener_that_a_program_has_wrapped_takes_a_renewed_certificate(serve):
    """Its context is the listening socket's."""
    server = serve(Echo, TLSServer)
    server.reload_tls(os.fspath(RENEWED))
    assert name_of(server) == "renewed"


def test_server_that_has_nothing_to_reload_says_so(serve):
    """Without TLS; and with a key alone."""
    with pytest.raises(RuntimeError, match="no TLS"):
        serve(Echo).reload_tls(CERTIFICATE)
    with pytest.raises(TypeError, match="certfile"):
        serve(Echo, ssl_context=context_of_a_program()).reload_tls(keyfile=CERTIFICATE)


def test_without_files_in_memory_the_copies_are_in_a_private_folder(monkeypatch, tmp_path):
    """The folder is gone afterwards."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    modes = []

    def load(context, copy, *arguments):
        modes.append(os.stat(os.path.dirname(copy)).st_mode & 0o777)
        real(context, copy, *arguments)

    real = certificates._load
    monkeypatch.setattr(certificates, "_load", load)
    assert server_context(CERTIFICATE).cert_store_stats() and modes == [0o700]
    assert os.listdir(tmp_path) == []


def test_method_of_a_program_wins():
    """A class below the mix-in may have a ``reload_tls`` of its own."""
    class Existing(socketserver.ThreadingTCPServer):
        """Has one."""

        def reload_tls(self):
            """Not the mix-in's."""
            return "its own"

    class Server(ThreadedMixIn, Existing):
        """Upgraded."""

    with Server(LOOPBACK, Echo) as server:
        assert server.reload_tls() == "its own"


def test_file_without_a_key_is_told_in_plain_words(tmp_path):
    """OpenSSL has none for it; somebody has left out the key's own file."""
    certificate, _ = split(tmp_path)
    with pytest.raises(ssl.SSLError, match="cannot load .*certificate.pem: a certificate or its private key is not"):
        server_context(certificate)
