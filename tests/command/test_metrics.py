"""The command's metrics, scraped by a real HTTP client."""
from __future__ import annotations

import errno
import io
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, redirect_stdout

import pytest
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from threaded_echo import ThreadedTCPServer, stopping
from threaded_echo.accepting.loop import Background
from threaded_echo.command import run as cli

from ..tools import GUARD, connect, receive, receive_all, until, wait_until
from .operating import Operator, reset, run

PORTS = ["--port", "0", "--metrics-port", "0"]


def url_of(operator: Operator) -> str:
    """Read where the metrics are, which is the first line."""
    found = re.fullmatch(r"metrics on (http://127\.0\.0\.1:\d+/metrics)", operator.line())
    assert found, operator.lines
    return found[1]


def address_of(url: str) -> tuple[str, int]:
    """Find the address in a URL."""
    return "127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])


def scrape(url: str) -> dict[str, float]:
    """Scrape and parse; values of samples without labels by their names."""
    with urllib.request.urlopen(url, timeout=GUARD) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text = response.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
            if not sample.labels}


class Failing:
    """Waits to be released, and fails then if it is to."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.entered, self.release = threading.Event(), threading.Event()

    def describe(self):
        """Name nothing."""
        return []

    def collect(self):
        """Wait, and fail or not."""
        self.entered.set()
        wait_until(self.release)
        if self.fails:
            raise LookupError("nothing to collect")
        return []


@pytest.fixture
def registered():
    """Register collectors in prometheus_client's own registry, until the end of the test."""
    made = []

    def register(collector):
        """Do it."""
        REGISTRY.register(collector)
        made.append(collector)
        return collector

    yield register
    for collector in made:
        REGISTRY.unregister(collector)


def test_metrics_are_served_until_the_end_beside_those_of_the_process(registered):
    """Prometheus's own client shares its registry, so that a handler's metrics are there, too."""
    registered(Counter("their_jobs", "Of the handler's module", registry=None)).inc()
    urls = []

    def script(operator):
        """Connect, scrape, connect to it and say nothing, and stop."""
        url = url_of(operator)
        urls.append(url)
        with connect(operator.address()) as client, connect(address_of(url)) as silent:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            found = scrape(url)
            assert (found["threaded_echo_clients"], found["threaded_echo_connections_total"]) == (1, 1)
            assert found["their_jobs_total"] == 1
            operator.interrupt()
            assert receive_all(silent) == receive_all(client) == b""

    status, lines = run([*PORTS, "--verbose"], script)
    assert status == cli.OK
    assert lines[-1].startswith("stopped in ") and sum("disconnected" in line for line in lines) == 1
    assert all("client 2" not in line for line in lines)
    with socket.socket() as late:
        assert late.connect_ex(address_of(urls[0])) == errno.ECONNREFUSED
    assert REGISTRY.get_sample_value("threaded_echo_clients") is None


def test_output_that_breaks_at_the_line_about_the_metrics_ends_the_command(monkeypatch, capsys):
    """It comes before the server serves, which must not go on with nobody to see."""
    error, stopped = OSError(errno.ENOSPC, "No space left on device"), []

    class Full(io.StringIO):
        """Takes nothing."""

        def write(self, text):
            """Fail."""
            raise error

    @contextmanager
    def serve_and_break(*arguments):
        """Serve, and wait until the output's thread has met the error, and has ended."""
        with serve_metrics(*arguments):
            for thread in threading.enumerate():
                if thread.name == "threaded_echo output":
                    thread.join(GUARD)
            yield

    def run_unless_stopped(server, duration):
        """Note whether the server was stopped, in place of serving."""
        stopped.append(server.fileno() < 0)
        return server.stop()

    serve_metrics = cli.serve_metrics
    monkeypatch.setattr(cli, "serve_metrics", serve_and_break)
    monkeypatch.setattr(ThreadedTCPServer, "run", run_unless_stopped)
    with redirect_stdout(Full()):
        assert cli.main(PORTS) == cli.FAILED
    assert stopped == [True]
    assert capsys.readouterr().err == f"threaded_echo: stopped by an error: {error}\n"


def test_metrics_that_cannot_be_served_are_an_exit_status(capsys):
    """One line names the address, and nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["--port", "0", "--metrics-port", str(port)]) == (cli.FAILED, [])
    assert capsys.readouterr().err == f"threaded_echo: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert REGISTRY.get_sample_value("threaded_echo_clients") is None


def test_metrics_without_a_thread_are_told_in_the_form_that_was_asked_for(monkeypatch, capsys):
    """It is an error of the start, as others are."""
    def fail(thread):
        """Fail to start."""
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Background, "start", fail)
    monkeypatch.setattr(stopping, "_TAIL", 0.01)  # for the thread, which never ran
    status, lines = run([*PORTS, "--log-json"])
    assert (status, len(lines), capsys.readouterr().err) == (cli.FAILED, 1, "")
    assert '"event": "failed"' in lines[0] and "cannot serve: can't start new thread" in lines[0]


def test_metrics_host_that_cannot_be_a_name_is_told(capsys):
    """As for the server's own host."""
    assert run([*PORTS, "--metrics-host", "\udcff"]) == (cli.FAILED, [])
    assert capsys.readouterr().err.startswith("threaded_echo: cannot listen on \\udcff:0: ")


def test_metrics_without_their_package_are_told(monkeypatch, capsys):
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    monkeypatch.delitem(sys.modules, "threaded_echo.observe.metrics", raising=False)
    assert run(PORTS) == (cli.FAILED, [])
    error = capsys.readouterr().err
    assert error.startswith("threaded_echo: argument --metrics-port: threaded_echo.observe.metrics needs the package")
    assert error.endswith("(the extra \"metrics\"): python3 -m pip install prometheus-client\n")


def test_metrics_whose_names_are_taken_are_told(registered, capsys):
    """The handler's module may have taken one."""
    registered(Gauge("threaded_echo_clients", "Another one", registry=None))
    assert run(PORTS) == (cli.FAILED, [])
    assert capsys.readouterr().err.startswith("threaded_echo: the names of the metrics are taken: Duplicated ")


def test_scrape_that_fails_is_logged_and_harms_nothing(registered, capsys):
    """It is the collector's failure, and no client's."""
    collector = registered(Failing(True))
    collector.release.set()

    def script(operator):
        """Scrape, and be served."""
        url = url_of(operator)
        address = operator.address()
        with pytest.raises((OSError, urllib.error.URLError)):
            urllib.request.urlopen(url, timeout=GUARD)
        with connect(address) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
        operator.interrupt()

    assert run(PORTS, script)[0] == cli.OK
    error = capsys.readouterr().err
    assert error.startswith("threaded_echo: a scrape of the metrics has failed\nTraceback ")
    assert error.endswith("LookupError: nothing to collect\n")


def test_scrape_that_is_broken_off_is_logged_at_debug_level(registered, capsys):
    """As a client that goes away, but without a number."""
    collector = registered(Failing(False))

    def script(operator):
        """Go away while the server collects."""
        url = url_of(operator)
        operator.address()
        scraper = connect(address_of(url))
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until(collector.entered)
        reset(scraper)
        collector.release.set()
        until(lambda: operator.line().startswith("a scrape of the metrics was broken off: "))
        operator.interrupt()

    assert run([*PORTS, "--verbose"], script)[0] == cli.OK
    assert capsys.readouterr().err == ""
