"""Draws the Mandelbrot set: a picture that is computed in a worker process and streamed row by row.

Run ``python3 -m threaded_echo.examples.mandelbrot --workers 2``, then ``nc 127.0.0.1 9999``, and press Enter: the
picture comes as text. A number makes it so many columns wide. ``curl -o mandelbrot.png http://127.0.0.1:9999/`` saves
an image. A client that reads slowly slows the computing down, and one that leaves ends it.
"""
from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Iterator, Sequence

from threaded_echo import LineHandler, OffloadRefused, ThreadedTCPServer, WorkerDied

COLUMNS, MOST_COLUMNS = 72, 200
"""The width of the text, if the line names none, and the most that it may name."""

WIDTH, HEIGHT = 360, 270
"""The size of the image."""

_STEPS = 255  # after which a point counts as one of the set
_SHADES = bytes(b" .:-=+*#%@"[min(9, steps // 3)] for steps in range(256))
_GREYS = bytes(min(255, steps * 9) for steps in range(256))

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n\r\n"
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def rows(width: int, height: int) -> Iterator[bytes]:
    """Yield the rows of the picture: for each point the number of steps after which it has left the set."""
    for row in range(height):
        yield bytes(count_steps(complex(-2.2 + 3.2 * column / width, 1.2 - 2.4 * row / height))
                    for column in range(width))


def count_steps(point: complex) -> int:
    """Count the steps until a point is far away."""
    value = 0j
    for steps in range(_STEPS):
        value = value * value + point
        if value.real * value.real + value.imag * value.imag > 4:
            return steps
    return _STEPS


def png(width: int, height: int, lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield an image in shades of grey, in pieces: one for each row, as soon as that is there, and the end."""
    packer = zlib.compressobj()
    piece = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack("!2I5B", width, height, 8, 0, 0, 0, 0))
    for line in lines:
        piece += chunk(b"IDAT", packer.compress(b"\0" + line.translate(_GREYS)) + packer.flush(zlib.Z_SYNC_FLUSH))
        yield piece
        piece = b""
    yield piece + chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Make a chunk of a PNG file."""
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))


class MandelbrotHandler(LineHandler):
    """Answers a line with the picture as text, and an HTTP request with an image."""

    is_http = False  # whether the client has sent the first line of a request

    def process(self, line: bytes) -> bytes | None:
        """Send the picture, or wait for the end of a request's head."""
        if self.is_http:
            if not line:
                self.send_image()
                self.client.disconnect()  # what has been sent still arrives
        elif line.startswith(b"GET "):
            self.is_http = True
        else:
            return self.send_text(line)
        return None

    def send_text(self, line: bytes) -> bytes:
        """Send the picture, and return the empty line after it, or an error that leaves the client connected."""
        width = min(int(line[:9]), MOST_COLUMNS) if line.isdigit() else COLUMNS
        try:
            for row in self.offload_iter(rows, width, width // 3):
                self.send(row.translate(_SHADES) + b"\n")
        except (WorkerDied, OffloadRefused) as error:
            return f"error: {error}".encode()
        return b""

    def send_image(self) -> None:
        """Send the picture as the answer to a request; one that stays a piece tells the client that it is not whole."""
        head = _HEAD
        try:
            for piece in png(WIDTH, HEIGHT, self.offload_iter(rows, WIDTH, HEIGHT)):
                self.send(head + piece)
                head = b""
        except (WorkerDied, OffloadRefused):
            self.send(head and _BUSY)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="mandelbrot", description="Draw the Mandelbrot set for many clients.")
    parser.add_argument("--port", type=int, default=9999, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="compute in so many processes (default: in threads)")
    options = parser.parse_args(arguments)
    try:
        with ThreadedTCPServer(("127.0.0.1", options.port), MandelbrotHandler, executor=options.workers) as server:
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise SystemExit(f"mandelbrot: cannot serve: {error}") from None


if __name__ == "__main__":
    main()
