"""The hooks of socketserver, in the order in which a client meets them: from its accept to its close.

They stand between a program's class and socketserver's: a class above may override each with or without ``super()``,
and a class below is called if it has its own. So a client is numbered when it is accepted, its thread is noted when
that first runs, and it is forgotten when its request is shut down or closed; each of these may happen twice.

All names that are not socketserver's, nor for programs to use, begin with ``_threaded``: a program's class may have a
``_stop`` or ``_log`` of its own.
"""
from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .accepting.loop import Loop
from .clients.client import Client
from .clients.connection import means_gone
from .clients.period import Period
from .clients.threads import MAX_IDLE, HandlerThread, calling
from .compatibility import NonDataProperty
from .errors import LineTooLong, ServerStopping
from .state import ServerState
from .transport import tls
from .transport.listeners import show_address

logger = logging.getLogger("threaded_echo")

# The kinds of failures that clients can cause, of which so many are logged.
_HANDSHAKES, _HANDLERS, _HOOKS = "failed TLS handshakes", "failures of handlers", "failures of hooks"

# If accept4(2) is missing (macOS, Windows), an accepted connection does not block if its listener does not.
_INHERITS_BLOCKING = not hasattr(socket, "SOCK_NONBLOCK")

if TYPE_CHECKING:
    class _Base(socketserver.ThreadingMixIn, socketserver.TCPServer):
        reuse_threads: bool
        logs_per_client: int | None
else:
    _Base = object


class ClientHooks(_Base):
    """What `ThreadedMixIn` does with a client."""

    @NonDataProperty
    def _threaded_state(self) -> ServerState:
        return ServerState.of(self)

    # The first ones run in the thread that accepts.

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; on a listener that was wrapped in TLS, without its handshake."""
        listener = getattr(self, "socket", None)
        if type(listener) is not socket.socket:
            listener = tls.as_tls(listener)
            # Not past a get_request that a class below the mix-in has of its own.
            if listener is not None and _is(super().get_request, socketserver.TCPServer.get_request):
                return tls.accept(listener)
        request, address = super().get_request()
        if _INHERITS_BLOCKING and request.gettimeout() is None:
            request.setblocking(True)
        return request, address

    def _threaded_lets_idle_threads_accept(self) -> bool:
        """Return whether idle handler threads may accept for themselves.

        Not if a program overrides a hook that socketserver calls in the serving thread, nor if threads are not to be
        reused; then the serving thread alone accepts, and starts a thread for each client.
        """
        return bool(self.reuse_threads and self.daemon_threads
                    and _is(self.get_request, ClientHooks.get_request)
                    and _is(super().get_request, socketserver.TCPServer.get_request)
                    and _is(self.verify_request, socketserver.BaseServer.verify_request)
                    and _is(self.process_request, ClientHooks.process_request))

    def _threaded_accept(self, period: Period) -> Client | None:
        """Accept and number a client; ``None`` if that has failed."""
        try:
            request, client_address = self.get_request()
        except OSError as error:
            self._threaded_meet_accept_error(error, period)
            return None
        return self._threaded_state.registry.add(request, client_address, period)

    def _threaded_meet_accept_error(self, error: OSError, period: Period) -> None:
        is_own = not (_is(self.get_request, ClientHooks.get_request)
                      and _is(super().get_request, socketserver.TCPServer.get_request))
        self._threaded_state.failures.meet(error, self, period.stopping, is_own)

    def _threaded_accept_and_admit(self, loop: Loop) -> None:
        """Accept a client in the serving thread, let the next thread accept, and serve the client."""
        client = None
        try:
            try:
                client = self._threaded_accept(loop.period)
            finally:
                loop.reopen()
            if client is not None:
                self._threaded_admit(client, loop)
        except BaseException:  # an interrupt, or SystemExit of a hook: it must not leave the client behind
            self._threaded_abandon(client)
            raise

    def _threaded_abandon(self, client: Client | None) -> None:
        """Close the connection of a client that no handler serves, as an interrupt or SystemExit ends the loop."""
        request = client and client._connection.request
        if client is not None and request is not None and client.thread is None:
            self._threaded_turn_away(client, request)

    def _threaded_admit(self, client: Client, loop: Loop) -> None:
        """Serve a client that the serving thread has accepted in a new thread, which then accepts for itself."""
        registry, running = self._threaded_state.registry, self._threaded_state.threads.running

        def next_client() -> Client | None:
            return loop.next_client(self._threaded_accept, is_crowded)

        def is_crowded() -> bool:  # about: this thread itself is idle, too
            return len(running) - len(registry.live) > MAX_IDLE

        loop.attach()
        self._threaded_in_serving_thread(client, lambda: self._threaded_start_thread(client, next_client, loop.detach))

    def _handle_request_noblock(self) -> None:
        """Accept a connection that is ready, number its client and start its handler."""
        client = None
        try:
            client = self._threaded_accept(self._threaded_state.stopping.period)
            if client is not None:
                self._threaded_in_serving_thread(client, partial(self._threaded_verify_and_process, client))
        except BaseException:  # an interrupt, or SystemExit of a hook: it must not leave the client behind
            self._threaded_abandon(client)
            raise

    def _threaded_verify_and_process(self, client: Client) -> None:
        if self._threaded_verify(client):
            self.process_request(client._connection.request, client.address)

    def _threaded_in_serving_thread(self, client: Client, take_on: Callable[[], object]) -> None:
        """Call ``take_on``. If it fails, or refuses the client, close that client only."""
        request = client._connection.request
        before = calling.client
        calling.client = client  # until take_on returns: a stop that it calls must not wait for this client
        try:
            take_on()
            if client._outcome != "refused":
                return
        except Exception as error:  # a program's hook, or a thread that cannot start
            self._threaded_judge(client, error)
            try:
                self.handle_error(request, client.address)
            except Exception:  # one of the program's own: it must not end the serving loop
                self._threaded_log(_HOOKS, logging.ERROR, "client %d: handle_error has failed", client.number,
                                   exc_info=True)
        finally:
            calling.client = before
        self._threaded_turn_away(client, request)

    def _threaded_turn_away(self, client: Client, request: Any) -> None:
        """Close the connection of a client that no handler serves."""
        try:
            self.shutdown_request(client._connection.request or request)
        finally:
            if client.thread in (None, threading.current_thread()):  # else it is served after all
                self._threaded_forget(client)

    def _threaded_verify(self, client: Client) -> bool:
        """Ask ``verify_request``; ahead of a TLS handshake, leave that to the handler's thread."""
        request = client._connection.request
        if tls.awaits_handshake(request) or self.verify_request(request, client.address):
            return True
        client._refuse("verify")
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a new handler thread. Raises what `threading.Thread.start` does."""
        state = self._threaded_state
        client = state.registry.find(request)
        if client is None:
            client = calling.client
            if client is not None and client.thread is None and state.registry.owns(client):
                state.registry.follow(client, request)  # a subclass has wrapped what was accepted
            else:  # a program accepts by itself, or hands on what another server has accepted
                if client is not None and client._connection.request is request:
                    client._registry.hand_on(client)
                client = state.registry.add(request, client_address, state.stopping.period)
        self._threaded_start_thread(client)

    def _threaded_start_thread(self, client: Client, next_client: Callable[[], Client | None] | None = None,
                               when_over: Callable[[], None] | None = None) -> None:
        try:
            self._threaded_state.threads.serve(client, self._threaded_serve_client, daemon=bool(self.daemon_threads),
                                               next_client=next_client, when_over=when_over)
        except Exception:  # RuntimeError or MemoryError: no thread is to be had
            client._fail("thread")
            raise

    # The rest runs in the handler's thread, or in one of the program's own that it gives a client to.

    def _threaded_serve_client(self, client: Client) -> None:
        """Serve one client in a handler thread."""
        request = client._connection.request
        if request is not None:  # else somebody has closed it meanwhile
            self._threaded_serve(client, self.process_request_thread, request, client.address, closes=True)

    def _threaded_serve(self, client: Client, handle: Callable[[Any, Any], None], request: Any, client_address: Any,
                        closes: bool) -> None:
        """Enter the service of a client, call ``handle``, and leave; ``closes``: it also closes the connection."""
        before = calling.client
        calling.client = client
        entered = False
        try:
            entered = self._threaded_enter(client, request)
            if entered:
                handle(request, client_address)
        finally:
            if closes:
                if not entered:  # refused, or a hook has raised SystemExit or an interrupt
                    self.shutdown_request(request)
                if client.state != "gone":  # an override has not closed it, or not through our hooks
                    self._threaded_forget(client)
            client.thread = None
            calling.client = before

    def _threaded_enter(self, client: Client, request: Any) -> bool:
        """Shake hands, and call `client_connected`; False if the client is refused."""
        if type(request) is not socket.socket and tls.awaits_handshake(request):
            client._begin(threading.current_thread(), "handshaking")
            if not self._threaded_shake_hands(client, request):
                return False
            client._move("serving")
        else:
            client._begin(threading.current_thread(), "serving")
        client._announced = True
        try:
            self.client_connected(client)
        except Exception:  # a program's own: the client is served all the same
            self._threaded_log(_HOOKS, logging.ERROR, "client %d: client_connected has failed", client.number,
                               exc_info=True)
        return True

    def _threaded_shake_hands(self, client: Client, request: Any) -> bool:
        """Do the TLS handshake, then ask ``verify_request``; False if the client is refused."""
        try:
            tls.shake_hands(request)
            return self._threaded_verify(client)
        except OSError as error:
            self._threaded_log(_HANDSHAKES, logging.INFO, "client %d: its TLS handshake has failed: %s", client.number,
                               error)
            client._refuse("handshake")
        except Exception as error:  # a program's verify_request
            self._threaded_judge(client, error)
            self.handle_error(request, client.address)
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, handle the exceptions of its handler, and close its connection."""
        client = self._threaded_find(request)
        if client is not None and client.thread is None:  # in a thread of the program's own
            own = partial(ClientHooks.process_request_thread, self)
            return self._threaded_serve(client, own, request, client_address, closes=True)
        try:
            self.finish_request(request, client_address)
        except Exception as error:  # the handler's own, as in socketserver
            self._threaded_judge(self._threaded_client_of(request), error)
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler."""
        client = self._threaded_find(request)
        if client is not None and client.thread is None:  # in a thread of the program's own
            return self._threaded_serve(client, super().finish_request, request, client_address, closes=False)
        if client is None and not self._threaded_follow(request):
            return
        super().finish_request(request, client_address)

    def _threaded_follow(self, request: Any) -> bool:
        """Take a request that a subclass has wrapped as that of this thread's client; False if its handshake fails."""
        registry = self._threaded_state.registry
        client = calling.client
        if client is not None and registry.owns(client) and client._connection.is_taken_over():
            registry.follow(client, request)
        try:
            tls.shake_hands(request)
        except OSError as error:
            self._threaded_log(_HANDSHAKES, logging.INFO, "client %d: its TLS handshake has failed: %s",
                               client.number if client else 0, error)
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled, with its client's number. May be overridden.

        A client that merely went away is logged at DEBUG only.
        """
        error = sys.exc_info()[1]
        client = self._threaded_judge(self._threaded_client_of(request), error)
        name = f"client {client.number}" if client else f"client at {show_address(client_address)}"
        if isinstance(error, LineTooLong):
            self._threaded_log("lines that are too long", logging.WARNING, "%s: %s", name, error)
        elif isinstance(error, ServerStopping):
            logger.info("%s: %s", name, error)
        elif client is None or client._has_failed():
            self._threaded_log(_HANDLERS, logging.ERROR, "%s: its handler has failed", name, exc_info=error)
        else:
            logger.debug("%s went away: %s", name, error)

    def shutdown_request(self, request: Any) -> None:
        """Shut down and close a connection, and forget its client; in a thread that does not serve it, disconnect."""
        self._threaded_close(request, super().shutdown_request)

    def close_request(self, request: Any) -> None:
        """Close a connection, and forget its client; in a thread that does not serve it, disconnect it."""
        self._threaded_close(request, super().close_request)

    def client_connected(self, client: Client) -> None:
        """Do nothing; a program may override it. Called in the handler's thread, before the handler.

        An exception in it is logged, and the client is served all the same.
        """

    def client_disconnected(self, client: Client) -> None:
        """Do nothing; a program may override it. Called after the connection is closed, in the thread that closed it.

        ``client.reason`` says why, if the server has ended the connection. An exception in it is logged.
        """

    # What the hooks above have in common.

    def _threaded_close(self, request: Any, close: Callable[[Any], None]) -> None:
        """Forget the client, then close its connection: its peer cannot see it closed before the client has gone."""
        client = self._threaded_find(request)
        if client is None:
            return close(request)
        thread = threading.current_thread()
        if client.thread is not thread and client.thread is not None:
            # If it were closed here, its handler would stay blocked. Disconnected, the handler returns, and its
            # thread closes the connection.
            return client.disconnect()
        self._threaded_leave(client, thread, close, request)

    def _threaded_forget(self, client: Client) -> None:
        """Forget a client whose connection an override has closed in its own way."""
        if self._threaded_state.registry.owns(client):
            self._threaded_leave(client, threading.current_thread(), lambda request: None, None)

    def _threaded_leave(self, client: Client, thread: threading.Thread, close: Callable[[Any], None],
                        request: Any) -> None:
        """Take a client off the registry, close its connection, and call `client_disconnected`."""
        registry = self._threaded_state.registry
        if isinstance(thread, HandlerThread) and thread.is_of(registry):  # a stop waits for its end
            if registry.remove(client, thread.left):
                try:
                    close(request)
                finally:
                    self._threaded_tell_disconnected(client)
            return
        registry.closing[client] = None
        try:
            if registry.remove(client, registry.elsewhere):
                try:
                    close(request)
                finally:
                    self._threaded_tell_disconnected(client)
        finally:
            registry.closing.pop(client, None)
            registry.notify_if_awaited()

    def _threaded_tell_disconnected(self, client: Client) -> None:
        """Call `client_disconnected`, if `client_connected` was called."""
        if client.reason is not None:
            logger.debug("client %d was ended by the server: %s", client.number, client.reason)
        if client._announced:
            try:
                self.client_disconnected(client)
            except Exception:  # a program's own: the thread has its next client to serve
                self._threaded_log(_HOOKS, logging.ERROR, "client %d: client_disconnected has failed", client.number,
                                   exc_info=True)

    def _threaded_log(self, kind: str, level: int, message: str, *arguments: object, **keywords: Any) -> None:
        """Log what a client has caused, within the limit for records of that kind; the rest is counted."""
        self._threaded_state.logs.log(self.logs_per_client, kind, level, message, *arguments, **keywords)

    def _threaded_find(self, request: Any) -> Client | None:
        """Find the live client of a request, which in most cases is the one that the calling thread serves."""
        client, registry = calling.client, self._threaded_state.registry
        if client is not None and client._connection.request is request and client._registry is registry:
            return client if request is not None else None
        return registry.find(request)

    def _threaded_client_of(self, request: Any) -> Client | None:
        """Find the client of a request, or of the calling thread."""
        registry = self._threaded_state.registry
        client = registry.find(request)
        if client is None:
            client = calling.client
            if client is not None and client._registry is not registry:
                client = None  # of another server, in whose handler this one runs
        return client

    def _threaded_judge(self, client: Client | None, error: BaseException | None) -> Client | None:
        """Count the client as failed, unless ``error`` means that it went away; return it."""
        if client is not None and not isinstance(error, ServerStopping):
            if not (means_gone(error) and client._connection.is_lost()):
                client._fail()
        return client


def _is(method: object, function: object) -> bool:
    """Return whether a bound method is that function."""
    return getattr(method, "__func__", None) is function
