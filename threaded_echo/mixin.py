"""ThreadedMixIn, which upgrades any server that is built on socketserver.

The mix-in works through socketserver's own hooks, so that it fits beneath a subclass that overrides any of them, and
above one that does: a class above may override each with or without ``super()``, and a class below is called if it has
its own. It keeps all of its state in one attribute, made on first use: it has no ``__init__`` to call.
"""
from __future__ import annotations

import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from . import dumping, options
from .accepting import running, serving
from .clients.client import Client
from .compatibility import NonDataProperty, ShutDownEvent, ThreadList
from .hooks_accepting import AcceptingHooks
from .observe.stats import ServerStats
from .offloading.call import OffloadedCall
from .report import StopReport
from .state import ServerState
from .stopping import timeouts_of

if TYPE_CHECKING:
    import os
    import ssl
    from typing import Self

_SOCKETSERVERS_THREADS: Any = getattr(socketserver, "_Threads", ())


class ThreadedMixIn(AcceptingHooks):
    """Serve each client, which has a number, in a thread of its own; a stop ends and joins them all.

    It goes before a server class that is built on socketserver: ``class Server(ThreadedMixIn, HTTPServer)``.

    For the caller: ``start``, ``run``, ``serve_forever``, ``handle_request``; ``suspend``, ``resume``; ``shutdown``,
    ``server_close``, ``stop``, or the ``with`` statement for it; ``clients``, ``stats``, ``stopping``; ``broadcast``;
    ``offload``, ``offload_within``, ``offload_iter``, ``offloads``; ``dump``, ``dump_on_signal``; ``reload_tls``. To
    override: ``client_connected``, ``client_disconnected``, and every hook of socketserver. *Thread safety*: all
    methods for the caller but ``dump_on_signal`` may be used from any thread, a handler's included.
    """

    # The options: options.py has their defaults and their documentation.
    reuse_threads: bool
    one_cpu: bool
    unix_mode: int | None
    linger_timeout: float
    drain_timeout: float
    force_timeout: float
    idle_timeout: float | None
    lifetime: float | None
    send_timeout: float | None
    handshake_timeout: float | None
    keepalive: float | None
    ssl_context: ssl.SSLContext | None
    proxy_protocol: Any
    executor: Any
    max_offloads: int | None
    at_offload_limit: str
    max_offloads_per_host: int | None
    offload_timeout: float | None
    slow_offload: float | None
    logs_per_client: int | None
    max_clients: int | None
    at_limit: str
    limit_reply: Any
    max_clients_per_host: int | None
    reserve_descriptors: int

    def __init_subclass__(cls, **keywords: Any) -> None:
        for name in keywords.keys() & options.OPTIONS.keys():
            raise TypeError(f"{name} is not a keyword of the class statement: set it in the body of {cls.__name__}")
        super().__init_subclass__(**keywords)
        bases = cls.__mro__
        if socketserver.BaseServer in bases and bases.index(ThreadedMixIn) > bases.index(socketserver.BaseServer):
            raise TypeError(f"{cls.__name__}: put ThreadedMixIn ahead of the server among the bases, or that hides it")
        options.settle(cls)

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Say what to do if an option is given as a keyword to a class whose ``__init__`` is socketserver's."""
        for name in keywords.keys() & options.OPTIONS.keys():
            if cls.__init__.__module__ == "socketserver":
                raise TypeError(f"{name} is not a keyword of {cls.__name__}: set it in the body of the class; only the "
                                "servers of this package take options as keywords")
        return super().__new__(cls)

    # Serving.

    def start(self) -> Self:
        """Serve in a background thread, and return this server once it accepts connections.

        Raises RuntimeError if the server is closed, is serving already, or is stopped meanwhile. Any other error that
        keeps it from serving is raised here, too. `stop` joins the thread.
        """
        ServerState.of(self).loops.start(self.serve_forever)
        return self

    def run(self, duration: float | None = None) -> StopReport:
        """Serve until SIGINT, SIGTERM or ``duration`` seconds, then stop as `stop` does; return its report.

        ``duration``: ``None`` means no limit. A second signal cuts the connections at once, as ``stop(0)`` does. Also
        returns when a handler or another thread stops the server. With a `linger_timeout`, live clients may go on for
        so long before the stop begins. An error that ends the serving loop, or keeps it from starting, is raised after
        the stop. The addresses, the stop and its report are logged between INFO and WARNING. If systemd wants to know
        (``NOTIFY_SOCKET``, ``WATCHDOG_USEC``), it is told that the server accepts, that it lives, and that it stops.

        *Thread safety*: any thread, but signals are obeyed only in the main thread. A signal that the process ignores
        stays ignored, as SIGINT is in a background job of a shell script.
        """
        if duration is not None:
            options.check_seconds("duration", duration)
        report: StopReport = running.run(self, ServerState.of(self), duration)
        return report

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve in this thread until `shutdown`, `server_close` or `stop`.

        Wakes only for a connection or a stop. If a subclass overrides ``service_actions``, it also wakes every
        ``poll_interval`` seconds. Raises RuntimeError if the server is closed, or is serving already.
        """
        below = super().serve_forever
        if below.__func__ is socketserver.BaseServer.serve_forever:  # type: ignore[attr-defined]
            serving.serve_forever(self, ServerState.of(self), poll_interval)
        else:  # a class below has its own, which ends in socketserver's: see _BaseServer__shutdown_request
            ServerState.of(self).loops.poll_interval = poll_interval
            below(poll_interval)  # type: ignore[arg-type]

    def handle_request(self) -> None:
        """Wait for one connection, and serve it in a handler thread.

        Also returns after a stop. Calls ``handle_timeout`` if no connection comes within ``timeout`` seconds (the
        listening socket's or this server's, whichever is less). Raises RuntimeError if the server is closed.
        """
        below = super().handle_request
        if below.__func__ is socketserver.BaseServer.handle_request:  # type: ignore[attr-defined]
            serving.handle_request(self, ServerState.of(self))
        else:
            below()

    # Limiting.

    def suspend(self) -> None:
        """Accept no more clients, until `resume`. Live clients are served on; new ones wait in the kernel's queue.

        One that is being accepted at the moment still gets in. A server that is suspended can start and stop, and is
        still suspended when it serves again. *Thread safety*: any thread, any number of times. Does not block.
        """
        ServerState.of(self).limits.suspend()

    def resume(self) -> None:
        """Accept clients again. *Thread safety*: as `suspend`; once is enough, however often that was called."""
        ServerState.of(self).limits.resume()

    def _threaded_option_assigned(self) -> None:
        """Take an option as it is now: it has been assigned, perhaps while the server serves."""
        state = vars(self).get("_threaded_state")
        if state is not None:
            state.limits.look_again(self)

    # Talking to all.

    def broadcast(self, data: Any, exclude: Any = ()) -> tuple[int, ...]:
        """Send ``data`` (bytes-like) to every live client; return the numbers of those that it could not reach.

        ``exclude``: clients, or their numbers, to leave out: ``exclude=[self.client]``. Waits for nobody. What a client
        does not take at once waits in a queue, and is sent as soon as it does, ahead of what its handler sends after
        that: ``self.send``, the reply of ``process``, `Client.send`. A message is never mixed with another one. But
        what a handler sends by ``self.request`` or ``self.wfile`` passes the queue by: on a server that broadcasts, use
        ``current_client().send`` there; and to end a connection, return or call `Client.disconnect`. A handler that
        closes ``self.request`` may do so just when something is being sent over it.

        At most 1 MiB waits for one client, or one message, if it is longer (``threaded_echo.clients.backlog``). A
        client for which more would wait is disconnected, with the reason ``"send"``, and its number is returned; so is
        one that takes nothing of it for `send_timeout` seconds. If a handler ends, what is queued for its client is
        sent for up to 5 seconds; in a stop, until the connections are cut.

        Not reached, too, are clients that have just gone, those that the server has disconnected, those whose handler
        has not begun (a PROXY header or a TLS handshake is not done), and connections that are no ordinary sockets: of
        a class with a ``send`` or ``sendall`` of its own, datagrams, and TLS by an ``sslsocket_class`` or that the
        handler has ended by ``unwrap``. That is no error, and nothing is raised but TypeError, if ``data`` is not
        bytes-like, or ``exclude`` names no clients.

        *Thread safety*: any thread, and signal handlers. What one thread sends to a client arrives in order; but a
        `LineHandler` sends its replies to lines that have arrived together after the last of them, and so after what it
        broadcasts to itself meanwhile.
        """
        return ServerState.of(self).broadcasts.send_to_all(data, exclude)

    # TLS.

    def reload_tls(self, certfile: str | os.PathLike[str] | None = None,
                   keyfile: str | os.PathLike[str] | None = None) -> None:
        """Use a renewed certificate for new connections; live ones keep the one that they have.

        ``certfile`` has the certificate and those that sign it, in PEM; ``keyfile``: ``None`` if the key is in there,
        too. Without arguments, the files that this server has loaded last are read again; during `run`, SIGHUP does
        that. Raises OSError, in many cases an `ssl.SSLError`, which names the file, if they do not load: then the old
        certificate stays. Raises RuntimeError if the server has no TLS, or knows no files.

        It is loaded into the `ssl_context`, or that of the listening socket. OpenSSL keeps one certificate for each
        kind of key (RSA, EC): if the new key is of another kind, set a new `ssl_context` instead. *Thread safety*: any
        thread.
        """
        ServerState.of(self).certificates.reload(self, certfile, keyfile)

    # Stopping.

    def shutdown(self) -> None:
        """End the serving loop, then wake, drain, cut and join every client. The listening socket stays bound.

        Takes at most ``drain_timeout + force_timeout`` seconds, and a moment for threads to return. Afterwards the
        server can serve again. If no thread is in ``serve_forever``, the next call of ``serve_forever`` returns at
        once, as in socketserver, but `start` serves. *Thread safety*: as `stop`.
        """
        below = super().shutdown
        remember = below.__func__ is socketserver.BaseServer.shutdown  # type: ignore[attr-defined]
        if not remember:
            below()  # a class below has its own, which ends in socketserver's: see _BaseServer__is_shut_down
        self._threaded_run_stop(remember=remember)

    def server_close(self) -> None:
        """Close the listening socket, and wake, drain, cut and join every client that is still live.

        *Thread safety*: as `stop`.
        """
        self._threaded_run_stop(close=super().server_close, at_once=True)

    def stop(self, drain: float | None = None, force: float | None = None) -> StopReport:
        """End everything: stop accepting, wake and drain the clients, cut those that are left, join the threads.

        Waits at most ``drain`` seconds, and then at most ``force`` seconds; ``None`` stands for `drain_timeout` and
        `force_timeout`. If a stop is in progress, this call joins it, and shortens it if seconds are given: ``stop(0)``
        cuts at once. A thread that an earlier stop has given up on is waited for again only if seconds are given.

        The report names what could not be ended; that is not an error. Closes the listening socket. *Thread safety*:
        any thread, any number of times. A handler may call it, and is not waited for.
        """
        for name, seconds in (("drain", drain), ("force", force)):
            if seconds is not None:
                options.check_seconds(name, seconds)
        return self._threaded_stop(drain, force)

    def _threaded_stop(self, drain: float | None = None, force: float | None = None) -> StopReport:
        """Stop, under a name that no program takes."""
        return self._threaded_run_stop(drain, force, close=self._threaded_close_if_open)

    def __exit__(self, kind: type[BaseException] | None = None, error: BaseException | None = None,
                 traceback: TracebackType | None = None) -> None:
        self._threaded_stop()

    def _threaded_run_stop(self, drain: float | None = None, force: float | None = None, *, remember: bool = False,
                           close: Callable[[], None] | None = None, at_once: bool = False) -> StopReport:
        state = ServerState.of(self)
        try:
            return state.stopping.run(timeouts_of(self), drain, force,
                                      remember=remember, close=close, at_once=at_once)
        finally:
            state.logs.flush()

    def _threaded_close_if_open(self) -> None:
        """Close as the program's class does, unless that has been done."""
        loops = ServerState.of(self).loops
        if self.fileno() >= 0 or loops.closes_later:
            loops.closes_later = False
            self.server_close()

    # What socketserver's serve_forever() and shutdown() keep for each other. Programs call these by name, and classes
    # below the mix-in through super().

    @property
    def _BaseServer__shutdown_request(self) -> bool:  # noqa: N802 - socketserver's name
        """Serve, and return True: socketserver's own loop reads this before its first wait, and then ends."""
        loops = ServerState.of(self).loops
        if sys._getframe(1).f_code is not socketserver.BaseServer.serve_forever.__code__:
            return loops.was_asked  # the program only reads the attribute
        serving.serve_forever(self, ServerState.of(self), loops.poll_interval)
        return True

    @_BaseServer__shutdown_request.setter
    def _BaseServer__shutdown_request(self, value: bool) -> None:  # noqa: N802
        ServerState.of(self).loops.ask_to_end(value)

    @property
    def _BaseServer__is_shut_down(self) -> ShutDownEvent:  # noqa: N802 - socketserver's name
        return ShutDownEvent(self)

    @_BaseServer__is_shut_down.setter
    def _BaseServer__is_shut_down(self, value: object) -> None:  # noqa: N802
        """Ignore the event that socketserver's ``__init__`` makes."""

    # Computing.

    def offload(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` in the `executor`, and return its result; this thread waits.

        An exception of the function is raised here, with the worker's traceback as its cause. Also raises:

        - TypeError or ImportError if the call cannot be sent to a worker process;
        - `WorkerDied` if the worker process ends in the middle of the call;
        - `ServerStopping` when a stop cuts the connections, and for every later call;
        - TimeoutError when the seconds of `offload_timeout` are over;
        - ConnectionAbortedError if the client's connection is reset or cut meanwhile; a function that runs already is
          left to end, since it may be in the middle of writing something, and keeps its worker until then;
        - `OffloadRefused` at the limit, if `at_offload_limit` is ``"refuse"``;
        - OSError if no descriptor is available to wait with, or a worker cannot be started.

        *Thread safety*: any thread. In a handler, ``self.offload`` is the same. While a stop drains, it waits for the
        calls of handlers, also if their clients have gone, and for no others. With ``executor=None`` a stop cannot
        interrupt the function, and its handler is a survivor.

        With a Dask client, a function whose worker dies is called again in another one; `WorkerDied` comes after
        several deaths. If the scheduler is lost, the calls that it had raise Dask's ``FutureCancelledError`` or an
        OSError, and those that are made before it is back wait for it, for the timeout of the client. Once that is
        closed, by itself too, each call raises CancelledError or Dask's ``ClosedClientError``.
        """
        return ServerState.of(self).offload(self, function, args, kwargs)

    def offload_within(self, seconds: float | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do as `offload`, with ``seconds`` in place of `offload_timeout`; ``None``: without a time-out.

        The time counts from this call, the wait for its turn included. *Thread safety*: as `offload`.
        """
        return ServerState.of(self).offload_within(self, seconds, function, args, kwargs)

    def offloads(self) -> tuple[OffloadedCall, ...]:
        """Take a snapshot of the calls that are running or waiting, in the order in which they came.

        Each has ``function`` (its name), ``client`` (``None``: a call of the program's own), ``seconds`` (since it was
        made) and ``state`` (``"waiting"`` or ``"running"``). A function that runs on without its client is among them.
        *Thread safety*: any thread.
        """
        return ServerState.of(self).offloads.snapshot()

    def offload_iter(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Iterate over what a generator function yields in a worker, as it comes.

        ``for item in self.offload_iter(function, *args): self.send(item)``. The worker is at most four items ahead of
        the loop, so that a slow client slows it down. An exception of the function is raised here after the items that
        came before it. When the loop is left early, the function is ended at its next ``yield``, where its ``finally``
        blocks run; if it does not get there within 5 seconds, its process is killed. The same is done if the client's
        connection is reset or cut meanwhile, and ConnectionAbortedError is raised. What else is raised, and when, is as
        with `offload`; `offload_timeout` counts for the whole iteration, and is looked at when an item is waited for.

        The worker, and a place under `max_offloads`, is taken until the iteration is over: do not call `offload` inside
        the loop if there may be no other. In `WorkerThreads` a function that does not end in time runs on, as with
        `offload`. With ``executor=None`` it runs in the calling thread. Any other executor is a TypeError. *Thread
        safety*: one thread at a time may use an iterator.
        """
        return ServerState.of(self).offload_iter(self, function, args, kwargs)

    # What it tells.

    def __repr__(self) -> str:
        state = ServerState.of(self)
        address = getattr(self, "server_address", None)
        return f"<{type(self).__name__} on {address!r}, {state.loops.describe()}, {len(state.registry.live)} live>"

    @NonDataProperty
    def clients(self) -> Mapping[int, Client]:
        """The live clients by number: a read-only snapshot. *Thread safety*: any thread."""
        return MappingProxyType({client.number: client for client in ServerState.of(self).registry.clients()})

    @NonDataProperty
    def stopping(self) -> threading.Event:
        """The event that is set when a stop begins; there is a new one when the server serves again.

        A handler waits on it instead of sleeping.
        """
        return ServerState.of(self).stopping.period.stopping

    @property
    def _threads(self) -> Any:
        """What socketserver's mix-in keeps its threads in, and its ``process_request``, by name, adds its own to.

        A program's own attribute of that name is left alone.
        """
        own = vars(self).get("_threads")
        return ThreadList(self) if own is None or isinstance(own, _SOCKETSERVERS_THREADS) else own

    @_threads.setter
    def _threads(self, value: Any) -> None:
        vars(self)["_threads"] = value

    def stats(self) -> ServerStats:
        """Take a snapshot of the counts. *Thread safety*: any thread. Costs about 2 µs for each live client."""
        return ServerState.of(self).stats()

    def _threaded_measure(self) -> ServerStats:
        """Do as `stats`, and record the clients' durations from the first call on; under a name that no program takes.
        """
        state = ServerState.of(self)
        state.registry.record_durations()
        return state.stats()

    def dump(self) -> str:
        """Return what each live client is doing, as text: its number, address, state and age, and its thread's stack.

        The stack begins at the first call of the program's own code, and ends with the innermost one; a thread in C
        code is at the line that has called it. A client without a thread has none yet. If its handler waits for a call
        that it has offloaded, the function is named. Clients that are at the same lines are listed together, ahead of
        them, so that ten thousand idle clients have a line each, and one stack.

        *Thread safety*: any thread, in any state. Waits for no client, and takes less than a second for ten thousand.
        Without the GIL, all threads are stopped for a moment, and the stacks of the newest 100 threads are read (1,000
        from Python 3.15 on); that needs 3.13.2.
        """
        return dumping.dump(self)

    def dump_on_signal(self, signum: int | None = dumping.SIGNAL) -> Any:
        """Log what `dump` returns, at WARNING, whenever the process gets this signal: ``kill -USR1 PID``.

        It works while the main thread is in `run`, in `serve_forever`, or in the program's own code. Python handles
        signals in the main thread: not before a C function returns that does not let them in, and one that comes just
        before a wait begins, when that is over. A short-lived thread makes the dump, so that it does not matter which
        locks the main thread holds. A signal that comes while a dump is being made is left out. Several servers may
        share a signal.

        Returns what handled the signal before, as `signal.signal` does. The handler stays when the server is closed,
        and then finds no clients: if it were taken away, a late signal would end the process. To take it away, call
        ``signal.signal(signum, before)``. It does not keep the server alive.

        Raises ValueError if this is not the main thread, if the platform has no such signal (Windows has no
        ``SIGUSR1``: the default is then ``None``), or if nothing can handle it, as ``SIGKILL``.
        """
        return dumping.dump_on_signal(self, signum)


options.install(ThreadedMixIn)
