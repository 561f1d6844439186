"""A threaded TCP server that stops, survives and computes: socketserver's, with a registry of its clients.

Each client has a number and a thread of its own, so that a handler is plain blocking code:

    from threaded_echo import LineHandler, ThreadedTCPServer

    class Shout(LineHandler):
        def process(self, line):            # bytes without the line end; returns the reply's bytes, or None
            return line.upper()

    if __name__ == "__main__":
        server = ThreadedTCPServer(("127.0.0.1", 9999), Shout)
        print(server.run())                 # serves until Ctrl-C or SIGTERM, then stops and reports

*Servers.* `ThreadedTCPServer` and `ThreadedUnixStreamServer` take the options as keywords. `ThreadedMixIn` upgrades any
server class that is built on socketserver: ``class Server(ThreadedMixIn, http.server.ThreadingHTTPServer)``. Its help
documents the options. ``start()`` serves in a background thread, ``run()`` until a signal; ``clients`` maps the numbers
of the live clients to `Client` objects, ``stats()`` returns a `ServerStats`, and ``broadcast(data)`` sends to all
clients without waiting for any. ``dump()`` tells what each client is doing, and ``dump_on_signal()`` has that logged on
a signal.

*Handlers.* Any handler class written for socketserver runs unchanged. `ClientHandler` processes chunks, `LineHandler`
lines, and `EchoHandler` sends back what comes. Other handlers find their client with `current_client`.

*The stop.* ``stop()``, which leaving ``with server:`` calls, ends accepting, wakes each handler with an end of file,
and waits ``drain_timeout`` seconds for them. Then it cuts the connections that are left, and waits ``force_timeout``
seconds. It returns a `StopReport`, which names each `Survivor`: Python cannot end a thread from outside.

*Limits.* ``max_clients`` and ``max_clients_per_host`` bound how many clients there are; more wait, or are refused.
``suspend()`` and ``resume()`` stop accepting and go on with it. These limits may be changed while the server serves.

*Deadlines.* ``idle_timeout``, ``lifetime``, ``send_timeout`` and ``handshake_timeout`` end clients that hold a server
up; ``Client.reason`` says which. In a handler, ``receive_exactly`` and ``receive_until`` have one for a whole message.

*Computing.* ``self.offload(function, ...)`` runs a function in worker processes (``executor=2``) or in any executor,
while only its own client waits. It may raise `WorkerDied`, `OffloadRefused` or `ServerStopping`. ``self.offload_iter``
iterates over what a generator function yields there. `WorkerProcesses` are prepared by an initializer; `WorkerThreads`
are for Python without the GIL.

*Watching.* The package logs to the logger ``threaded_echo``; its records have the fields ``client``, ``address`` and
``event``. `threaded_echo.observe.metrics.ServerCollector` has the counts for Prometheus, and ``--live`` of the
command a table of the clients.

*Tests.* The pytest fixture ``threaded_server`` serves during a test, and checks what became of the handlers. Its
``record`` is a handler that replies from a script: see ``threaded_echo.testing``.

``python3 -m threaded_echo`` runs an echo server, and ``threaded_echo.examples`` has programs to start from. README.rst
has the guarantees, the limits and the speed.
"""
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Client",
    "ClientHandler",
    "EchoHandler",
    "LineHandler",
    "LineTooLong",
    "OffloadRefused",
    "ServerStats",
    "ServerStopping",
    "StopReport",
    "Survivor",
    "ThreadedMixIn",
    "ThreadedTCPServer",
    "ThreadedUnixStreamServer",
    "WorkerDied",
    "WorkerProcesses",
    "WorkerThreads",
    "current_client",
]

# Where the names are. Each is imported when it is first used, so that the pytest plugin, whose import imports this
# module, too, does not slow the start of every pytest run down.
_MODULES = {
    "Client": "clients.client",
    "ClientHandler": "handlers",
    "EchoHandler": "handlers",
    "LineHandler": "handlers",
    "LineTooLong": "errors",
    "OffloadRefused": "errors",
    "ServerStats": "observe.stats",
    "ServerStopping": "errors",
    "StopReport": "report",
    "Survivor": "report",
    "ThreadedMixIn": "mixin",
    "ThreadedTCPServer": "server",
    "ThreadedUnixStreamServer": "server",
    "WorkerDied": "errors",
    "WorkerProcesses": "offloading.initializing",
    "WorkerThreads": "offloading.threads",
    "current_client": "clients.threads",
}

if TYPE_CHECKING:
    from .clients.client import Client
    from .clients.threads import current_client
    from .errors import LineTooLong, OffloadRefused, ServerStopping, WorkerDied
    from .handlers import ClientHandler, EchoHandler, LineHandler
    from .mixin import ThreadedMixIn
    from .observe.stats import ServerStats
    from .offloading.initializing import WorkerProcesses
    from .offloading.threads import WorkerThreads
    from .report import StopReport, Survivor
    from .server import ThreadedTCPServer, ThreadedUnixStreamServer
else:
    def __getattr__(name):
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
