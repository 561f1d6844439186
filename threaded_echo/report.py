"""What a stop reports: how many clients it has ended, and what is still running, with the lines where that is."""
from __future__ import annotations

import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .clients.client import Client
from .transport.listeners import show_address

_HERE = str(Path(__file__).parent)
_TRIES = 20  # to find a moment at which no other thread is running, a millisecond apart


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


def stacks_of(threads: list[threading.Thread | None]) -> dict[threading.Thread, tuple[str, ...]]:
    """Format the lines where each thread is; no entry for one that has none, or if they cannot be read now."""
    frames = _current_frames() if threads else {}
    return {thread: tuple(traceback.format_stack(frames[thread.ident])) for thread in threads
            if thread is not None and thread.ident in frames}


def _current_frames() -> dict[int, FrameType]:
    """Return where each thread is; an empty dict if that cannot be read safely.

    Without the GIL, a thread changes its frames while it runs, and reading them then can crash the interpreter (seen on
    3.13). Then they are read only at a moment when every other thread waits in the kernel, as a stuck handler mostly
    does; if there is none within some milliseconds, they are not.
    """
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        return sys._current_frames()
    for _ in range(_TRIES):
        if _all_others_wait():
            return sys._current_frames()
        time.sleep(0.001)
    return {}


def _all_others_wait() -> bool:
    """Return whether no other thread of this process is running (proc_pid_stat(5)); False if nothing tells."""
    try:
        for task in Path("/proc/self/task").iterdir():
            if int(task.name) != threading.get_native_id():
                if (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                    return False
        return True
    except OSError:  # a thread has ended meanwhile, or the platform has no such files
        return False


def own_frames(stack: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the frames ahead of the program's first own one: those of threading and of this package."""
    foreign = ("threading.py", "socketserver.py")
    for number, lines in enumerate(stack):
        place = lines.partition('"')[2].partition('"')[0]
        if not place.startswith(_HERE) and not place.endswith(foreign):
            return stack[number:]
    return stack
