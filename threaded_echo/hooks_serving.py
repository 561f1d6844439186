"""The hooks of socketserver that run in a client's thread: a handler thread, or one of the program's own."""
from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from .clients.client import Client
from .clients.threads import calling
from .hooks_leaving import HANDSHAKES, HEADERS, HOOKS, LeavingHooks, logger
from .observe.logs import about
from .transport import proxy_protocol, tls
from .transport.deadline import Deadline


class ServingHooks(LeavingHooks):
    """What `ThreadedMixIn` does with a client in the thread that serves it."""

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
                handle(request, client_address if client._peer is None else client.address)
        finally:
            try:
                # Refused, or a hook has raised SystemExit or an interrupt; but not what has been sent off.
                if closes and not entered and client.state != "gone":
                    self.shutdown_request(request)
            finally:
                # An override of that has not closed it, or not through our hooks, or has raised an exception.
                if closes and client.state != "gone":
                    self._threaded_forget(client)
                client.thread = None
                calling.client = before

    def _threaded_enter(self, client: Client, request: Any) -> bool:
        """Open the connection, and call `client_connected`; False if the client is refused."""
        if client._connection.awaits_header or type(request) is not socket.socket and tls.awaits_handshake(request):
            client._begin(threading.current_thread(), "handshaking")
            if not (self._threaded_open(client, request) and self._threaded_verify_opened(client, request)):
                return False
            client._move("serving")
        else:
            client._begin(threading.current_thread(), "serving")
            if type(request) is not socket.socket:  # a program may have shaken hands by itself
                client._shook_hands(tls.shake_hands(request))
                client._connection.allow_sending()
        client._announced = True
        try:
            self.client_connected(client)
        except Exception:  # a program's own: the client is served all the same
            self._threaded_log(HOOKS, logging.ERROR, "client %d: client_connected has failed", client.number,
                               exc_info=True, extra=about(client, "hook"))
        return True

    def _threaded_open(self, client: Client, request: Any) -> bool:
        """Receive the PROXY header, and do the TLS handshake; False if the client is refused."""
        deadline = Deadline(self.handshake_timeout)  # for both
        try:
            if client._connection.awaits_header:
                networks = self._threaded_state.networks
                client._came_through(proxy_protocol.read_address(request, networks, deadline))
                if self.max_clients_per_host is not None and not self._threaded_admit_again(client):
                    return False
            client._shook_hands(tls.shake_hands(request, deadline.remaining()))
        except OSError as error:
            if not client._connection.awaits_header:
                self._threaded_log(HANDSHAKES, logging.INFO, "client %d: its TLS handshake has failed: %s",
                                   client.number, error, extra=about(client, "handshake"))
            elif error.errno is None:
                self._threaded_log(HEADERS, logging.INFO, "client %d: its PROXY header was refused: %s", client.number,
                                   error, extra=about(client, "handshake"))
            else:  # as a proxy does again and again to see whether this server is alive
                logger.debug("client %d went away before its PROXY header: %s", client.number, error,
                             extra=about(client, "gone"))
            client._refuse("handshake")
            return False
        return True

    def _threaded_verify_opened(self, client: Client, request: Any) -> bool:
        """Ask ``verify_request`` in the handler's thread; False if the client is refused."""
        try:
            return self._threaded_verify(client)
        except Exception as error:  # a program's own
            self._threaded_judge(client, error)
            self.handle_error(request, client.address)
            return False

    def _threaded_verify(self, client: Client) -> bool:
        """Ask ``verify_request``; ahead of a PROXY header or a TLS handshake, leave that to the handler's thread."""
        request = client._connection.request
        if client._connection.awaits_header or tls.awaits_handshake(request):
            return True
        if self.verify_request(request, client.address):
            return True
        client._refuse("verify")
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, handle the exceptions of its handler, and close its connection."""
        client = self._threaded_find(request)
        if client is not None and client.thread is None:  # in a thread of the program's own
            own = partial(ServingHooks.process_request_thread, self)
            return self._threaded_serve(client, own, request, client_address, closes=True)
        try:
            self.finish_request(request, client_address)
        except Exception as error:  # the handler's own, as in socketserver
            self._threaded_judge(self._threaded_client_of(request), error)
            self.handle_error(request, client_address)
        finally:
            if client is not None:  # now, since a program's shutdown_request may end the connection by itself
                if client._connection.obstacle is not None:
                    client._finish_sending()
                if type(request) is not socket.socket:
                    client._connection.end_tls()
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
            details = tls.shake_hands(request, self.handshake_timeout)
        except OSError as error:
            self._threaded_log(HANDSHAKES, logging.INFO, "client %d: its TLS handshake has failed: %s",
                               client.number if client else 0, error, extra=about(client, "handshake"))
            if client is not None and registry.owns(client):
                client._refuse("handshake")
            return False
        if client is not None and client._connection.request is request:
            client._shook_hands(details)
            client._connection.allow_sending()
        return True

    def client_connected(self, client: Client) -> None:
        """Do nothing; a program may override it. Called in the handler's thread, before the handler.

        An exception in it is logged, and the client is served all the same.
        """

    def client_disconnected(self, client: Client) -> None:
        """Do nothing; a program may override it. Called after the connection is closed, in the thread that closed it.

        ``client.reason`` says why, if the server has ended the connection. An exception in it is logged.
        """
