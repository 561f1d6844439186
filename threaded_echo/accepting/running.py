"""Serving until a signal: what ``server.run`` does.

Guarantees:

- A signal handler puts the signal's number into a queue, for which the main thread waits while a background thread
  serves; a second one hastens the stop that is in progress, or the one that is about to begin. So Ctrl-C and SIGTERM
  work in every state, also while the server starts or stops. A handler waits for nothing: the main thread, which it
  interrupts, may hold a lock (of logging, say) that another thread needs in order to end.
- With a `linger_timeout`, the first signal ends accepting only, and the stop comes when the clients have gone, or at
  the end of that time. No client is accepted and then not served.
- The handlers that were there before are restored, and a signal that was ignored stays ignored.
- An exception of another signal handler stops the server, and is then raised to the caller of `run`.
- SIGHUP reloads the certificate of a server with TLS, in the main thread; else it is left alone.
"""
from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

from ..observe.logs import NOTICE, about, printable
from ..transport.listeners import show_address
from ..transport.several import addresses_of, listeners_of
from ..transport.tls import as_tls
from .loop import Background
from .signals import RELOAD, STOPS, handled
from .watchdog import Watchdog

logger = logging.getLogger("threaded_echo")

_FIRST_WAIT = 0.1
"""Seconds of the first wait for a signal; each is twice as long as the one before. A signal that comes just
before a wait begins does not end that wait, and is noticed at its end. An idle server hardly ever wakes up for this."""

_RETURN = 1.0  # seconds for the threads that accept to leave the door


def run(server: Any, state: Any, duration: float | None) -> Any:
    """Serve, and return the stop's report: see ``ThreadedMixIn.run``."""
    return _Run(server, state).until_stopped(duration)


class _Run:
    """One call of `run`."""

    def __init__(self, server: Any, state: Any) -> None:
        self._server = server
        self._state = state
        # To stop: a signal's number; None: the loop has ended. And to reload: SIGHUP's number.
        self._reasons: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        self._signals = 0
        self._report: Any = None

    def until_stopped(self, duration: float | None) -> Any:
        """Serve until there is a reason to stop, and stop."""
        has_tls = self._server.ssl_context is not None or as_tls(getattr(self._server, "socket", None)) is not None
        reloads = RELOAD is not None and has_tls  # else SIGHUP is not the server's
        numbers = (*STOPS, RELOAD) if reloads else STOPS
        with handled(self._obey, numbers), Watchdog(self._server, self._state) as watchdog:
            for address in addresses_of(self._server):
                logger.log(NOTICE, "listening on %s", show_address(address), extra=about(None, "listening"))
            with ExitStack() as stack:
                # An exception of another signal handler, too, stops the server.
                stack.callback(self._stop)
                stack.callback(watchdog.stopping)
                try:
                    background = self._state.loops.begin(self._serve, watchdog.accepting)
                except RuntimeError:  # it serves already, or there are no threads: it stays as it was
                    stack.pop_all()
                    raise
                reason = self._wait(duration)
                watchdog.stopping()
                if reason is not None:
                    self._linger(background)
                self._log("stopping")
            logger.log(NOTICE, "%s", str(self._report).partition("\n")[0], extra=about(None, "stopped"))
        if self._errors:
            raise self._errors.pop()
        return self._report

    def _serve(self) -> None:
        """Serve, in the background thread."""
        try:
            self._server.serve_forever()
        except BaseException as error:  # whatever it is, the caller of run gets it
            self._errors.append(error)
        finally:
            self._reasons.put(None)

    def _obey(self, number: int) -> None:
        """Obey a signal, in its handler."""
        self._reasons.put(number)
        if number != RELOAD:
            self._signals += 1
            if self._signals > 1:
                self._state.stopping.hasten()

    def _stop(self) -> None:
        self._report = self._server._threaded_stop()

    def _wait(self, duration: float | None) -> int | None:
        """Wait for a reason to stop, and reload meanwhile.

        Returns a signal's number, 0 after ``duration`` seconds, or ``None`` if the loop has ended.
        """
        deadline = None if duration is None else time.monotonic() + duration
        wait = _FIRST_WAIT
        while deadline is None or time.monotonic() < deadline:
            remaining = wait if deadline is None else max(0, min(wait, deadline - time.monotonic()))
            try:
                reason = self._reasons.get(timeout=remaining)
            except queue.Empty:
                wait = min(2 * wait, threading.TIMEOUT_MAX)
                continue
            if reason is None or reason != RELOAD:
                return reason
            self._reload()
        return 0

    def _reload(self) -> None:
        """Reload the certificate, and log whether that has worked."""
        try:
            certfile, _ = self._state.certificates.reload(self._server)
            logger.log(NOTICE, "certificate reloaded: %s", printable(os.fsdecode(certfile)),
                       extra=about(None, "reloaded"))
        except Exception as error:  # whatever is wrong with the new one, the server goes on with the old one
            logger.error("the certificate could not be reloaded, and the old one stays: %s", error,
                         extra=about(None, "reloaded"))

    def _linger(self, background: Background) -> None:
        """Accept no more clients, and let the live ones go on for ``linger_timeout`` seconds.

        A stop, or a second signal, ends that.
        """
        state, period, seconds = self._state, self._state.stopping.period, self._server.linger_timeout
        if not seconds or period.is_stopping() or period.hastened:
            return
        deadline = time.monotonic() + seconds
        state.loops.end_accepting()
        # A thread that has got through the door has yet to list its client.
        state.registry.wait_until(lambda: background.is_over and not state.threads.count()[1],
                                  time.monotonic() + _RETURN)
        state.loops.closes_later = True
        for listener in listeners_of(self._server):
            if getattr(listener, "type", None) == socket.SOCK_STREAM:  # a handler replies through one of datagrams
                listener.close()
        if state.registry.live and not (period.is_stopping() or period.hastened):
            self._log("lingering")
            state.registry.wait_until(lambda: not state.registry.live or period.is_stopping() or period.hastened,
                                      deadline)

    def _log(self, event: str) -> None:
        """Log what begins, and how many clients there are."""
        live = len(self._state.registry.live)
        logger.log(NOTICE, "%s: %d client%s live", event, live, "" if live == 1 else "s", extra=about(None, event))
