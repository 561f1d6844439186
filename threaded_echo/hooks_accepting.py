"""The hooks of socketserver that run in the thread that accepts: from a connection's accept to its handler thread.

The three modules ``hooks_…`` stand between a program's class and socketserver's: a class above may override each hook
with or without ``super()``, and a class below is called if it has its own. So a client is numbered when it is accepted,
its thread is noted when that first runs, and it is forgotten when its request is shut down or closed; each of these may
happen twice.

All names that are not socketserver's, nor for programs to use, begin with ``_threaded``: a program's class may have a
``_stop`` or ``_log`` of its own.
"""
from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from .accepting.loop import Loop
from .clients.client import Client
from .clients.period import Period
from .clients.threads import MAX_IDLE, calling
from .hooks_leaving import HOOKS
from .hooks_serving import ServingHooks
from .options import check
from .observe.logs import about
from .transport import tls
from .transport.acceptor import acceptor_for
from .transport.several import Listeners

# If accept4(2) is missing (macOS, Windows), an accepted connection does not block if its listener does not.
_INHERITS_BLOCKING = not hasattr(socket, "SOCK_NONBLOCK")


class AcceptingHooks(ServingHooks):
    """What `ThreadedMixIn` does with a client in the thread that accepts."""

    _threaded_listeners: Listeners | None = None
    """Of the concrete servers, if they listen on more than ``socket``, or on IPv4 and IPv6."""

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; on a listener that was wrapped in TLS, without its handshake."""
        listener = getattr(self, "socket", None)
        acceptor = self._threaded_state.acceptor
        if acceptor is not None and acceptor.listener is listener:
            return acceptor.accept()
        listeners = self._threaded_listeners
        if type(listener) is not socket.socket:
            wrapped = tls.as_tls(listener)
            # Not past a get_request that a class below the mix-in has of its own.
            if wrapped is not None and _is(super().get_request, socketserver.TCPServer.get_request):
                request, address = socket.socket.accept(wrapped)  # not its own, which would shake hands
                ragged = getattr(wrapped, "suppress_ragged_eofs", True)
                request = self._threaded_state.certificates.wrap(wrapped.context, request, ragged)
                return request, address if listeners is None else listeners.show(address)
        request, address = super().get_request() if listeners is None else listeners.accept(listener)
        if _INHERITS_BLOCKING and request.gettimeout() is None:
            request.setblocking(True)
        return request, address

    def _threaded_prepare_to_accept(self) -> None:
        """Look at how clients are accepted from now on.

        Raises RuntimeError if a program accepts from ``socket`` in its own way, and there are others beside it.
        """
        listeners = self._threaded_listeners
        acceptor = acceptor_for(getattr(self, "socket", None)) if listeners is None else None
        # A class below the mix-in may have its own, or none at all, as socketserver.BaseServer.
        if not _is(getattr(super(), "get_request", None), socketserver.TCPServer.get_request):
            acceptor = None
        self._threaded_state.acceptor = acceptor
        if listeners is not None and listeners.others:
            if not _is(self.get_request, AcceptingHooks.get_request):
                raise RuntimeError("a server with a get_request of its own can listen on one address only")
            if type(getattr(self, "socket", None)) is not socket.socket:
                raise RuntimeError("the first of several listening sockets has been wrapped, and the others have not: "
                                   "such a server can listen on one address only")

    def _threaded_lets_idle_threads_accept(self) -> bool:
        """Return whether idle handler threads may accept for themselves.

        Not if a program overrides a hook that socketserver calls in the serving thread, nor if threads are not to be
        reused; then the serving thread alone accepts, and starts a thread for each client.
        """
        return bool(self.reuse_threads and self.daemon_threads
                    and _is(self.get_request, AcceptingHooks.get_request)
                    and _is(super().get_request, socketserver.TCPServer.get_request)
                    and _is(self.verify_request, socketserver.BaseServer.verify_request)
                    and _is(self.process_request, AcceptingHooks.process_request))

    def _threaded_accept(self, period: Period) -> Client | None:
        """Accept and number a client; ``None`` if that has failed, or the limits refuse the client."""
        try:
            request, client_address = self.get_request()
            if self._threaded_listeners is not None:  # a program's own get_request has it as the socket shows it
                client_address = self._threaded_listeners.show(client_address)
            if self.ssl_context is not None:
                request = self._threaded_wrap(request)
        except OSError as error:
            self._threaded_meet_accept_error(error, period)
            return None
        state = self._threaded_state
        if state.kernel_timeouts.set_on_each is not None:
            state.kernel_timeouts.set_on_each(request)
        limits = state.limits
        if limits.allowance.left > 0 or limits.admits_all:
            return state.registry.add(request, client_address, period)
        client = limits.admit(request, client_address, period)
        if client._outcome == "refused":
            self._threaded_send_off(client, request, client._end)
            return None
        return client

    def _threaded_wrap(self, request: Any) -> Any:
        """Wrap a connection in TLS, without its handshake, unless a program has done so."""
        context = self.ssl_context
        if context is None or tls.as_tls(request) is not None:
            return request
        try:
            check({"ssl_context": context})  # it may have been replaced while the server serves
        except (TypeError, ValueError) as error:
            request.close()
            raise OSError(errno.EINVAL, str(error)) from None
        return self._threaded_state.certificates.wrap(context, request)

    def _threaded_meet_accept_error(self, error: OSError, period: Period) -> None:
        is_own = not (_is(self.get_request, AcceptingHooks.get_request)
                      and _is(super().get_request, socketserver.TCPServer.get_request))
        self._threaded_state.failures.meet(error, self, period.stopping, is_own)

    def _threaded_accept_and_admit(self, loop: Loop) -> None:
        """Accept a client in the serving thread, let the next thread accept, and serve the client."""
        client, before = None, calling.client
        calling.accepts = True
        try:
            try:
                client = calling.client = self._threaded_accept(loop.period)
            finally:
                loop.reopen()
            if client is not None:
                self._threaded_admit(client, loop)
        except BaseException:  # an interrupt, or SystemExit of a hook: it must not leave the client behind
            self._threaded_abandon(client)
            raise
        finally:
            calling.accepts, calling.client = False, before

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
        state = self._threaded_state
        client, before = None, calling.client
        calling.accepts = True
        try:
            if not state.loops.running:  # a program's own loop has called this, which asks nobody whether there is room
                state.limits.read(self)
            client = calling.client = self._threaded_accept(state.stopping.period)
            if client is not None:
                self._threaded_in_serving_thread(client, partial(self._threaded_verify_and_process, client))
        except BaseException:  # an interrupt, or SystemExit of a hook: it must not leave the client behind
            self._threaded_abandon(client)
            raise
        finally:
            calling.accepts, calling.client = False, before

    def _threaded_verify_and_process(self, client: Client) -> bool:
        """Hand a client on to ``process_request``; False if ``verify_request`` refuses it."""
        if not self._threaded_verify(client):
            return False
        self.process_request(client._connection.request, client.address)
        return True

    def _threaded_in_serving_thread(self, client: Client, take_on: Callable[[], bool | None]) -> None:
        """Call ``take_on``. If it fails, or returns False as it refuses the client, close that client only."""
        request = client._connection.request
        try:
            if take_on() is not False:  # if it is refused in another thread later, that closes it
                return
        except Exception as error:  # a program's hook, or a thread that cannot start
            self._threaded_judge(client, error)
            try:
                self.handle_error(request, client.address)
            except Exception:  # one of the program's own: it must not end the serving loop
                self._threaded_log(HOOKS, logging.ERROR, "client %d: handle_error has failed", client.number,
                                   exc_info=True, extra=about(client, "hook"))
        self._threaded_turn_away(client, request)

    def _threaded_turn_away(self, client: Client, request: Any) -> None:
        """Close the connection of a client that no handler serves."""
        try:
            self.shutdown_request(client._connection.request or request)
        finally:
            if client.thread in (None, threading.current_thread()):  # else it is served after all
                self._threaded_forget(client)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a new handler thread.

        Raises what `threading.Thread.start` does, and ConnectionAbortedError if a connection that the program has
        accepted by itself has gone before it could be wrapped in TLS.
        """
        state = self._threaded_state
        client = state.registry.find(request)
        if client is None:
            client = calling.client
            if client is not None and client.thread is None and state.registry.owns(client):
                state.registry.follow(client, request)  # a subclass has wrapped what was accepted
            else:  # a program accepts by itself, or hands on what another server has accepted
                if client is not None and client._connection.request is request:
                    client._registry.hand_on(client)
                state.deadlines.begin(self, state.stopping.period)  # nobody may have called serve_forever
                state.believe_proxies(self)
                client = state.registry.add(self._threaded_wrap(request), client_address, state.stopping.period)
        self._threaded_start_thread(client)

    def _threaded_start_thread(self, client: Client, next_client: Callable[[], Client | None] | None = None,
                               when_over: Callable[[], None] | None = None) -> None:
        try:
            self._threaded_state.threads.serve(client, self._threaded_serve_client, daemon=bool(self.daemon_threads),
                                               next_client=next_client, when_over=when_over)
        except Exception:  # RuntimeError or MemoryError: no thread is to be had
            client._fail("thread")
            raise


def _is(method: object, function: object) -> bool:
    """Return whether a bound method is that function."""
    return getattr(method, "__func__", None) is function
