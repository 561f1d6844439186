"""The example that draws: its rows, its text and its image, and what its clients get if something fails."""
from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest

from threaded_echo import ThreadedTCPServer, WorkerDied
from threaded_echo.examples import mandelbrot
from threaded_echo.examples.mandelbrot import HEIGHT, WIDTH, MandelbrotHandler, count_steps, png, rows

from ..conftest import LOOPBACK
from ..offloading.tools import reset
from ..tools import GUARD, ask, connect, receive, running, wait_until
from .pngs import read_png
from .test_primes import Told

REQUEST = b"GET /picture.png HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_points_of_the_set_never_leave() -> None:
    """The others do, the sooner the farther they are."""
    assert count_steps(0j) == count_steps(-1 + 0j) == count_steps(-2 + 0j) == 255
    assert count_steps(2 + 2j) == 0
    assert 0 < count_steps(0.5 + 0.5j) < 255


def test_rows_have_the_set_in_the_middle() -> None:
    """What is beside it is far from it."""
    picture = list(rows(32, 24))
    assert [len(row) for row in picture] == [32] * 24
    assert picture[12][22] == 255
    assert picture[0][0] < 3


@pytest.mark.parametrize("lines", [[], [b"\0\1\2"], [b"abc", b"def", b"ghi"]])
def test_image_has_the_lines(lines: list[bytes]) -> None:
    """Each piece but the last one brings one line."""
    pieces = list(png(3, len(lines), iter(lines)))
    assert len(pieces) == len(lines) + 1
    assert read_png(b"".join(pieces)) == [bytes(min(255, 9 * steps) for steps in line) for line in lines]


@pytest.mark.parametrize("line, width", [(b"", 72), (b"what?", 72), (b"-5", 72), (b"30", 30), (b"3000", 200),
                                         (b"9" * 6000, 200), (b"1", 1), (b"0", 0)])
def test_line_is_answered_by_a_text(serve: Any, line: bytes, width: int) -> None:
    """It is as wide as the line says. An empty line ends it, and the client may send another line."""
    answer = ask(serve(MandelbrotHandler), line + b"\n3\n")
    *picture, end, last, end_of_last, rest = answer.split(b"\n")
    assert [len(row) for row in picture] == [width] * (width // 3)
    assert (end, len(last), end_of_last, rest) == (b"", 3, b"", b"")


def test_request_is_answered_by_an_image(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends with it."""
    monkeypatch.setattr(mandelbrot, "WIDTH", 36)
    monkeypatch.setattr(mandelbrot, "HEIGHT", 27)
    with connect(serve(MandelbrotHandler)) as client:
        client.sendall(REQUEST)
        head, _, body = receive(client, 1 << 20).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n")
    picture = read_png(body)
    assert len(picture) == 27 and picture[13][25] == 255
    assert WIDTH * 3 == HEIGHT * 4


class Steps:
    """Rows that the test releases."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.released, self.error = threading.Semaphore(0), error
        self.closed = threading.Event()
        monkeypatch.setattr(mandelbrot, "rows", self.rows)

    def rows(self, width: int, height: int) -> Iterator[bytes]:
        """Yield a row for each release."""
        try:
            for _ in range(height):
                assert self.released.acquire(timeout=GUARD)
                yield bytes(width)
            if self.error:
                raise self.error
        finally:
            self.closed.set()


def test_each_row_comes_as_soon_as_it_is_there(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that goes early ends the computing."""
    steps = Steps(monkeypatch)
    with connect(serve(MandelbrotHandler)) as client:
        client.sendall(b"12\n")
        for _ in range(2):
            steps.released.release()
            assert receive(client, 13) == b" " * 12 + b"\n"
        reset(client)
    for _ in range(2):
        steps.released.release()
    wait_until(steps.closed)


@pytest.mark.parametrize("height, answer", [(0, b"HTTP/1.1 503 "), (2, b"HTTP/1.1 200 ")])
def test_image_whose_worker_dies_is_not_taken_for_whole(serve: Any, monkeypatch: pytest.MonkeyPatch, height: int,
                                                        answer: bytes) -> None:
    """Before its first row it is an error; later, its end is missing."""
    steps = Steps(monkeypatch, WorkerDied("out of memory"))
    monkeypatch.setattr(mandelbrot, "HEIGHT", height)
    for _ in range(height):
        steps.released.release()
    with connect(serve(MandelbrotHandler)) as client:
        client.sendall(REQUEST)
        found = receive(client, 1 << 20)
    assert found.startswith(answer) and b"IEND" not in found


def test_text_whose_worker_dies_ends_with_an_error(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client stays connected."""
    steps = Steps(monkeypatch, WorkerDied("out of memory"))
    server = serve(MandelbrotHandler)
    for _ in range(2):
        steps.released.release()
    assert ask(server, b"3\n3\n") == b"   \nerror: out of memory\n" * 2


def test_two_workers_draw_for_two_clients() -> None:
    """The function can be sent to a worker process."""
    with ThreadedTCPServer(LOOPBACK, MandelbrotHandler, executor=2).start() as server:
        assert ask(server, b"30\n") == ask(server, b"30\n")
        assert server.stats().offloads_failed == 0


def test_the_program_draws_until_a_signal() -> None:
    """It prints where it listens, and returns on the signal."""
    told, outcome = Told(), []

    def operate() -> None:
        """Ask, and end it."""
        try:
            found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", told.texts.get(timeout=GUARD))
            assert found
            outcome.append(ask(("127.0.0.1", int(found[1])), b"6\n"))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with running(operate), redirect_stdout(told):
        mandelbrot.main(["--port", "0"])
    assert outcome[0].count(b"\n") == 3


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--workers", "0")])
def test_program_that_cannot_serve_says_why(arguments: tuple[str, str]) -> None:
    """The exit message has the reason, and no server is left."""
    with pytest.raises(SystemExit, match="mandelbrot: cannot serve: "):
        mandelbrot.main(["--port", "0", *arguments])
