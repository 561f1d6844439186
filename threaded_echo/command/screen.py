"""The terminal, which the table and the lines of the log share.

Guarantees:

- The table has the terminal's alternate screen: what was there before is there again afterwards, and below it the lines
  that were logged meanwhile, in their order. At most `MOST_HELD` of them are kept, the newest; the rest is counted.
- Nothing here waits for the terminal but the end of the table, and that for a moment. A frame is left out if the one
  before is not written yet, as when the terminal is stopped (Ctrl-S).
- While the process is stopped (Ctrl-Z), the terminal is as it is after the end.
- Each frame fills the screen, so that it also replaces what a handler has printed, and what was typed.
"""
from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

from ..observe.logs import printable
from .output import Writer

MOST_HELD = 1_000

_LEAVING = 1.0  # seconds for the terminal to take the end of the table

# The alternate screen; lines that are too long are cut, as some characters are wider than expected; no cursor.
_ENTER = "\x1b[?1049h\x1b[?7l\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[H\x1b[2J\x1b[?25h\x1b[?7h\x1b[?1049l"  # cleared first, for terminals without an alternate screen
_HOME = "\x1b[H"


class Screen:
    """Writes frames and lines. *Thread safety*: any thread.

    ``output`` and ``errors`` write to standard output and standard error. Lines are held while the table is shown;
    those of ``errors`` only if that is a terminal, too, and therefore the same one in all likelihood.
    """

    def __init__(self, output: Writer, errors: Writer, clock: Callable[[str], str] = time.strftime) -> None:
        self._output = output
        self._errors = errors
        self._clock = clock
        # Guards the fields below, and keeps lines in order. Re-entrant, for signal handlers that log. `_is_over` and
        # `_is_aside` are set without it, ahead of `_leave`: a frame is drawn before that, or not at all.
        self._lock = threading.RLock()
        self._is_shown = self._is_over = self._is_aside = False
        self._held: collections.deque[tuple[Writer, str]] = collections.deque()
        self._dropped = 0
        self._notes: collections.deque[str] = collections.deque(maxlen=3)

    def write(self, writer: Writer, line: str) -> None:
        """Write a line, or hold it while the table is shown; never waits."""
        with self._lock:
            if not self._is_shown:
                writer.write(line)
                return
            self._notes.append(f"{self._clock('%H:%M:%S')} {_shortened(line)}")
            if writer is self._errors and writer.size() is None:
                writer.write(line)
                return
            self._held.append((writer, line))
            if len(self._held) > MOST_HELD:
                self._held.popleft()
                self._dropped += 1

    @property
    def encoding(self) -> str:
        """The terminal's encoding."""
        return self._output.encoding

    def size(self) -> tuple[int, int] | None:
        """Return the columns and the lines of the terminal; ``None`` if there is none any more."""
        return self._output.size()

    def notes(self) -> list[str]:
        """Return what was logged last while the table was shown, a line each."""
        with self._lock:
            return list(self._notes)

    def draw(self, frame: str) -> None:
        """Show a frame, in place of the one before; not after `leave` or `step_aside`."""
        with self._lock:
            if self._is_over or self._is_aside or not self._output.wait_until_written(0):
                return
            enter = "" if self._is_shown else _ENTER
            self._is_shown = True
            # The line end that the writer adds moves a cursor that nobody sees.
            self._output.write(f"{enter}{_HOME}{frame}{_HOME}")

    def leave(self) -> None:
        """Show what was there before the table, and write the lines that were held. May be called again."""
        self._is_over = True
        self._leave()

    def step_aside(self) -> None:
        """Do as `leave`, until `step_back`. May be called in a signal handler."""
        self._is_aside = True
        self._leave()

    def step_back(self) -> None:
        """Allow frames again."""
        self._is_aside = False

    def _leave(self) -> None:
        with self._lock:
            if not self._is_shown:
                return
            self._is_shown = False
            held, dropped = list(self._held), self._dropped
            self._held.clear()
            self._dropped = 0
            first = [f"{dropped:,} lines were not kept"] if dropped else []
            # In one piece with the first line, or there would be an empty one.
            lines = first + [line for writer, line in held if writer is self._output]
            self._output.write(_LEAVE + "\n".join(lines))
        self._output.wait_until_written(_LEAVING)  # or the others might be written to the screen that is left
        errors = [line for writer, line in held if writer is self._errors]
        for line in errors:
            self._errors.write(line)
        if errors:
            self._errors.wait_until_written(_LEAVING)  # or a table that comes back might be written over them


def _shortened(text: str) -> str:
    """Return the first line; and of a traceback also the line with the exception, which follows the indented ones."""
    first, *rest = text.removeprefix("threaded_echo: ").rstrip().split("\n")
    if "Traceback (most recent call last):" in rest:
        indented = [number for number, line in enumerate(rest) if line.startswith("  ")]
        first = ": ".join((first, *rest[max(indented, default=0) + 1:][:1]))
    return printable(first)
