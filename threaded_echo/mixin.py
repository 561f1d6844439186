"""ThreadedMixIn, which upgrades any server built on socketserver, and the concrete servers.

The mix-in works through socketserver's own hooks, so that it fits beneath a subclass that overrides any of them, and
keeps all of its state in one attribute, made on first use: it has no ``__init__`` to call, and no name but that one
which a program could meet.
"""
from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from . import options
from .accepting import signals
from .handlers import LineTooLong
from .observe.stats import ServerStats, take_stats
from .offloading.calls import ServerStopping
from .clients.registry import Client
from .accepting.loop import Turn, Unblocked, check_listening
from .state import Attribute, ServerState, offload
from .stopping import StopReport
from .clients.threads import HandlerThreads, current_client, set_current_client
from .transport import tls

logger = logging.getLogger("threaded_echo")

# Where accept4(2) is missing (macOS, Windows), an accepted connection does not block if its listener does not.
_INHERITS_BLOCKING = not hasattr(socket, "SOCK_NONBLOCK")

if TYPE_CHECKING:
    from typing import Self

    class _Base(socketserver.ThreadingMixIn, socketserver.TCPServer):
        pass
else:
    _Base = object


class ThreadedMixIn(_Base):
    """Serve each client in a thread of its own, numbered, with a stop that ends and joins them all.

    For a class of socketserver's to come after it: ``class Server(ThreadedMixIn, http.server.HTTPServer)``.

    For the caller: ``start``, ``serve_forever``, ``handle_request``; ``shutdown``, ``server_close``, ``stop``, or the
    ``with`` statement for it; ``clients``, ``stats``, ``stopping``; ``offload``. To override: ``client_connected``,
    ``client_disconnected``, and every hook of socketserver. *Thread safety*: all methods for the caller may be used
    from any thread, a handler's included.
    """

    reuse_threads = True
    """Whether a handler thread that is done serves the next client. Each client runs in a fresh context either way;
    what a handler leaves in a `threading.local` stays. Only where ``daemon_threads`` is true: an idle thread that is no
    daemon would keep the interpreter from ending."""

    drain_timeout = 5.0
    """Seconds that a stop waits for handlers to end by themselves, once they are woken."""

    force_timeout = 1.0
    """Seconds that it then waits for the rest, once their connections are cut."""

    executor: Any = None
    """Where `offload` runs functions. ``None``: in the calling thread. A number: in so many worker processes, which the
    server starts before its first client, and ends. Or any object with a ``submit`` like that of
    `concurrent.futures.Executor`, which its owner shuts down."""

    max_offloads: int | None = None
    """The most offloaded calls at once. ``None``: any number; those that find no worker free wait for one."""

    at_offload_limit = "wait"
    """What a call does at the limit that ``max_offloads`` sets: ``"wait"`` for its turn, in its own thread; or
    ``"refuse"``: raise `OffloadRefused` where so many are running, or waiting for a worker."""

    logs_per_client: int | None = 100
    """The most records at info level and above about one client in ten seconds. The rest is counted, and the count is
    logged. ``None``: no limit."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        options.settle(cls)

    @Attribute
    def _threaded_state(self) -> ServerState:
        return ServerState.of(self)

    # Serving.

    def start(self) -> Self:
        """Serve in a background thread, and return this server once it accepts.

        Raises RuntimeError where it is closed, is serving already or is stopped meanwhile, and whatever else kept it
        from serving. `stop` joins the thread.
        """
        self._threaded_state.serving.start(self.serve_forever)
        return self

    def run(self, duration: float | None = None) -> StopReport:
        """Serve until SIGINT, SIGTERM or ``duration`` seconds, then stop as `stop` does; return its report.

        A second signal cuts the connections at once, as ``stop(0)`` does. ``None``: no limit to the time. Returns, too,
        when a handler or another thread stops the server. Raises what `start` raises. Raises whatever else ends the
        serving loop, once the server has been stopped. What it does is logged at a level between info and warning.

        In another thread than the main one it obeys no signals. A signal that was ignored before stays ignored.
        """
        if duration is not None:
            options.check_seconds("duration", duration)
        report: StopReport = signals.run(self, duration)
        return report

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve in this thread until `shutdown`, `server_close` or `stop`.

        Wakes for a connection or a stop only. Every ``poll_interval`` seconds as well where a subclass overrides
        ``service_actions``. Raises RuntimeError where the server is closed, or serving already.
        """
        options.check_server(self)
        state = self._threaded_state
        polls = getattr(self.service_actions, "__func__", None) is not socketserver.BaseServer.service_actions
        turn = Turn(forever=True)
        try:
            if not state.stopping.begin_serving(turn, self.fileno):
                return
            check_listening(self.socket)
            state.offloads.open(self.executor, turn)
            if turn.stopped:
                return
            with Unblocked(self.socket):
                state.serving.accepting()
                while not turn.stopped and (listener := self.fileno()) >= 0:
                    if turn.wait(listener, poll_interval if polls else None):
                        self._handle_request_noblock()
                    if polls and not turn.stopped:
                        self.service_actions()
        finally:
            state.serving.end(turn)

    def handle_request(self) -> None:
        """Wait for one connection, and serve it in a handler thread.

        Returns after a stop too, and calls ``handle_timeout`` after ``timeout`` seconds, the listening socket's or this
        server's, whichever is less. Raises RuntimeError where the server is closed.
        """
        state = self._threaded_state
        timeouts = [timeout for timeout in (self.socket.gettimeout(), self.timeout) if timeout is not None]
        deadline = time.monotonic() + min(timeouts) if timeouts else None
        try:
            turn = Turn(forever=False)
        except OSError as error:  # out of descriptors
            return state.accept_errors.meet(error, self, state.stopping.event)
        try:
            if not state.stopping.begin_serving(turn, self.fileno):
                return
            state.offloads.open(self.executor, turn)
            state.serving.accepting()
            while not turn.stopped:
                remaining = None if deadline is None else max(0, deadline - time.monotonic())
                if turn.wait(self.fileno(), remaining):
                    return self._handle_request_noblock()
                if remaining == 0 and not turn.stopped:
                    return self.handle_timeout()
        finally:
            state.serving.end(turn)

    # A client, in the order in which it meets the hooks. The first four run in the serving thread.

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; on a listener that was wrapped in TLS, without its handshake."""
        if type(self.socket) is not socket.socket:
            listener = tls.as_tls(self.socket)
            # Not past a get_request that a class below the mix-in has of its own.
            below = getattr(super().get_request, "__func__", None)
            if listener is not None and below is socketserver.TCPServer.get_request:
                return tls.accept(listener)
        request, address = super().get_request()
        if _INHERITS_BLOCKING and request.gettimeout() is None:
            request.setblocking(True)
        return request, address

    def _handle_request_noblock(self) -> None:
        """Accept a connection that is ready, number its client and start its handler."""
        state = self._threaded_state
        try:
            request, client_address = self.get_request()
        except OSError as error:
            return state.accept_errors.meet(error, self, state.stopping.event)
        client = Client(request, client_address, state.stopping.event)
        before = current_client()
        set_current_client(client)  # until process_request returns: a stop in here must not wait for it
        try:
            state.registry.add(client)
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                client.refused = True
                self.shutdown_request(request)
        except Exception as error:  # a program's hook, or a thread that cannot start: it costs this client only
            self._judge(request, error)
            try:
                self.handle_error(request, client_address)
            except Exception:  # a program's own: it must not end the serving loop
                logger.exception("client %d: handle_error has failed", client.number)
            self.shutdown_request(client.request or request)
        except BaseException:  # an interrupt, or SystemExit of a hook: it ends the loop, and must not leave the client
            self.shutdown_request(client.request or request)
            raise
        finally:
            set_current_client(before)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a handler thread. Raises what `threading.Thread.start` does."""
        state = self._threaded_state
        client = state.registry.find(request)
        if client is None:
            client = current_client()
            if client is not None and client.thread is None:  # a subclass has wrapped what was accepted
                state.registry.follow(client, request)
            else:  # a program accepts by itself
                client = Client(request, client_address, state.stopping.event)
                state.registry.add(client)
        daemon = bool(self.daemon_threads)
        state.threads.serve(client, self._serve_client, daemon=daemon, reuse=daemon and self.reuse_threads)

    def _serve_client(self, client: Client) -> None:
        """Serve one client, in its handler thread."""
        client.pooled = True
        request = client.request
        entered = False
        try:
            self._enter(client)
            entered = True
            self.process_request_thread(request, client.address)
        finally:
            if not entered:  # a hook has raised what is not for us
                self.shutdown_request(request)
            # An override may have left the closing to nobody.
            if client.request is not None and self._threaded_state.registry.remove(client):
                self._leave(client)
            set_current_client(None)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, whose exceptions end here, and close its connection."""
        try:
            self.finish_request(request, client_address)
        except Exception as error:  # the handler's own, as in socketserver
            self._judge(request, error)
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler; ahead of it, the TLS handshake of a listener that was wrapped."""
        registry = self._threaded_state.registry
        client = before = current_client()
        enters = False
        if client is None or client.thread is None:  # not in one of the server's handler threads
            client = registry.find(request)
            enters = client is not None and client.thread is None
        try:
            if client is not None and enters:
                self._enter(client)
            if type(request) is socket.socket or self._shake_hands(request, client):
                super().finish_request(request, client_address)
        finally:
            if enters:
                set_current_client(before)

    def _shake_hands(self, request: Any, client: Client | None) -> bool:
        """Do a TLS handshake that is still to be done; False where it fails."""
        registry = self._threaded_state.registry
        if client is not None and client.is_taken_over() and registry.find(request) is None:
            registry.follow(client, request)  # a subclass has wrapped it in this thread
        try:
            tls.shake_hands(request)
        except OSError as error:
            logger.info("client %d: no TLS handshake: %s", client.number if client else 0, error)
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled, with its client's number. May be overridden.

        A client that merely went away is told at debug level only.
        """
        error = sys.exc_info()[1]
        client = self._judge(request, error)
        name = f"client {client.number}" if client else f"client at {client_address}"
        if isinstance(error, LineTooLong):
            logger.warning("%s: %s", name, error)
        elif isinstance(error, ServerStopping):
            logger.info("%s: %s", name, error)
        elif client is None or client.failed:
            logger.error("%s: its handler has failed", name, exc_info=error)
        else:
            logger.debug("%s went away: %s", name, error)

    def shutdown_request(self, request: Any) -> None:
        """End and close a connection, and forget its client."""
        self._close(request, super().shutdown_request)

    def close_request(self, request: Any) -> None:
        """Close a connection, and forget its client."""
        self._close(request, super().close_request)

    def client_connected(self, client: Client) -> None:
        """Do nothing; to override. Called in the handler's thread, ahead of the handler. Exceptions are logged."""

    def client_disconnected(self, client: Client) -> None:
        """Do nothing; to override. Called once the connection is closed, by who closed it. Exceptions are logged."""

    # What the hooks above have in common.

    def _enter(self, client: Client) -> None:
        """Note which thread serves the client, and tell `client_connected`."""
        client.thread = threading.current_thread()
        set_current_client(client)
        client.announced = True
        try:
            self.client_connected(client)
        except Exception:  # a program's own: the client is served all the same
            logger.exception("client %d: client_connected has failed", client.number)

    def _close(self, request: Any, close: Callable[[Any], None]) -> None:
        """Forget the client, then close its connection: who sees it closed finds the client gone."""
        registry = self._threaded_state.registry
        client = registry.find(request)
        if client is None or not registry.remove(client):
            return close(request)
        try:
            close(request)
        finally:
            registry.closed(client)
            self._leave(client)

    def _leave(self, client: Client) -> None:
        """Tell `client_disconnected`, if `client_connected` has been told."""
        if client.announced:
            try:
                self.client_disconnected(client)
            except Exception:  # a program's own: the thread has its next client to serve
                logger.exception("client %d: client_disconnected has failed", client.number)

    def _judge(self, request: Any, error: BaseException | None) -> Client | None:
        """Count the client as failed, unless ``error`` comes of its going away; return it."""
        registry = self._threaded_state.registry
        client = registry.find(request) or current_client()
        if client is not None and client.registry is not registry:
            client = None  # of another server, in whose handler this one runs
        gone = isinstance(error, ConnectionError) or error is not None and tls.is_tls_error(error)
        if client is not None and not (gone and client.is_lost() or isinstance(error, ServerStopping)):
            client.failed = True
        return client

    # Stopping.

    def shutdown(self) -> None:
        """End the serving loop, then wake, drain, cut and join every client. The listening socket stays bound.

        Takes at most ``drain_timeout + force_timeout`` seconds, and a moment for threads to return. Afterwards the
        server can serve again. Where no thread is in ``serve_forever``, the next call of that returns at once, as in
        socketserver; `start` does serve.
        """
        self._threaded_state.stopping.run(self._patience(), remember=True)

    def server_close(self) -> None:
        """Close the listening socket, and end, drain, cut and join whatever is still live. May be called again."""
        self._threaded_state.stopping.run(self._patience(), close=self._close_listener)

    def stop(self, drain: float | None = None, force: float | None = None) -> StopReport:
        """End everything: stop accepting, wake and drain the clients, cut those that are left, join the threads.

        Waits at most ``drain`` and then ``force`` seconds; ``None``: `drain_timeout` and `force_timeout`. Joins a stop
        that is in progress, and shortens it where seconds are given: ``stop(0)`` cuts at once. Never raises for what it
        could not end: the report names it. *Thread safety*: any thread, any number of times; a handler that calls it
        is not waited for.
        """
        for name, seconds in (("drain", drain), ("force", force)):
            if seconds is not None:
                options.check_seconds(name, seconds)
        return self._stop(drain, force)

    def _stop(self, drain: float | None = None, force: float | None = None) -> StopReport:
        """Stop, under a name that no program takes."""
        return self._threaded_state.stopping.run(self._patience(), drain, force, close=self.server_close,
                                                 is_open=lambda: self.fileno() >= 0)

    def __exit__(self, kind: type[BaseException] | None = None, error: BaseException | None = None,
                 traceback: TracebackType | None = None) -> None:
        self._stop()

    def _patience(self) -> tuple[float, float]:
        return self.drain_timeout, self.force_timeout

    def _close_listener(self) -> None:
        """Close the listening socket as the class below does."""
        # A process_request that was copied from socketserver keeps its threads in such a list, which
        # socketserver's server_close would join without a bound.
        if isinstance(vars(self).get("_threads"), getattr(socketserver, "_Threads", ())):
            self._threaded_state.threads.adopt(vars(self).pop("_threads"))
        super().server_close()

    # Computing.

    def offload(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` in the `executor`, and return its result; this thread waits.

        Raises what the function does, with a worker's traceback as its cause; TypeError or ImportError where the call
        cannot be sent to a worker process; `WorkerDied` where that ends in the middle; `ServerStopping` when a stop
        cuts the connections, and afterwards; ConnectionAbortedError where the client's connection is reset or cut
        before the call begins; `OffloadRefused` at the limit; OSError where there are no descriptors to wait with, or a
        worker cannot be started. *Thread safety*: any thread; a handler uses its own ``self.offload``; a stop waits for
        handlers' calls only. With ``executor=None`` a stop cannot interrupt the function: its handler is a survivor.

        Dask takes equal calls for one and the same unless told otherwise: ``client.get_executor(pure=False)``.
        """
        return offload(self, function, args, kwargs)

    # What it tells.

    @Attribute
    def clients(self) -> Mapping[int, Client]:
        """The live clients by number: a read-only snapshot. *Thread safety*: any thread."""
        return MappingProxyType(self._threaded_state.registry.snapshot())

    @Attribute
    def stopping(self) -> threading.Event:
        """Set when a stop begins; a new event when the server serves again. A handler waits on it, never to sleep."""
        return self._threaded_state.stopping.event

    @Attribute
    def _threads(self) -> HandlerThreads:
        return self._threaded_state.threads

    def stats(self) -> ServerStats:
        """Take a snapshot of the counts. *Thread safety*: any thread. Costs about 2 µs a live client."""
        state = self._threaded_state
        return take_stats(state.registry, state.threads, state.serving, state.accept_errors, state.offloads)
