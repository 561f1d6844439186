"""The table of a running server, drawn with rich (the extra ``live``).

It is made of lines of a known width, which rich draws in a tenth of the time that its own tables take. Whatever comes
from a client is text without markup, its control characters escaped.
"""
from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .logs import printable
from .watching import Look, Row

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"

_TOTALS, _BARS, _HEADER = 3, 4, 2  # lines: the title and totals; bars and a blank one; a blank one and the header
_TALL = 16  # lines of a terminal that has room for bars
_NOTES = 3  # the most lines of the log below the rows
_LEAST_MESSAGE = 16  # columns; if there are fewer, other columns are left out, in this order:
_LEFT_OUT = ("age", "out", "in", "state", "rate", "idle")

_STATES = {"accepted": "dim", "handshaking": "cyan", "computing": "yellow", "disconnecting": "red", "gone": "dim"}


def require() -> None:
    """Import rich. Raises ImportError, which says how to install it."""
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ImportError("--live needs the package rich (the extra \"live\"): python3 -m pip install rich") from error


class Table:
    """Draws looks at a server as frames of a terminal. ``encoding``: that of the terminal."""

    def __init__(self, title: str, encoding: str = "utf-8") -> None:
        self._title = title
        self._encoding = encoding
        try:
            (_BLOCKS + "…").encode(encoding)
            self._blocks, self._end = _BLOCKS, "…"
        except UnicodeError:
            self._blocks, self._end = _ASCII_BLOCKS, "~"

    def most_rows(self, height: int, notes: Sequence[str]) -> int:
        """Return how many lines there are for clients, one at least, if there are so many notes."""
        bars = _BARS if height >= _TALL else 0
        return max(1, height - _TOTALS - bars - _HEADER - len(_last(notes, height)))

    def frame(self, look: Look, notes: Sequence[str], width: int, height: int) -> str:
        """Return what a terminal of that size has to be sent; it fills the screen. ``notes``: lines of the log."""
        from rich.console import Console
        from rich.screen import Screen
        console = Console(file=io.StringIO(), force_terminal=True, legacy_windows=False, width=width, height=height,
                          highlight=False, markup=False, emoji=False)
        with console.capture() as capture:
            console.print(Screen(self.lines(look, notes, width, height)), end="")
        return capture.get()

    def lines(self, look: Look, notes: Sequence[str], width: int, height: int) -> Group:
        """Return the lines of a frame, for rich."""
        from rich.console import Group
        from rich.text import Text
        lines = [self._fit(self._title, f"up {_time(look.stats.seconds_up)}", width, "bold reverse")]
        lines += [Text(self._cut(text, width)) for text in _totals(look)]
        if height >= _TALL:
            lines += [Text(), *self._bars(look, width)]
        lines += [Text(), *self._rows(look.rows, width)]
        if look.hidden:
            lines.append(Text(self._cut(f"and {look.hidden:,} more, silent for longer", width), style="dim"))
        lines += [Text(self._cut(self._clean(note), width), style="yellow") for note in _last(notes, height)]
        return Group(*lines)

    def _clean(self, text: str) -> str:
        """Escape what would control the terminal, and what it cannot show."""
        return printable(text).encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _cut(self, text: str, width: int) -> str:
        """Cut a text to so many columns, and say so by its end."""
        from rich.cells import cell_len, set_cell_size
        if cell_len(text) <= width:
            return text
        return set_cell_size(text, width - 1) + self._end if width > 1 else set_cell_size(text, width)

    def _fit(self, left: str, right: str, width: int, style: str) -> Text:
        """Put two texts at the ends of a line."""
        from rich.cells import cell_len
        from rich.text import Text
        left = self._cut(left, max(0, width - len(right) - 3))
        gap = max(0, width - cell_len(left) - len(right) - 2)
        return Text(self._cut(f" {left}{' ' * gap}{right} ", width), style=style)

    def _bars(self, look: Look, width: int) -> list[Text]:
        """Draw the last minute: a cell for each second."""
        from rich.text import Text
        logged = f"{sum(look.messages):,} logged in a minute"
        if look.left_out:
            logged += f", {look.left_out:,} more not"
        histories = [("clients", look.clients, f"{max(look.clients, default=0):,} at most", "green"),
                     ("messages", look.messages, logged, "cyan"),
                     ("bytes", look.traffic, f"{_size(sum(look.traffic))} in a minute", "magenta")]
        cells = max(1, min(60, width - 12 - max(len(text) for _, _, text, _ in histories)))
        lines = []
        for name, values, text, style in histories:
            line = Text(f"{name:<9}")
            line.append(self._bar(values[-cells:], cells), style)
            line.append(f"  {text}")
            line.truncate(width)
            lines.append(line)
        return lines

    def _bar(self, values: Sequence[int], cells: int) -> str:
        blocks, most = self._blocks, max(values, default=0) or 1
        # Whatever is more than nothing is seen.
        return "".join(blocks[-(-value * (len(blocks) - 1) // most)] for value in values).rjust(cells)

    def _rows(self, rows: Sequence[Row], width: int) -> list[Text]:
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text
        if not rows:
            return [Text("no clients", style="dim")]
        columns = {"no": [str(row.number) for row in rows],
                   "address": [self._cut(self._clean(row.address), 32) for row in rows],
                   "state": [row.state for row in rows],
                   "age": [_time(row.age) for row in rows],
                   "idle": [_time(row.idle) for row in rows],
                   "in": [_size(row.received) for row in rows],
                   "out": [_size(row.sent) for row in rows],
                   "rate": [f"{_size(row.rate)}/s" if row.rate is not None else "-" for row in rows]}
        widths = {name: max(map(cell_len, (name, *cells))) for name, cells in columns.items()}
        for name in _LEFT_OUT:
            if sum(widths.values()) + 2 * len(widths) + _LEAST_MESSAGE > width:
                del widths[name], columns[name]
        places = [(name, widths[name], columns[name]) for name in columns]
        header = "  ".join(_aligned(name, size, name) for name, size, _ in places)
        lines = [Text(set_cell_size(self._cut(f"{header}  last message", width), width), style="bold underline")]
        for index, row in enumerate(rows):
            line = Text()
            for name, size, cells in places:
                style = _STATES.get(row.state, "") if name == "state" else "bold" if name == "no" else ""
                line.append(_aligned(cells[index], size, name) + "  ", style)
            line.append(self._cut(self._clean(row.message), max(1, width - cell_len(line.plain))))
            line.truncate(width)
            lines.append(line)
        return lines


def _last(notes: Sequence[str], height: int) -> Sequence[str]:
    """Return the notes for which there is room: they leave most of the lines to the clients."""
    return notes[len(notes) - min(len(notes), _NOTES, height // 8):]


def _totals(look: Look) -> list[str]:
    """Say in two lines what the server has done so far."""
    stats = look.stats
    counts = [f"{stats.live:,} live", f"{stats.peak:,} at most", f"{stats.accepted:,} accepted"]
    ended = sum(stats.disconnected.values())
    counts += [f"{count:,} {word}" for count, word in (
        (stats.refused, "refused"), (stats.failed, "failed"), (ended, "disconnected")) if count]
    others = [f"{_size(stats.bytes_received)} in", f"{_size(stats.bytes_sent)} out",
              f"threads: {stats.threads_busy:,} busy, {stats.threads_idle:,} idle"]
    if stats.offloads_running or stats.offloads_waiting or stats.offloads_done or stats.offloads_failed:
        others.append(f"offloads: {stats.offloads_running:,} running, {stats.offloads_waiting:,} waiting")
    return [f"clients  {'   '.join(counts)}", f"bytes    {'   '.join(others)}"]


def _aligned(text: str, width: int, column: str) -> str:
    """Fill a cell with blanks: words begin at its left end, figures end at its right one."""
    from rich.cells import cell_len
    blanks = " " * (width - cell_len(text))
    return text + blanks if column in ("address", "state") else blanks + text


def _size(amount: float | None) -> str:
    """Show a number of bytes in at most five characters; what is not known is ``-``."""
    if amount is None:
        return "-"
    if amount < 1000:
        return f"{amount:.0f}"
    for unit in "kMGTP":
        amount /= 1000
        if amount < 999.5:
            return f"{amount:.1f}{unit}" if amount < 99.95 else f"{amount:.0f}{unit}"
    return f"{amount:.0f}P"


def _time(seconds: float | None) -> str:
    """Show a time in few characters; what is not known is ``-``."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{hours // 24}d{hours % 24:02}h"
