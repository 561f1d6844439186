"""What systemd is told of a server in ``run``: that it accepts, that it lives, that it stops."""
from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from ..transport import systemd
from ..transport.several import listeners_of, ready_to_accept


class Watchdog:
    """Tells systemd of one ``run``, for a ``with`` block. If systemd does not want to know, it has no thread.

    The server lives if its serving loop runs, and goes on: of the connections that wait, at least one has been accepted
    since the last look, or accepting has failed or has paused for want of descriptors, and will be tried again. A
    program's hook that hangs at the door, ahead of the handlers' threads, is found by that. A server that is full or
    suspended lives. So does one that ends, since its stop is bounded.
    """

    def __init__(self, server: Any, state: Any) -> None:
        self._server = server
        self._state = state
        self._is_stopping = False
        self._over = threading.Event()
        self._seen: tuple[int, int, int] | None = None  # what the door had done while connections waited
        self._interval = systemd.watchdog_interval()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._interval is not None:
            self._thread = threading.Thread(target=self._run, name="threaded_echo watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def accepting(self) -> None:
        """Tell systemd that the server accepts."""
        systemd.notify("READY=1")

    def stopping(self) -> None:
        """Tell systemd that the server stops; the second call does nothing."""
        if not self._is_stopping:
            self._is_stopping = True
            systemd.notify("STOPPING=1")

    def is_alive(self) -> bool:
        """Return whether the server lives. To be called at intervals."""
        if self._is_stopping:
            return True
        loop = next((loop for loop in self._state.loops.running[:] if loop.forever), None)
        if loop is None or not loop.thread.is_alive():
            return False
        before, self._seen = self._seen, None
        if self._state.limits.holds(loop):  # whoever waits is let in when there is room
            return True
        if ready_to_accept(listeners_of(self._server)):
            state = self._state
            self._seen = state.registry.accepted, state.failures.count, state.limits.pauses
        return self._seen is None or self._seen != before

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            if self.is_alive():
                systemd.notify("WATCHDOG=1")
