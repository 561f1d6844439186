"""A threaded TCP server that stops, survives and computes: socketserver's, with a registry of its clients."""
from .handlers import ClientHandler, EchoHandler, LineHandler, LineTooLong
from .observe.stats import ServerStats
from .offload import OffloadRefused, ServerStopping
from .registry import Client
from .server import ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer
from .stopping import StopReport, Survivor
from .threads import current_client
from .workers import WorkerDied

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
