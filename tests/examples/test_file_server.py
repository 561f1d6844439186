"""The example that serves files: those, its slow page, and what is wrong."""
from __future__ import annotations

from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from threaded_echo import OffloadRefused, WorkerDied
from threaded_echo.examples import file_server
from threaded_echo.examples.file_server import FileHandler, FileServer

from ..conftest import LOOPBACK
from ..tools import GUARD, ask
from .programs import operate


@pytest.fixture
def connection(tmp_path: Path) -> Any:
    """Serve a folder with a file, and connect."""
    (tmp_path / "file.txt").write_text("what is in the file")
    with FileServer(LOOPBACK, partial(FileHandler, directory=tmp_path)).start() as server:
        made = HTTPConnection(*server.server_address, timeout=GUARD)
        made.server = server  # type: ignore[attr-defined]
        yield made
        made.close()


def get(connection: HTTPConnection, path: str, method: str = "GET") -> tuple[int, str]:
    """Send a request; return the status and the body of the answer."""
    connection.request(method, path)
    with connection.getresponse() as answer:
        return answer.status, answer.read().decode()


def test_files_and_the_slow_page_come_over_one_connection(connection: Any) -> None:
    """Each request is of the same client."""
    assert get(connection, "/file.txt") == (200, "what is in the file")
    assert get(connection, "/slow?below=1000") == (200, "There are 168 primes below 1,000.\n")
    assert 'href="file.txt"' in get(connection, "/")[1]
    assert get(connection, "/slow?below=10", "HEAD") == (200, "")
    assert get(connection, "/nothing")[0] == 404
    assert connection.server.stats().accepted == 1


def test_requests_are_logged_with_the_clients_number(connection: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are not printed."""
    with caplog.at_level("INFO", "threaded_echo.examples.file_server"):
        get(connection, "/file.txt")
    assert caplog.messages == ['client 1: "GET /file.txt HTTP/1.1" 200 -']


@pytest.mark.parametrize("query", ["below=many", "below=-1", "below=10000001", "below=1.5"])
def test_wrong_number_is_a_bad_request(connection: Any, query: str) -> None:
    """Nothing is computed."""
    status, text = get(connection, f"/slow?{query}")
    assert status == 400 and "below must be " in text


@pytest.mark.parametrize("path", [b"/%00", b"http://[nowhere/"])
def test_path_that_cannot_be_one_is_a_bad_request(connection: Any, path: bytes) -> None:
    """It is no failure of the handler's. Some versions of Python look for null bytes themselves, and find no file."""
    answer = ask(connection.server, b"GET %s HTTP/1.0\r\n\r\n" % path)
    assert answer.startswith((b"HTTP/1.1 400 this is no path", b"HTTP/1.1 404 "))
    assert connection.server.stats().failed == 0


@pytest.mark.parametrize("error", [WorkerDied("out of memory"), OffloadRefused("too many calls")])
def test_page_that_cannot_be_computed_is_unavailable(connection: Any, monkeypatch: pytest.MonkeyPatch,
                                                     error: Exception) -> None:
    """The client may ask again."""
    def fail(low: int, high: int) -> int:
        """Fail."""
        raise error

    monkeypatch.setattr(file_server, "count_primes", fail)
    status, text = get(connection, "/slow")
    assert status == 503 and str(error) in text
    assert get(connection, "/file.txt")[0] == 200


def test_program_serves_until_a_signal(tmp_path: Path) -> None:
    """It serves the folder that it is told of, and computes in the worker."""
    (tmp_path / "file.txt").write_text("what is in the file")

    def talk(address: Any) -> Any:
        """Ask for a file and for the page."""
        connection = HTTPConnection(*address, timeout=GUARD)
        answers = get(connection, "/file.txt"), get(connection, "/slow?below=100")
        connection.close()
        return answers

    assert operate(file_server.main, talk, "--directory", str(tmp_path), "--workers", "1") == (
        (200, "what is in the file"), (200, "There are 25 primes below 100.\n"))


def test_number_of_workers_out_of_range_is_told() -> None:
    """The exit message has the reason."""
    with pytest.raises(SystemExit, match="^file_server: cannot serve: .*at least one worker"):
        file_server.main(["--port", "0", "--workers", "0"])
