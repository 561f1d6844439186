"""A chat room: what one client says is sent to all the others, and a client that does not read holds up nobody.

Run ``python3 -m threaded_echo.examples.chat``, then ``nc 127.0.0.1 9999`` in several terminals. The first line is a
name; ``/who`` tells who is here, and ``/quit`` leaves.
"""
from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence

from threaded_echo import LineHandler, ThreadedTCPServer

LONGEST_NAME = 20

_naming = threading.Lock()  # held from the look at the names until a new one is taken


class ChatHandler(LineHandler):
    """Sends each line of one client to the others, under the client's name."""

    server: ThreadedTCPServer
    max_line = 1000
    name = ""

    def setup(self) -> None:
        """Ask for a name."""
        super().setup()
        self.send(b"what is your name?\n")

    def process(self, line: bytes) -> bytes | None:
        """Return the answer to a name or a command; tell the others what was said."""
        text = "".join(filter(str.isprintable, line.decode(errors="replace"))).strip()
        if text == "/quit":
            self.send(b"* bye\n")
            self.client.disconnect()
            return None
        if not self.name:
            return self.enter(text).encode()
        if text == "/who":
            return self.who().encode()
        if text.startswith("/"):
            return b"* there are /who and /quit"
        if text:
            self.tell_the_others(f"{self.name}: {text}")
        return None

    def finish(self) -> None:
        """Tell the others that this one has left."""
        super().finish()
        self.client.data.clear()
        if self.name:
            self.tell_the_others(f"* {self.name} has left")

    def enter(self, name: str) -> str:
        """Take a name, and tell the others; return the answer."""
        with _naming:
            if not name or len(name) > LONGEST_NAME or name.startswith("/") or name in self.names():
                return "* that name is taken, or is none"
            self.name = self.client.data["name"] = name
        self.tell_the_others(f"* {name} is here")
        return self.who()

    def who(self) -> str:
        """Say who is here."""
        return f"* here: {', '.join(sorted(self.names()))}"

    def names(self) -> list[str]:
        """List the names of those who have one."""
        return [name for client in self.server.clients.values() if (name := client.data.get("name"))]

    def tell_the_others(self, text: str) -> None:
        """Send a line to everybody else."""
        self.server.broadcast(f"{text}\n".encode(), exclude=[self.client])


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="chat", description="A chat room: run nc 127.0.0.1 9999 several times.")
    parser.add_argument("--port", type=int, default=9999, help="0 picks a free one (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with ThreadedTCPServer(("127.0.0.1", options.port), ChatHandler) as server:
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
    except (OSError, OverflowError) as error:
        raise SystemExit(f"chat: cannot serve: {error}") from None


if __name__ == "__main__":
    main()
