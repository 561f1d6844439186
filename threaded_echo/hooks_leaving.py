"""The hooks of socketserver that close a client's connection or meet an error, and what all hooks have in common."""
from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .accepting.farewells import Farewell, can_reply
from .clients.client import Client
from .clients.connection import means_gone
from .clients.telling import tell_disconnected
from .clients.threads import HandlerThread, calling
from .compatibility import NonDataProperty
from .errors import LineTooLong, ReceiveTimeout, ServerStopping, StreamEnded
from .observe.logs import about
from .state import ServerState
from .transport.listeners import show_address

logger = logging.getLogger("threaded_echo")

# The kinds of records that clients can cause, of which so many are logged.
HANDSHAKES, HANDLERS, HOOKS = "failed TLS handshakes", "failures of handlers", "failures of hooks"
REFUSALS, HEADERS = "refused clients", "refused PROXY headers"
DEADLINES, LATE = "clients whose time was up", "messages that came too late"

# The reasons of a deadline, and what the log says.
_TIMES_UP = {"idle": "it was idle for too long", "lifetime": "its lifetime is over",
             "send": "it did not take what was sent to it"}

if TYPE_CHECKING:
    import ssl

    class _Base(socketserver.ThreadingMixIn, socketserver.TCPServer):
        reuse_threads: bool
        ssl_context: ssl.SSLContext | None
        proxy_protocol: Any
        logs_per_client: int | None
        limit_reply: Any
        max_clients_per_host: int | None
        handshake_timeout: float | None

        def client_disconnected(self, client: Client) -> None: ...
else:
    _Base = object


class LeavingHooks(_Base):
    """What `ThreadedMixIn` does with a client that leaves."""

    @NonDataProperty
    def _threaded_state(self) -> ServerState:
        return ServerState.of(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled, with its client's number. May be overridden.

        A client that merely went away is logged at DEBUG only.
        """
        error = sys.exc_info()[1]
        client = self._threaded_judge(self._threaded_client_of(request), error)
        name = f"client {client.number}" if client else f"client at {show_address(client_address)}"
        if isinstance(error, LineTooLong):
            self._threaded_log("lines that are too long", logging.WARNING, "%s: %s", name, error,
                               extra=about(client, "line", client_address))
        elif isinstance(error, ServerStopping):
            logger.info("%s: %s", name, error, extra=about(client, "stop", client_address))
        elif isinstance(error, ReceiveTimeout):
            self._threaded_log(LATE, logging.WARNING, "%s: %s", name, error,
                               extra=about(client, "late", client_address))
        elif client is None or client._has_failed():
            self._threaded_log(HANDLERS, logging.ERROR, "%s: its handler has failed", name, exc_info=error,
                               extra=about(client, "failed", client_address))
        else:
            logger.debug("%s went away: %s", name, error, extra=about(client, "gone"))

    def shutdown_request(self, request: Any) -> None:
        """Shut down and close a connection, and forget its client; in a thread that does not serve it, disconnect."""
        self._threaded_close(request, super().shutdown_request)

    def close_request(self, request: Any) -> None:
        """Close a connection, and forget its client; in a thread that does not serve it, disconnect it."""
        self._threaded_close(request, super().close_request)

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
        if client._connection.obstacle is not None:
            client._finish_sending()
        if type(request) is not socket.socket:
            client._connection.end_tls()
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

    def _threaded_admit_again(self, client: Client) -> bool:
        """Admit a client under an address that has become known in its thread; False, and refuse it, if that cannot be.
        """
        if self._threaded_state.limits.admit_again(self, client):
            return True
        request = client._connection.request
        client._refuse("host limit")
        self._threaded_send_off(client, request, partial(self._threaded_forget, client))
        return False

    def _threaded_send_off(self, client: Client, request: Any, end: Callable[[], object]) -> None:
        """Send ``limit_reply`` to a client that the limits refuse, call ``end``, and close without losing the reply."""
        self._threaded_log(REFUSALS, logging.INFO, "client %d refused%s: %s", client.number,
                           client.address and f" from {show_address(client.address)}", client.reason,
                           extra=about(client, "refused"))
        farewell = None
        try:
            reply = bytes(self.limit_reply)
            if reply and can_reply(request):
                farewell = Farewell(request, reply, partial(self._threaded_close_refused, client, request))
                farewell.send()
        finally:
            end()  # before the peer can see the end of the stream
        if farewell is None or farewell.go_on():
            self._threaded_close_refused(client, request)
        else:
            self._threaded_state.farewells.add(farewell, client._period)

    def _threaded_close_refused(self, client: Client, request: Any) -> None:
        try:
            self.shutdown_request(request)
        except Exception:  # a program's own: it costs this client only
            self._threaded_log(HOOKS, logging.ERROR, "client %d: shutdown_request has failed", client.number,
                               exc_info=True, extra=about(client, "hook"))

    def _threaded_tell_disconnected(self, client: Client) -> None:
        """Log why the server has ended the client, and that it has gone if its coming was logged; and call
        `client_disconnected` if `client_connected` was called.
        """
        if client.reason in _TIMES_UP:
            self._threaded_log(DEADLINES, logging.INFO, "client %d was disconnected: %s", client.number,
                               _TIMES_UP[client.reason], extra=about(client, client.reason))
        elif client.reason is not None:
            logger.debug("client %d was ended by the server: %s", client.number, client.reason,
                         extra=about(client, "refused" if client._outcome == "refused" else client.reason))
        if client._told:
            tell_disconnected(client)
        if client._announced:
            try:
                self.client_disconnected(client)
            except Exception:  # a program's own: the thread has its next client to serve
                self._threaded_log(HOOKS, logging.ERROR, "client %d: client_disconnected has failed", client.number,
                                   exc_info=True, extra=about(client, "hook"))

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
        if client is not None and not isinstance(error, (ServerStopping, StreamEnded)):
            if not (client._cut_if_send_timed_out(error) or means_gone(error) and client._connection.is_lost()):
                client._fail()
        return client
