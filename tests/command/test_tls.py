"""TLS on the command line."""
from __future__ import annotations

import signal
import ssl
import subprocess
import sys

import pytest

from threaded_echo.command import run as cli

from ..tools import connect
from ..transport.test_certificates import RENEWED, name_of, split
from ..transport.test_tls import CERTIFICATE, connect_tls
from .operating import run

pytestmark = pytest.mark.usefixtures("hangups_are_restored")


@pytest.fixture
def hangups_are_restored():
    """Check that SIGHUP does again what it did before."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    assert signal.getsignal(signal.SIGHUP) == before


def test_certificate_is_served_and_reloaded(tmp_path):
    """The certificate and its key are files; SIGHUP reads both anew."""
    certificate, key = split(tmp_path)

    def script(operator):
        """Come, renew, come again."""
        address = operator.address()
        with connect_tls(address) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        while operator.line() != "client 1 disconnected":
            pass
        split(tmp_path, RENEWED)
        operator.interrupt(signal.SIGHUP)
        assert operator.line() == f"certificate reloaded: {certificate}"
        assert name_of(address) == "renewed"
        operator.interrupt()

    status, lines = run(["--port", "0", "--tls-cert", str(certificate), "--tls-key", str(key)], script)
    assert status == cli.OK and "client 1: hello" in lines


def test_renewed_key_may_be_of_another_kind(tmp_path):
    """OpenSSL would keep both in one context, and prefer the old one if that is of the better kind."""
    certificate, key = split(tmp_path)

    def script(operator):
        """Renew with an RSA key, come, break it, come again."""
        address = operator.address()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=of RSA", "-days", "2",
                        "-keyout", key, "-out", certificate], check=True, capture_output=True)
        operator.interrupt(signal.SIGHUP)
        assert operator.line() == f"certificate reloaded: {certificate}"
        key.unlink()
        operator.interrupt(signal.SIGHUP)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(connect(address)) as client:
            assert b"of RSA" in client.getpeercert(binary_form=True)
        operator.interrupt()

    assert run(["--port", "0", "--tls-cert", str(certificate), "--tls-key", str(key)], script)[0] == cli.OK


def test_authority_makes_a_certificate_of_the_client_required():
    """Who has none is turned away."""
    def script(operator):
        """Come with none."""
        with connect_tls(operator.address()) as client, pytest.raises((ssl.SSLError, ConnectionError)):
            client.recv(1)
        assert operator.line().startswith("client 1: its TLS handshake has failed")
        operator.interrupt()

    assert run(["--port", "0", "--tls-cert", str(CERTIFICATE), "--tls-ca", str(RENEWED)], script)[0] == cli.OK


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--tls-cert", "missing"], "cannot load missing: No such file or directory"),
    (["--tls-cert", str(CERTIFICATE), "--tls-key", "missing"], "cannot load missing: No such file or directory"),
    (["--tls-cert", str(CERTIFICATE), "--tls-key", str(RENEWED)],
     f"cannot load {CERTIFICATE} with the key {RENEWED}: key values mismatch"),
    (["--tls-cert", str(CERTIFICATE), "--tls-ca", "missing"], "cannot load missing: No such file or directory"),
])
def test_file_that_does_not_load_is_told(capsys, tmp_path, monkeypatch, arguments, reason):
    """One line names it, and nothing listens."""
    monkeypatch.chdir(tmp_path)
    assert run(["--port", "0", *arguments]) == (cli.FAILED, [])
    assert capsys.readouterr().err == f"threaded_echo: {reason}\n"


@pytest.mark.parametrize("argument", ["--tls-key", "--tls-ca"])
def test_key_or_authority_without_a_certificate_is_wrong_usage(capsys, argument):
    """There is no TLS to use it for."""
    with pytest.raises(SystemExit) as raised:
        run([argument, "file"])
    assert raised.value.code == 2 and f"argument {argument}: needs --tls-cert" in capsys.readouterr().err


def test_python_without_tls_is_told(capsys, monkeypatch):
    """It was built without OpenSSL, and needs none for anything else."""
    monkeypatch.setitem(sys.modules, "ssl", None)
    assert run(["--port", "0", "--tls-cert", str(CERTIFICATE)]) == (cli.FAILED, [])
    assert capsys.readouterr().err.startswith("threaded_echo: this Python has no TLS: ")
