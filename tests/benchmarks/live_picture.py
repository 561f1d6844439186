"""Draws the picture of ``--live`` that the README shows: ``python -m tests.benchmarks.live_picture [FILE]``.

The table is the package's own, of a server that does not exist, and rich makes the picture of it.
"""
from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.screen import Screen
from rich.terminal_theme import DIMMED_MONOKAI

from threaded_echo.observe.durations import DurationRecorder
from threaded_echo.observe.live import Table
from threaded_echo.observe.stats import Counts, ServerStats
from threaded_echo.observe.watching import Look, Row

PICTURE = Path(__file__).parent / "results" / "live_table.svg"

COLUMNS, LINES = 100, 18

ROWS = (
    Row(3, "192.0.2.17:51514", "serving", 2531.0, 0.2, 48_213, 48_213, 96.0, "temperature 21.4"),
    Row(8, "198.51.100.4:40022", "serving", 1904.0, 12.7, 1_204, 1_204, 0.0, "hello from the workshop"),
    Row(15, "[2001:db8::7]:60110", "computing", 811.4, 3.1, 15_020, 2_310_442, 0.0, "primes 4000000"),
    Row(16, "192.0.2.18:51520", "serving", 640.0, 0.1, 12_400, 12_400, 88.0, "temperature 19.8"),
    Row(21, "203.0.113.90:33710", "serving", 96.0, 41.0, 18, 18, 0.0, r"\x1b[2Jwho is there?"),
    Row(24, "127.0.0.1:58214", "serving", 58.3, 0.0, 81_402_113, 81_402_113, 9_120_400.0, "0000000000000000"),
    Row(25, "198.51.100.4:40310", "handshaking", 0.1, 0.1, 0, 0, None, ""),
)

NOTES = ["14:31:07 client 19: its handler has failed: ValueError: not a number: 'x'"]


def look() -> Look:
    """Make up what is seen."""
    none = DurationRecorder().read()
    stats = ServerStats(accepted=25, refused=1, live=7, peak=9, finished=17, failed=1, accept_errors=0,
                        bytes_received=84_120_933, bytes_sent=86_402_210, threads_busy=7, threads_idle=2,
                        offloads_running=1, offloads_waiting=0, offloads_done=31, offloads_failed=0, offload_wait=none,
                        offload_run=none, seconds_up=2614.0, disconnected=Counts(idle=2),
                        refused_by=Counts(handshake=1))
    clients = tuple(5 + (second > 8) + 2 * (second > 20) - (second > 35) - (second > 44) + (second > 58)
                    for second in range(60))
    messages = tuple((second * 7 % 5) + 3 * (second % 11 == 0) + 2 * (second > 40) for second in range(60))
    traffic = tuple(900 if second < 2 else 6_000_000 + second * 31_000 for second in range(60))
    return Look(stats, ROWS, 0, clients, messages, traffic, 0)


def draw(path: Path) -> None:
    """Write the picture."""
    console = Console(record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor", width=COLUMNS,
                      height=LINES, legacy_windows=False, highlight=False, _environ={})
    lines = Table("threaded_echo on 0.0.0.0:9999").lines(look(), NOTES, COLUMNS, LINES)
    console.print(Screen(lines), end="")
    picture = console.export_svg(title="python3 -m threaded_echo --live", theme=DIMMED_MONOKAI,
                                 unique_id="threaded-echo-live")
    # A picture must not load fonts from elsewhere: any font of a fixed width does.
    picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    path.write_text(f"{picture}\n", encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
