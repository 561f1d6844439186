"""The table as a terminal gets it: what is in it, what is left out for want of room, and what never gets through."""
from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from threaded_echo import ThreadedTCPServer
from threaded_echo.observe import live
from threaded_echo.observe.live import Table
from threaded_echo.observe.stats import Counts
from threaded_echo.observe.watching import Look, Row

from ..benchmarks import live_picture
from ..tools import LOOPBACK, Echo

ROW = Row(7, "192.0.2.7:51514", "serving", 75.0, 0.25, 1_250_000, 999, 12_345.0, "hello")


@pytest.fixture
def look():
    """A look at a server with one client."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        stats = replace(server.stats(), live=1, peak=8, accepted=1204, bytes_received=1_250_000, bytes_sent=999,
                        threads_busy=1, threads_idle=2, seconds_up=4000.0)
    return Look(stats, (ROW,), 0, (1, 2, 8), (0, 4, 1), (), 0)


def frame(look, width=100, height=30, notes=(), encoding="utf-8"):
    """Return the lines of a frame without their styles; check that they fill the screen, and nothing more."""
    text = Table("threaded_echo on 127.0.0.1:9999", encoding).frame(look, notes, width, height)
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).split("\n")
    assert len(lines) == height and all(cell_len(line) == width for line in lines)
    assert all(line.isprintable() for line in lines)
    text.encode(encoding)
    return [line.rstrip() for line in lines]


def test_frame_has_totals_bars_and_a_row_for_each_client(look):
    """On a screen of the usual size."""
    lines = frame(look)
    assert lines[0] == " threaded_echo on 127.0.0.1:9999" + " " * 57 + "up 1:06:40"
    assert lines[1:3] == ["clients  1 live   8 at most   1,204 accepted",
                          "bytes    1.2M in   999 out   threads: 1 busy, 2 idle"]
    assert lines[4:7] == ["clients  " + " " * 57 + "▁▂█  8 at most",
                          "messages " + " " * 58 + "█▂  5 logged in a minute",
                          "bytes    " + " " * 60 + "  0 in a minute"]
    assert lines[8:10] == ["no  address          state     age  idle    in  out     rate  last message",
                           " 7  192.0.2.7:51514  serving  1:15  0.2s  1.2M  999  12.3k/s  hello"]
    assert not any(lines[10:])


def test_what_is_not_usual_is_told_only_if_it_has_happened(look):
    """Refused and failed clients, offloaded calls, and messages that were not logged."""
    stats = replace(look.stats, refused=1, failed=2, disconnected=Counts(idle=2, stop=1), offloads_running=3)
    lines = frame(replace(look, stats=stats, left_out=1234))
    assert lines[1].endswith("1,204 accepted   1 refused   2 failed   3 disconnected")
    assert lines[2].endswith("2 idle   offloads: 3 running, 0 waiting")
    assert lines[5].endswith("5 logged in a minute, 1,234 more not")


def test_clients_that_do_not_fit_are_counted(look):
    """The table says how many lines there are for clients; a remark takes one."""
    table = Table("")
    most = table.most_rows(30, ["note"])
    rows = tuple(replace(ROW, number=number) for number in range(1, most))
    lines = frame(replace(look, rows=rows, hidden=970), notes=["note"])
    assert lines[-2:] == ["and 970 more, silent for longer", "note"]
    assert lines[-3].startswith(f"{most - 1} ")


def test_no_clients_are_told():
    """There is no header without rows."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        lines = frame(Look(server.stats(), (), 0, (), (), (), 0))
    assert lines[8] == "no clients" and lines[2] == "bytes    0 in   0 out   threads: 0 busy, 0 idle"


@pytest.mark.parametrize("message, shown", [
    ("\x1b[2J\x07\r\n", r"\x1b[2J\x07\r\n"), ("[red]:smile:[/]", "[red]:smile:[/]"), ("\u202eabc", r"\u202eabc"),
    ("漢字" * 9, "漢字" * 4 + " …"), ("x" * 50, "x" * 17 + "…"), ("", "")])
def test_message_drives_neither_the_terminal_nor_rich(look, message, shown):
    """What is not printable is escaped, markup is text, and what is too long is cut at the terminal's width."""
    lines = frame(replace(look, rows=(replace(ROW, message=message),)), width=80)
    assert lines[9].removeprefix(" 7  192.0.2.7:51514  serving  1:15  0.2s  1.2M  999  12.3k/s").strip() == shown


def test_address_and_note_drive_neither(look):
    """The name of a Unix socket is the client's choice, and an error may quote what it has sent."""
    lines = frame(replace(look, rows=(replace(ROW, address="/tmp/\x1b[2J[b]"),)), notes=["[b]\x1b]0;title\x07"])
    assert r"/tmp/\x1b[2J[b]" in lines[9] and lines[10] == r"[b]\x1b]0;title\x07"


@pytest.mark.parametrize("width, header", [
    (76, "no  address          state    idle    in  out     rate  last message"),
    (66, "no  address          state    idle     rate  last message"),
    (50, "no  address          idle  last message"),
    (30, "no  address          last mes…")])
def test_columns_that_do_not_fit_are_left_out(look, width, header):
    """The message has room in any case; on a very narrow terminal lines are cut."""
    lines = frame(look, width=width)
    assert lines[8] == header
    assert all(lines[:3])


@pytest.mark.parametrize("width, height", [(1, 1), (2, 3), (5, 40), (300, 5), (20, 16)])
def test_odd_sizes_are_filled(look, width, height):
    """However little there is to see."""
    frame(replace(look, hidden=3, stats=replace(look.stats, refused=1)), width, height, ["note"] * 5)


@pytest.mark.parametrize("height, last", [(30, ["c", "d", "e"]), (16, ["d", "e"]), (8, ["e"]), (7, ["hello"])])
def test_notes_leave_most_of_the_lines_to_the_clients(look, height, last):
    """The last ones are shown."""
    lines = [line for line in frame(look, height=height, notes=list("abcde")) if line]
    assert [line[-len(text):] for line, text in zip(lines[-len(last):], last)] == last


def test_terminal_of_ascii_gets_ascii(look):
    """Bars are of other characters, and what it cannot show is escaped."""
    lines = frame(replace(look, rows=(replace(ROW, message="café" * 9),)), encoding="ascii", width=90)
    assert lines[4].endswith(" .:@  8 at most")
    assert lines[9].endswith(r"caf\xe9caf\xe9caf\xe9caf\xe~")


@pytest.mark.parametrize("amount, shown", [
    (None, "-"), (0, "0"), (999.4, "999"), (1000, "1.0k"), (99_949, "99.9k"), (99_950, "100k"), (999_499, "999k"),
    (999_500, "1.0M"), (5e12, "5.0T"), (2e15, "2.0P"), (5e18, "5000P")])
def test_size_is_short(amount, shown):
    """In at most five characters, as far as there are bytes."""
    assert live._size(amount) == shown


@pytest.mark.parametrize("seconds, shown", [
    (None, "-"), (0.0, "0.0s"), (59.94, "59.9s"), (59.96, "0:59"), (60.0, "1:00"), (3599.0, "59:59"),
    (3600.0, "1:00:00"), (86399.0, "23:59:59"), (86400.0, "1d00h"), (900_000.0, "10d10h")])
def test_time_is_short(seconds, shown):
    """With the two greatest units that matter."""
    assert live._time(seconds) == shown


def test_rich_that_is_missing_is_an_error_that_says_what_to_do(monkeypatch):
    """Nothing else needs it."""
    live.require()
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match='--live needs the package rich \\(the extra "live"\\): python3 -m pip'):
        live.require()


def test_picture_of_the_readme_is_that_of_the_table(tmp_path):
    """``python -m tests.benchmarks.live_picture`` draws it anew. Its text is compared: rich may draw it differently."""
    live_picture.draw(tmp_path / "picture.svg")
    drawn, kept = ("".join(re.findall(">([^<>]*)</text>", path.read_text(encoding="utf-8")))
                   for path in (tmp_path / "picture.svg", live_picture.PICTURE))
    assert drawn == kept and "hello" in drawn
    assert live_picture.PICTURE.name in Path(live_picture.__file__).parents[2].joinpath("README.rst").read_text()
