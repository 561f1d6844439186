"""What clients have said last, and how much was logged of what they say: kept from the log's own records."""
from __future__ import annotations

import logging

MOST_CLIENTS = 20_000
"""The most clients whose last message is kept; beyond that, the one that has been silent the longest loses it."""

MOST_CHARACTERS = 500
"""The most that is kept of a message."""


class RecentMessages(logging.Handler):
    """Keeps each client's last message, and counts messages. For the logger ``threaded_echo``.

    A message is a record whose ``event`` is ``"message"``, about the client whose number ``client`` is; `EchoHandler`
    logs them, and a program may log such records, too. So there are at most ``logs_per_client`` of a client in ten
    seconds. Those that were left out are counted when their number is logged: with the client's next message after that
    time, or when it goes. *Thread safety*: any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        # Changed with the handler's lock, which logging holds around emit:
        self._last: dict[int, str] = {}  # by client number, the one that has spoken last at the end
        self._logged = self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text if it is a message."""
        event = getattr(record, "event", None)
        number = getattr(record, "client", None)
        if event == "omitted":
            self._left_out += getattr(record, "count", 0)
        if event != "message" or not isinstance(number, int):
            return
        try:
            text = record.getMessage().removeprefix(f"client {number}: ")[:MOST_CHARACTERS]
        except Exception:  # a wrong call of the logger, in a program's own handler
            self.handleError(record)
            return
        self._logged += 1
        self._last.pop(number, None)
        self._last[number] = text
        if len(self._last) > MOST_CLIENTS:
            del self._last[next(iter(self._last))]

    def last_of(self, number: int) -> str:
        """Return a client's last message; empty if it has none."""
        return self._last.get(number, "")

    def counts(self) -> tuple[int, int]:
        """Return how many messages were logged, and how many are known to have been left out."""
        return self._logged, self._left_out

    def forget(self, number: int) -> None:
        """Forget a client that has gone."""
        self.acquire()
        try:
            self._last.pop(number, None)
        finally:
            self.release()

    def numbers(self) -> list[int]:
        """Return the numbers of the clients whose message is kept."""
        return list(self._last.copy())
