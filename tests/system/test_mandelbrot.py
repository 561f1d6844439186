"""The example that draws, as a whole program: a netcat shows its text, and curl saves its image."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from threaded_echo.examples.mandelbrot import COLUMNS, HEIGHT, WIDTH

from ..examples.pngs import read_png
from ..tools import GUARD
from .programs import module, program
from .test_primes import NETCAT, ended, listening

CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

PLACES = pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["threads", "workers"])

EXAMPLE = "threaded_echo.examples.mandelbrot"


@NETCAT
@PLACES
def test_a_netcat_shows_the_picture(options: tuple[str, ...]) -> None:
    """Enter is all that it sends."""
    with listening(*module(EXAMPLE, *options)) as (process, port):
        with program("nc", "-N", "127.0.0.1", str(port)) as client:
            shown, _ = client.communicate("\n", GUARD)
        picture = shown.split("\n")
        assert [len(row) for row in picture] == [COLUMNS] * (COLUMNS // 3) + [0, 0]
        assert picture[COLUMNS // 6].count("@") > COLUMNS // 3
        assert ended(process) == []


@CURL
@PLACES
def test_curl_saves_the_picture(options: tuple[str, ...], tmp_path: Path) -> None:
    """The image is whole, and as large as it says."""
    path = tmp_path / "mandelbrot.png"
    with listening(*module(EXAMPLE, *options)) as (process, port):
        subprocess.run(["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", path,
                        f"http://127.0.0.1:{port}/"], check=True, timeout=GUARD)
        assert ended(process) == []
    picture = read_png(path.read_bytes())
    assert (len(picture[0]), len(picture)) == (WIDTH, HEIGHT)
    assert picture[HEIGHT // 2][WIDTH * 2 // 3] == 255
