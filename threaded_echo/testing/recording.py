"""A handler for tests of clients: it records what they send, and replies from a script."""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Literal

from ..errors import StreamEnded
from ..handlers import ClientHandler


class _HangUp(Enum):
    HANG_UP = "HANG_UP"


HANG_UP: Final = _HangUp.HANG_UP
"""Disconnects the client if a script has it in place of a reply."""

_BYTES = (bytes, bytearray, memoryview)

Reply = bytes | Literal[_HangUp.HANG_UP] | None
Script = Reply | Sequence[Reply] | Mapping[bytes, Reply] | Callable[[bytes], Reply]


class Recorder:
    r"""Stands for a handler class, records the messages of each client, and replies from ``script``, which is

    - ``None``: there are no replies;
    - bytes: the reply to each message;
    - a sequence: the replies to the first message, the second one and so on, counted over all clients;
    - a mapping: message to reply;
    - a callable that is called with each message in the client's thread, and returns the reply.

    A reply is bytes, ``None`` for no reply, or `HANG_UP`. A message for which a sequence or a mapping has no reply is
    an AssertionError in the handler, and so fails the test.

    ``end``: ends each message and each reply; neither the script nor the record has it. With ``b"\n"``, a message may
    also end with ``b"\r\n"``. The last message needs no end if the client ends its stream. ``None``: a message is a
    chunk, as it arrives, and replies are sent as they are. ``receive``: a function that receives the next message for
    a protocol with other ends; it is called with the handler, of which it may use ``receive_exactly`` and
    ``receive_until``, and replies are sent as they are. ``greeting``: what is sent as it is to each client that
    connects.

    Give each of several servers a recorder of its own: clients of two servers may have the same number. *Thread
    safety*: any thread, at any time.
    """

    def __init__(self, script: Script = None, *, end: bytes | None = b"\n",
                 receive: Callable[[ClientHandler], bytes] | None = None, greeting: bytes = b"") -> None:
        if end is not None and (not isinstance(end, bytes) or not end):
            raise ValueError(f"end must be bytes, and not empty, or None, not {end!r}")
        if isinstance(script, str) or not (script is None or script is HANG_UP or callable(script)
                                           or isinstance(script, (Sequence, Mapping, *_BYTES))):
            raise TypeError(f"the script must be bytes, a sequence, a mapping or a callable, not {script!r}")
        self.script = script
        self.end = None if receive is not None else end
        self.receive = receive
        self.greeting = greeting
        self._changed = threading.Condition()  # guards what follows
        self._messages: list[bytes] = []
        self._received: dict[int, list[bytes]] = {}

    def __call__(self, request: Any, client_address: Any, server: Any) -> ClientHandler:
        """Serve a client, as making a handler does."""
        return _RecordingHandler(self, request, client_address, server)

    @property
    def received(self) -> dict[int, list[bytes]]:
        """The messages of each client that has connected, by the number of the client: a snapshot."""
        with self._changed:
            return {number: list(messages) for number, messages in self._received.items()}

    @property
    def messages(self) -> list[bytes]:
        """The messages of all clients, in the order in which they came: a snapshot."""
        with self._changed:
            return list(self._messages)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[bytes]:
        """Wait until so many messages have come in all, and return `messages`.

        It is for messages that get no reply. Raises TimeoutError after ``timeout`` seconds, with the messages so far.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._messages) >= count, timeout):
                raise TimeoutError(f"{len(self._messages)} of {count} messages have come within {timeout} seconds: "
                                   f"{self._messages!r}")
            return list(self._messages)

    def _welcome(self, number: int) -> None:
        """Begin the record of a client."""
        with self._changed:
            self._received.setdefault(number, [])

    def _take(self, number: int, message: bytes) -> Any:
        """Record a message, and return the reply."""
        with self._changed:
            count = len(self._messages)
            self._messages.append(message)
            self._received[number].append(message)
            self._changed.notify_all()
        script: Any = self.script
        if callable(script):
            return script(message)
        if isinstance(script, Mapping):
            with suppress(KeyError):
                return script[message]
        elif not isinstance(script, Sequence) or isinstance(script, _BYTES):
            return script
        elif count < len(script):
            return script[count]
        raise AssertionError(f"client {number} has sent {message!r}, for which the script has no reply")


class _RecordingHandler(ClientHandler):
    """Records one client."""

    def __init__(self, recorder: Recorder, request: Any, client_address: Any, server: Any) -> None:
        self._recorder = recorder
        self._rest = b""  # of a message whose end has not come yet
        super().__init__(request, client_address, server)

    def handle(self) -> None:
        """Record each message, and reply to it."""
        recorder = self._recorder
        recorder._welcome(self.client.number)
        if recorder.greeting:
            self.send(recorder.greeting)
        if recorder.receive is not None:
            while True:  # until it raises EOFError
                self._take(recorder.receive(self))
        super().handle()
        if self._rest and self.client._has_ended_its_stream():
            self._take(self._rest)

    def process(self, data: bytes) -> None:
        """Split a chunk into messages."""
        end = self._recorder.end
        if end is None:
            self._take(data)
        else:
            *messages, self._rest = (self._rest + data).split(end)
            for message in messages:
                self._take(message.removesuffix(b"\r") if end == b"\n" else message)

    def _take(self, message: bytes) -> None:
        """Record a message, then reply to it."""
        reply = self._recorder._take(self.client.number, message)
        if reply is HANG_UP:
            self.client.disconnect()
            raise StreamEnded("the script hangs up")  # which is no failure
        elif reply is not None:
            try:
                memoryview(reply)
            except TypeError:
                raise TypeError(f"the script's reply to {message!r} must be bytes, None or HANG_UP, not {reply!r}"
                                ) from None
            self.send(bytes(reply) + (self._recorder.end or b""))
