"""SIGHUP, which has `server.run` reload the certificate."""
from __future__ import annotations

import logging
import signal

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.accepting import running, signals

from ..tools import Echo, ask, until
from ..transport.test_certificates import RENEWED, name_of, split
from ..transport.test_tls import CERTIFICATE, server_context
from .operating import run, send, server_of

pytestmark = pytest.mark.usefixtures("handlers_are_restored")


def test_renewed_certificate_is_taken_and_a_broken_one_leaves_the_old_one(tmp_path, caplog):
    """Both are logged; the server serves on either way, and SIGTERM still stops it."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    files = split(tmp_path)
    server = server_of(Echo, ssl_context=server_context())
    server.reload_tls(*files)
    before = signal.getsignal(signal.SIGHUP)

    def script():
        assert name_of(server) == "localhost"
        split(tmp_path, RENEWED)
        send(signal.SIGHUP)
        until(lambda: f"certificate reloaded: {files[0]}" in caplog.text)
        assert name_of(server) == "renewed"
        files[0].write_text("broken")
        send(signal.SIGHUP)
        until(lambda: "the old one stays: cannot load " in caplog.text)
        assert name_of(server) == "renewed"
        send(signal.SIGTERM)

    assert run(server, script).clean
    assert signal.getsignal(signal.SIGHUP) == before
    assert [record.levelname for record in caplog.records if "old one stays" in record.message] == ["ERROR"]


def test_signal_is_left_alone_if_there_is_nothing_to_reload():
    """It does what it did before, whether that is to end the process or something of the program's."""
    during = []

    def script(server):
        until(lambda: server.stats().seconds_up)
        during.append(signal.getsignal(signal.SIGHUP))
        server.stop()

    server = server_of(Echo)
    run(server, lambda: script(server))
    assert during == [signal.getsignal(signal.SIGHUP)]


def test_signal_to_a_server_that_does_not_know_its_files_is_answered_in_the_log(caplog):
    """It serves on, and says how it gets to know them."""
    server = server_of(Echo, ssl_context=server_context())

    def script():
        assert name_of(server) == "localhost"
        send(signal.SIGHUP)
        until(lambda: "the old one stays: this server does not know the files of its certificate" in caplog.text)
        assert name_of(server) == "localhost"
        send(signal.SIGTERM)

    assert run(server, script).clean


def test_platform_without_the_signal_stops_by_the_others(monkeypatch):
    """Windows has no SIGHUP."""
    monkeypatch.setattr(running, "RELOAD", None)
    server = server_of(Echo, ThreadedTCPServer)
    server._threaded_state.certificates.files = CERTIFICATE, None
    assert run(server, lambda: (ask(server), send(signal.SIGINT))).clean


def test_signal_in_a_forked_process_does_what_it_did_before(monkeypatch):
    """A terminal that hangs up ends that process, as it would without this server."""
    kept, before, ours = signal.getsignal(signal.SIGHUP), [], []
    signal.signal(signal.SIGHUP, lambda number, frame: before.append(number))
    try:
        with signals.handled(ours.append, [signal.SIGHUP]):
            signal.raise_signal(signal.SIGHUP)
            signals._restore_in_child()
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert (ours, before) == ([signal.SIGHUP], [signal.SIGHUP])
