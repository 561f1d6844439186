"""The exceptions of this package."""
from __future__ import annotations


class ServerStopping(RuntimeError):
    """Raised by an offloaded call that a stop has cancelled, and by every call that is made after the stop."""


class OffloadRefused(RuntimeError):
    """Raised by ``offload`` at the limit of calls that run or wait, if ``at_offload_limit`` is ``"refuse"``."""


class WorkerDied(RuntimeError):
    """Raised if a worker ends in the middle of a call, or as it starts: killed, out of memory, or crashed.

    The worker is the server's own process, or one of an executor's.
    """


class LineTooLong(ValueError):
    """Raised if a client sends a line of more than ``max_line`` bytes, or a message above ``receive_until``'s limit."""


class StreamEnded(EOFError):
    """What ``receive_exactly`` and ``receive_until`` raise if the stream ends ahead of the message's end."""


class ReceiveTimeout(TimeoutError):
    """What ``receive_exactly`` and ``receive_until`` raise if the time for a message is up."""
