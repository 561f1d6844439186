"""Waiting for connections: readiness, wake-up, accept errors and back-off.

Guarantees:

- A thread that waits here wakes for a connection or a stop, and for nothing else (unless it was given a time-out).
- A stop is never missed: `Serving.wake_locked` marks every turn and makes its waker readable, which lasts until the
  turn ends.
- The listener is asked for anew where it is used: programs replace ``server.socket``.
"""
from __future__ import annotations

import errno
import logging
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from ..clients.registry import HandlerRegistry
from ..transport import tls

logger = logging.getLogger("threaded_echo")

BACK_OFF = 0.1
"""Seconds without an accept when descriptors or memory have run out."""

_QUIET = 10.0  # seconds between two log lines on that


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_EXHAUSTED = _numbers("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")

# accept(2): an error that already waits on the new connection is reported by accept, and means: try the next one.
_GONE = _numbers("ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH", "EPERM")


_ALREADY = "this server is already serving"


class Turn:
    """One call of ``serve_forever`` or ``handle_request``: waits for a connection or a stop."""

    def __init__(self, forever: bool) -> None:
        self.forever = forever
        self.thread = threading.current_thread()
        self.stopped = False  # guarded by the server's lock; read without it, since it changes once
        self._waker, self._alarm = socket.socketpair()  # one receives, the other sends
        self._alarm.setblocking(False)
        self._listener = -1
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._waker, select.POLLIN)

    def ring(self) -> None:
        """End the waiting; the lock that excludes `close` is held."""
        self.stopped = True
        with suppress(BlockingIOError):  # rung often enough
            self._alarm.send(b"\0")

    def wait(self, listener: int, timeout: float | None) -> bool:
        """Wait until ``listener`` (a descriptor) has a connection; False after a stop or ``timeout`` seconds."""
        if hasattr(select, "poll"):
            if listener != self._listener:
                if self._listener >= 0:
                    self._poll.unregister(self._listener)
                self._poll.register(listener, select.POLLIN)
                self._listener = listener
            ready = bool(self._poll.poll(None if timeout is None else timeout * 1000))
        else:  # Windows
            ready = bool(select.select([self._waker.fileno(), listener], [], [], timeout)[0])
        return ready and not self.stopped

    def close(self) -> None:
        """Close the descriptors of the waker."""
        self._waker.close()
        self._alarm.close()


class Background(threading.Thread):
    """The thread of `start`."""

    def __init__(self, serve_forever: Callable[[], None]) -> None:
        super().__init__(name="threaded_echo serving", daemon=True)
        self._serve_forever = serve_forever
        self._over = threading.Event()  # the start, one way or the other
        self._accepts = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Serve; an error after the start goes to `threading.excepthook`."""
        try:
            self._serve_forever()
        except BaseException as error:  # whatever it is, `start` raises it
            if self._accepts:
                raise
            self._error = error
        finally:
            self._over.set()

    def is_starting(self) -> bool:
        """Whether it neither accepts nor has failed yet."""
        return self.is_alive() and not self._over.is_set()

    def accepting(self) -> None:
        """Tell the starter that it worked."""
        self._accepts = True
        self._over.set()

    def wait_until_accepting(self) -> None:
        """Return once the thread accepts connections. Raises what kept it from that."""
        self._over.wait()
        if not self._accepts:
            self.join()
            raise self._error or RuntimeError("this server was stopped while it was starting")


class Serving:
    """The turns of one server: at most one ``serve_forever``, any number of ``handle_request``."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self._registry = registry
        # Guarded by the registry's lock:
        self.turns: list[Turn] = []
        self.background: Background | None = None  # what start() has made
        # As in socketserver, a shutdown that finds no loop ends the next one, which may be on its way in a new thread.
        self.ends_next = False
        self.since: float | None = None  # time.monotonic() of the first turn

    def start(self, serve_forever: Callable[[], None]) -> None:
        """Serve in a background thread. Raises what keeps it from that."""
        with self._registry.lock:
            if self.in_loop_locked() or self.background is not None and self.background.is_starting():
                raise RuntimeError(_ALREADY)
            self.ends_next = False
            background = self.background = Background(serve_forever)
            # With the lock held, for the check above; it needs nothing but a thread that has not seen the lock yet.
            background.start()
        background.wait_until_accepting()

    def in_loop_locked(self) -> bool:
        """Whether a thread is in ``serve_forever``."""
        return any(turn.forever and not turn.stopped for turn in self.turns)

    def begin_locked(self, turn: Turn) -> None:
        """Take a turn. Raises RuntimeError where another thread is in ``serve_forever``."""
        if turn.forever and self.in_loop_locked():
            raise RuntimeError(_ALREADY)
        if self.since is None:
            self.since = time.monotonic()
        self.turns.append(turn)

    def accepting(self) -> None:
        """Tell `start` that the calling thread accepts."""
        if isinstance(background := threading.current_thread(), Background):
            background.accepting()

    def end(self, turn: Turn) -> None:
        """Leave a turn, and close it."""
        with self._registry.lock:
            if turn in self.turns:
                self.turns.remove(turn)
                self._registry.changed.notify_all()
        turn.close()

    def wake_locked(self) -> None:
        """End every turn's waiting."""
        for turn in self.turns:
            turn.ring()


def check_listening(listener: socket.socket) -> None:
    """Raise RuntimeError for a stream socket that does not listen: waiting for connections on it would spin."""
    try:
        listens = listener.type != socket.SOCK_STREAM or listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (AttributeError, OSError):  # a platform that cannot tell, or a listener that is no socket
        return
    if not listens:
        raise RuntimeError("this server does not listen: call server_bind() and server_activate() first")


class Unblocked:
    """A context in which accepting on ``listener`` does not block, unless the program gave it a time-out of its own.

    A datagram socket is left alone: its handlers send through it.

    A connection may be gone again, or with another process, by the time that it is accepted: see the manual page of
    select(2), "BUGS".
    """

    def __init__(self, listener: socket.socket) -> None:
        blocks = listener.gettimeout() is None and listener.type == socket.SOCK_STREAM
        self._listener: socket.socket | None = listener if blocks else None

    def __enter__(self) -> None:
        if self._listener is not None:
            self._listener.setblocking(False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self._listener is not None:
            with suppress(OSError):  # closed in the meantime
                self._listener.setblocking(True)


class AcceptErrors:
    """What to do when accepting fails, and how often it has."""

    def __init__(self, registry: HandlerRegistry) -> None:
        self._registry = registry
        self.count = 0  # guarded by the registry's lock
        self._told = -_QUIET

    def meet(self, error: OSError, server: socketserver.TCPServer, stopping: threading.Event) -> None:
        """Return to go on after an error of ``get_request``; raise it where going on makes no sense."""
        if server.fileno() < 0 or isinstance(error, (BlockingIOError, TimeoutError, InterruptedError)):
            return  # our own close; somebody else was faster; the program's own time-out
        with self._registry.lock:
            self.count += 1
        if error.errno in _EXHAUSTED:
            now = time.monotonic()
            if now - self._told >= _QUIET:
                self._told = now
                logger.error("cannot accept clients, trying again every %g s: %s", BACK_OFF, error)
            stopping.wait(BACK_OFF)
        elif isinstance(error, ConnectionError) or error.errno in _GONE or tls.is_tls_error(error):
            logger.debug("a connection was gone before it was accepted: %s", error)
        elif error.errno is None or error.errno < 0:
            # Not the system's: a program's get_request turns a connection away, as socketserver lets it.
            logger.debug("a connection was turned away by get_request: %s", error)
        else:
            logger.error("accepting clients has failed, the serving loop ends: %s", error)
            raise error
