"""Serving in the calling thread: what ``serve_forever`` and ``handle_request`` do.

``server`` is the program's, and ``state`` its `ServerState`, which is above this folder.
"""
from __future__ import annotations

import socketserver
import time
from typing import Any

from ..options import check, check_server
from ..transport.several import listeners_of, others_of
from .loop import Loop, check_listening, unblock


def serve_forever(server: Any, state: Any, poll_interval: float | None) -> None:
    """Accept clients until a stop."""
    check_server(server)
    polls = getattr(server.service_actions, "__func__", None) is not socketserver.BaseServer.service_actions
    timeout = poll_interval if polls else None
    shares = server._threaded_lets_idle_threads_accept()
    loop = Loop(True, state.registry, state.limits, server)
    try:
        if not (state.stopping.begin_serving(loop, server.fileno) and _opens(server, state, loop)):
            return
        with state.one_cpu.kept(server.one_cpu):
            state.loops.accepting()
            while not loop.stopped:
                if loop.wait(timeout):
                    if shares:
                        server._threaded_accept_and_admit(loop)
                    else:
                        try:
                            server._handle_request_noblock()
                        finally:
                            loop.reopen()
                if polls and not loop.stopped:
                    server.service_actions()
            loop.raise_error()
    finally:
        state.loops.end(loop)


def _opens(server: Any, state: Any, loop: Loop) -> bool:
    """Start the workers and make the door; False if a stop has come first."""
    try:
        check_listening(server)
        server._threaded_prepare_to_accept()
        state.believe_proxies(server)
        state.limits.look_again(server)  # they may have been assigned to the class since it has served
        state.offloads.open(server.executor, loop.period, state.one_cpu.lifted)
        _set_timeouts(server, state, loop)
        unblock(server)
        loop.open(server.fileno, others_of(server))
    except (OSError, ValueError, RuntimeError):
        # A stop may close the listener meanwhile, if a signal handler calls it in this very thread.
        if not loop.stopped:
            raise
    return not loop.stopped


def handle_request(server: Any, state: Any) -> None:
    """Accept one client; return after a stop, too, and call ``handle_timeout`` if the time-out of either is up."""
    listener = getattr(server, "socket", None)
    timeouts = [timeout for timeout in (listener and listener.gettimeout(), server.timeout) if timeout is not None]
    deadline = time.monotonic() + min(timeouts) if timeouts else None
    loop = Loop(False, state.registry, state.limits, server)
    try:
        if not state.stopping.begin_serving(loop, server.fileno):
            return
        state.believe_proxies(server)
        state.offloads.open(server.executor, loop.period, state.one_cpu.lifted)
        if loop.stopped:
            return
        server._threaded_prepare_to_accept()
        _set_timeouts(server, state, loop)
        unblock(server)
        try:
            loop.open(server.fileno, others_of(server))
        except OSError as error:  # out of descriptors
            server._threaded_meet_accept_error(error, loop.period)
            return
        with state.one_cpu.kept(server.one_cpu):
            state.loops.accepting()
            while not loop.stopped:
                remaining = None if deadline is None else max(0, deadline - time.monotonic())
                if loop.wait(remaining):
                    server._handle_request_noblock()
                    loop.reopen()
                    return
                if remaining == 0 and not loop.stopped:
                    server.handle_timeout()
                    return
    finally:
        state.loops.end(loop)


def _set_timeouts(server: Any, state: Any, loop: Loop) -> None:
    """Begin to watch the clients' deadlines, and set those that the kernel keeps."""
    check({name: getattr(server, name) for name in ("idle_timeout", "lifetime", "keepalive", "send_timeout")})
    state.kernel_timeouts.set_up(listeners_of(server), server.keepalive, server.send_timeout)
    state.deadlines.begin(server, loop.period)
