"""Serves the files of a folder over HTTP, and a page that takes long to compute; nobody else waits for that.

Run ``python3 -m threaded_echo.examples.file_server --workers 2``, then ``curl http://127.0.0.1:8000/`` for the files of
the working directory, and ``curl http://127.0.0.1:8000/slow`` for the page; ``/slow?below=1000`` takes less.

The handler is that of `http.server`, with `ClientHandler` as its last base, and so is the server, with `ThreadedMixIn`
as its first one.
"""
from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

from threaded_echo import ClientHandler, OffloadRefused, ThreadedMixIn, WorkerDied
from threaded_echo.examples.primes import MOST, count_primes

logger = logging.getLogger(__name__)


class FileServer(ThreadedMixIn, ThreadingHTTPServer):
    """A server of the standard library's, with a stop that ends the clients, and limits."""

    idle_timeout = 60.0
    max_clients = 1000


class FileHandler(SimpleHTTPRequestHandler, ClientHandler):
    """Answers requests for files, and for ``/slow``."""

    protocol_version = "HTTP/1.1"  # connections are kept

    def send_head(self) -> Any:
        """Send the head of an answer, and return its body as a file; ``None``: it has none."""
        try:
            url = urlsplit(self.path)
            if url.path != "/slow":
                return super().send_head()
        except ValueError:  # a null byte, or a host in brackets that is none
            return self.send_error(HTTPStatus.BAD_REQUEST, "this is no path")
        try:
            below = int(parse_qs(url.query).get("below", [str(MOST)])[0])
        except ValueError:
            return self.send_error(HTTPStatus.BAD_REQUEST, "below must be a number")
        if not 0 <= below <= MOST:
            return self.send_error(HTTPStatus.BAD_REQUEST, f"below must be from 0 to {MOST}")
        try:
            count = self.offload(count_primes, 0, below)
        except (OffloadRefused, WorkerDied) as error:
            return self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        page = f"There are {count:,} primes below {below:,}.\n".encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return BytesIO(page)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log requests, under the client's number, in place of printing them."""
        logger.info("client %d: %s", self.client.number, format % arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="file_server", description="Serve the files of a folder, and a slow page.")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--directory", default=".", help="the folder (default: the working directory)")
    parser.add_argument("--workers", type=int, metavar="N", help="compute in so many processes (default: in threads)")
    options = parser.parse_args(arguments)
    try:
        handler = partial(FileHandler, directory=options.directory)
        with FileServer(("127.0.0.1", options.port), handler) as server:
            server.executor = options.workers
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise SystemExit(f"file_server: cannot serve: {error}") from None


if __name__ == "__main__":
    main()
