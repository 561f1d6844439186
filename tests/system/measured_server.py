"""A server that measures its own process when it is asked to: ``python -m tests.system.measured_server``.

Prints its port; then reads a command a line, and answers each with a line of JSON. The end of its input stops it.
"""
from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from threaded_echo import ThreadedTCPServer

from ..conftest import LOOPBACK
from ..tools import GUARD, Echo


class Log(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.has_any = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())
        self.has_any.set()


class Program:
    """The server, and the commands."""

    def __init__(self) -> None:
        self.log = Log()
        logging.getLogger("threaded_echo").addHandler(self.log)
        self.server = ThreadedTCPServer(LOOPBACK, Echo, reserve_descriptors=0)  # all are to be used up
        self.soft, self.hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def starve(self, left: float) -> None:
        """Leave so many descriptors, and no more."""
        listed = os.listdir("/proc/self/fd")
        taken = {int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}  # not the listing's own
        limit = 0
        while left > 0:
            left -= limit not in taken
            limit += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, self.hard))

    def feed(self) -> None:
        """Have the descriptors back."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.soft, self.hard))

    def reserve(self, count: float) -> None:
        """Keep so many descriptors free from now on."""
        self.server.reserve_descriptors = int(count)

    def open_files(self, count: float) -> int:
        """Open so many files at once, as a handler might; return how many that were."""
        with ExitStack() as stack:
            return len([stack.enter_context(open(os.devnull)) for _ in range(int(count))])

    def complaint(self) -> str:
        """Wait for the first message that is logged."""
        assert self.log.has_any.wait(GUARD)
        return self.log.messages[0]

    def errors(self, count: float) -> dict[str, float]:
        """Wait for so many more failed accepts; tell how long that took, and what else has happened."""
        began, before = time.monotonic(), self.server.stats().accept_errors
        while (stats := self.server.stats()).accept_errors < before + count and time.monotonic() < began + GUARD:
            time.sleep(0.005)
        return {"seconds": time.monotonic() - began, "accept errors": stats.accept_errors, "accepted": stats.accepted,
                "messages": len(self.log.messages)}

    def undisturbed(self, seconds: float) -> dict[str, int]:
        """Wait until no other thread has run for so long. What wakes up more often than that never lets it happen."""
        deadline, seen = time.monotonic() + GUARD, False
        while not seen and time.monotonic() < deadline:
            before = self._switches()
            time.sleep(seconds)
            seen = self._switches() == before
        return {"seen": seen, "threads": threading.active_count() - 1}

    def _switches(self) -> dict[str, str]:
        """Return the counts of context switches of each thread but this one."""
        me = str(threading.get_native_id())
        return {task.name: (task / "status").read_text().partition("voluntary_ctxt_switches")[2]
                for task in Path("/proc/self/task").iterdir() if task.name != me}

    def main(self) -> None:
        """Serve, and obey, until the end of the input."""
        with self.server.start():
            print(self.server.server_address[1], flush=True)
            for command in sys.stdin:
                name, *seconds = command.split()
                print(json.dumps(getattr(self, name)(*map(float, seconds))), flush=True)
            report = self.server.stop()
        print(json.dumps({"drained": report.drained, "forced": report.forced, "survivors": len(report.survivors)}))


if __name__ == "__main__":
    Program().main()
