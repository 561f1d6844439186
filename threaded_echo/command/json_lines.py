"""Log records as JSON, an object in a line."""
from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

from ..observe.logs import about
from ..transport.listeners import show_address


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object in one line of printable ASCII.

    Its members: ``time`` (ISO 8601, UTC), ``level``, ``event``, ``client`` (its number) and ``address`` (as people
    write it), each of these three ``null`` if the record has none; ``message``. ``exception``, a traceback, and
    ``stack`` are there only if the record has them. *Thread safety*: any thread.
    """

    def format(self, record: logging.LogRecord) -> str:
        address = getattr(record, "address", None)
        members: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "event": getattr(record, "event", None),
            "client": getattr(record, "client", None),
            "address": show_address(address) if address else None,
            "message": record.getMessage(),
        }
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            members["stack"] = self.formatStack(record.stack_info)
        return json.dumps({name: _clean(value) for name, value in members.items()})

    def line(self, level: int, event: str, message: str, *arguments: object) -> str:
        """Format a line for which there is no record."""
        record = logging.LogRecord("threaded_echo", level, __file__, 0, message, arguments, None)
        vars(record).update(about(None, event))
        return self.format(record)


def _clean(value: object) -> object:
    """Return a number, ``None``, or text; what a program has put into a record is shown as it is.

    Escapes what is no Unicode text, such as what stands for the bytes of a file's name: not every reader takes that.
    """
    if value is None or isinstance(value, int):
        return value
    return (value if isinstance(value, str) else repr(value)).encode(errors="backslashreplace").decode()
