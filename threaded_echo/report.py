"""What a stop reports: how many clients it has ended, and what is still running, with the lines where that is."""
from __future__ import annotations

import threading
from dataclasses import dataclass, field

from .clients.client import Client
from .stacks import own_frames
from .transport.listeners import show_address


@dataclass(frozen=True, slots=True)
class Survivor:
    """A handler, or another thread, that was still running when a stop gave up on it. ``str()`` of it is for people.

    - ``client``: its `Client`; ``None`` for a thread that serves none, such as the serving thread in a program's hook.
    - ``stack``: the lines that it was running, outermost call first, as strings.
    - ``thread``: its `threading.Thread`, if it has one.
    """

    client: Client | None
    stack: tuple[str, ...]
    thread: threading.Thread | None = field(default=None, compare=False)

    def __str__(self) -> str:
        name = f"client {self.client.number}" if self.client else f"thread {self.thread.name if self.thread else '?'}"
        where = f", from {show_address(self.client.address)}" if self.client and self.client.address else ""
        return f"{name}{where}:\n{''.join(own_frames(self.stack))}".rstrip()


@dataclass(frozen=True, slots=True)
class StopReport:
    """What a stop did. ``str()`` of it is for people.

    - ``drained``: clients whose handlers ended by themselves after they were woken.
    - ``forced``: clients whose handlers ended after their connections were cut.
    - ``survivors``: a tuple of `Survivor`: what was still running when the stop gave up on it.
    - ``seconds``: how long the stop took.
    """

    drained: int
    forced: int
    survivors: tuple[Survivor, ...]
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether there are no survivors."""
        return not self.survivors

    def __str__(self) -> str:
        text = (f"stopped in {self.seconds:.3f} s: {self.drained} drained, {self.forced} forced, "
                f"{len(self.survivors)} still running")
        return "\n".join((text, *map(str, self.survivors)))
