"""A threaded TCP server that stops, survives and computes: socketserver's, with a registry of its clients."""
from .handlers import ClientHandler, EchoHandler, LineHandler, LineTooLong
from .observe.stats import ServerStats
from .registry import Client
from .server import ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer
from .stopping import StopReport, Survivor
from .threads import current_client

__all__ = [
    "Client",
    "ClientHandler",
    "EchoHandler",
    "LineHandler",
    "LineTooLong",
    "ServerStats",
    "StopReport",
    "Survivor",
    "ThreadedMixIn",
    "ThreadedTCPServer",
    "ThreadedUnixStreamServer",
    "current_client",
]
