"""The README's recipes for other people's servers: each is run as it stands there, answers, and ends its clients."""
from __future__ import annotations

import http.client
import logging
import os
import queue
import re
import signal
import xmlrpc.client
from collections.abc import Callable
from typing import Any

import pytest

from .test_readme import block
from .tools import GUARD, connect, receive_all, running


class Addresses(logging.Handler):
    """Hands over where a server listens, as its log says."""

    def __init__(self) -> None:
        super().__init__()
        self.found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record."""
        if found := re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", record.getMessage()):
            self.found.put(("127.0.0.1", int(found[1])))


@pytest.fixture
def operate(caplog: pytest.LogCaptureFixture) -> Any:
    """Run a recipe in this thread, and a script with its address in another, while an idle client is connected too.

    SIGINT ends it, which ends that client. Returns what the script does.
    """
    caplog.set_level(logging.WARNING, "werkzeug")  # which otherwise logs to standard error
    caplog.set_level(logging.INFO, "threaded_echo")
    addresses = Addresses()
    logger = logging.getLogger("threaded_echo")
    logger.addHandler(addresses)

    def run(word: str, script: Callable[[Any], Any]) -> Any:
        outcome = []

        def run_script() -> None:
            interrupted = False
            try:
                address = addresses.found.get(timeout=GUARD)
                with connect(address) as idle:
                    outcome.append(script(address))
                    os.kill(os.getpid(), signal.SIGINT)
                    interrupted = True
                    assert receive_all(idle) == b""
            finally:
                if not interrupted:
                    os.kill(os.getpid(), signal.SIGINT)

        source, count = re.subn(r"\b9999\b", "0", block(word))
        assert count == 1, "it has one port"
        with running(run_script):
            exec(compile(source, f"README.rst: {word}", "exec"), {"__name__": "__main__"})
        return outcome.pop()

    yield run
    logger.removeHandler(addresses)
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


def get(address: Any, path: str = "/") -> str:
    """Get a page."""
    connection = http.client.HTTPConnection(*address, timeout=GUARD)
    try:
        connection.request("GET", path)
        with connection.getresponse() as answer:
            assert answer.status == 200
            return answer.read().decode()
    finally:
        connection.close()


def test_http_server_lists_its_folder(operate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """That is the working directory."""
    (tmp_path / "file.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert 'href="file.txt"' in operate("SimpleHTTPRequestHandler", get)


def test_wsgi_server_calls_its_application(operate: Any) -> None:
    """It has threads, which wsgiref's own has not: the idle client does not hold it up."""
    assert operate("demo_app", get).startswith("Hello world!")


def test_xmlrpc_server_calls_its_function(operate: Any) -> None:
    """Its client finds it."""
    def call(address: Any) -> Any:
        """Call the function."""
        with xmlrpc.client.ServerProxy("http://{}:{}".format(*address)) as proxy:
            return proxy.pow(2, 10)

    assert operate("SimpleXMLRPCServer", call) == 1024


def test_metrics_are_scraped_until_the_stop() -> None:
    """It serves in the background, as prometheus_client's own function has it."""
    pytest.importorskip("prometheus_client")
    names: dict[str, Any] = {}
    exec(compile(block("prometheus_client"), "README.rst: prometheus_client", "exec"), names)
    server = names["start_metrics_server"](0)
    try:
        with connect(server) as idle:
            assert "# TYPE python_info gauge\n" in get(server.server_address, "/metrics")
            report = server.stop()
            assert report.clean and report.forced == 0
            assert receive_all(idle) == b""
    finally:
        server.stop()


def test_development_server_calls_its_application(operate: Any) -> None:
    """It has a serve_forever and a constructor of its own."""
    pytest.importorskip("werkzeug")
    assert operate("werkzeug", lambda address: get(address, "/?name=werkzeug")) == "hello, werkzeug"


def test_fake_redis_keeps_values(operate: Any) -> None:
    """Its own client finds it; its handlers look for it under names that this package has, too."""
    pytest.importorskip("fakeredis")
    import redis

    def talk(address: Any) -> Any:
        """Set and get."""
        with redis.Redis(*address) as client:
            return client.set("a", "1"), client.incr("a"), client.get("a")

    assert operate("fakeredis", talk) == (True, 2, b"2")
