"""A signal whose handler broadcasts, at every step of a broadcast and of a send: each line that the thread runs."""
from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from threaded_echo import ClientHandler
from threaded_echo.clients import broadcast

from ..test_every_step import Steps, each_step, obeyed
from ..tools import running, until
from .slow import connect_slowly, frame, frames, hold_little


def to_all(server: Any, client: Any) -> None:
    """Broadcast more than the kernel takes."""
    assert server.broadcast(frame(1, 1, 100_000)) == ()


def to_one(server: Any, client: Any) -> None:
    """Send a little, and wait until that is taken."""
    client.send(frame(1, 1, 100))


@pytest.mark.parametrize("act, waits", [(to_all, False), (to_all, True), (to_one, True)])
def test_broadcast_in_a_signal_handler_is_whole_and_nothing_is_lost(
        serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, act: Callable[[Any, Any], None],
        waits: bool) -> None:
    """The sender may have to be started by the one or the other; ``waits``: a message waits already."""
    monkeypatch.setattr(broadcast, "STAY", 0.01)  # so that each step has a sender of its own
    server = hold_little(serve(ClientHandler))
    expected = [(1, 0), (1, 1)] if waits else [(1, 1)]

    def once(at: int) -> int:
        with connect_slowly(server) as connection, ExitStack() as reading:
            client = max(server.clients.items())[1]
            got: list[tuple[int, int]] = []
            missed: list[tuple[int, ...]] = []

            def read() -> None:
                messages = frames(connection)
                got.extend(next(messages) for _ in range(len(expected) + 1))

            def act_in_steps() -> int:
                with Steps(at, lambda: signal.raise_signal(signal.SIGUSR1)) as steps:
                    act(server, client)
                if not missed:  # there are no more steps
                    signal.raise_signal(signal.SIGUSR1)
                return steps.count

            if waits:
                assert server.broadcast(frame(1, 0, 50_000)) == ()
            with obeyed(signal.SIGUSR1, lambda *_: missed.append(server.broadcast(frame(2, 0, 100)))):
                if act is to_one:
                    reading.enter_context(running(read))
                count = act_in_steps()
            if act is not to_one:
                reading.enter_context(running(read))
            reading.close()
            assert missed == [()]
            assert sorted(got) == [*expected, (2, 0)] and [one for one in got if one[0] == 1] == expected
        until(lambda: not server.clients)
        return count

    assert each_step(once) > 5
