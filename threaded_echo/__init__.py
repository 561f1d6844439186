"""A threaded TCP server that stops, survives and computes: socketserver's, with a registry of its clients."""
from .errors import LineTooLong, OffloadRefused, ServerStopping, WorkerDied
from .handlers import ClientHandler, EchoHandler, LineHandler
from .observe.stats import ServerStats
from .clients.client import Client
from .mixin import ThreadedMixIn
from .server import ThreadedTCPServer, ThreadedUnixStreamServer
from .report import StopReport, Survivor
from .clients.threads import current_client

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
    "current_client",
]
