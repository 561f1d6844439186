"""The terminal that the table and the log share: what is written when, and what is held."""
from __future__ import annotations

import pytest

from threaded_echo.command import screen
from threaded_echo.command.screen import Screen

ENTER, LEAVE, HOME = "\x1b[?1049h\x1b[?7l\x1b[?25l\x1b[2J", "\x1b[H\x1b[2J\x1b[?25h\x1b[?7h\x1b[?1049l", "\x1b[H"

TRACEBACK = """threaded_echo: client 3: its handler has failed
Traceback (most recent call last):
  File "program.py", line 1, in process
    raise ValueError(line)
ValueError: two
lines"""


class Stream:
    """Stands for a writer; all of them write to one list."""

    encoding = "utf-8"

    def __init__(self, name, written, size):
        self.name, self.written, self.columns_and_lines, self.is_behind = name, written, size, False

    def write(self, text):
        """Keep it."""
        self.written.append((self.name, text))

    def wait_until_written(self, seconds):
        """Tell what the test has set."""
        if seconds:
            self.written.append((self.name, "waited"))
        return not self.is_behind

    def size(self):
        """Tell what the test has set."""
        return self.columns_and_lines


@pytest.fixture
def made():
    """A screen, standard output and standard error on one terminal, and what is written to it."""
    written = []
    output, errors = Stream("output", written, (80, 24)), Stream("errors", written, (80, 24))
    return Screen(output, errors, lambda form: "12:00"), output, errors, written


def test_lines_are_written_at_once_while_there_is_no_table(made):
    """And nothing else is: the end of a table that was never shown is nothing."""
    shared, output, errors, written = made
    shared.write(output, "one")
    shared.write(errors, "two")
    shared.leave()
    assert written == [("output", "one"), ("errors", "two")] and shared.notes() == []
    assert (shared.size(), shared.encoding) == ((80, 24), "utf-8")


def test_frames_replace_each_other_and_the_end_restores_the_terminal(made):
    """The lines that were logged meanwhile follow, and errors when the terminal has taken that."""
    shared, output, errors, written = made
    shared.draw("frame 1")
    shared.write(output, "stopping: 0 clients live")
    shared.write(errors, TRACEBACK)
    shared.write(output, "stopped")
    shared.draw("frame 2")
    assert shared.notes() == ["12:00 stopping: 0 clients live",
                              "12:00 client 3: its handler has failed: ValueError: two", "12:00 stopped"]
    shared.leave()
    shared.leave()
    shared.draw("frame 3")  # of a thread that is late
    shared.write(output, "after")
    assert written == [("output", f"{ENTER}{HOME}frame 1{HOME}"), ("output", f"{HOME}frame 2{HOME}"),
                       ("output", f"{LEAVE}stopping: 0 clients live\nstopped"), ("output", "waited"),
                       ("errors", TRACEBACK), ("errors", "waited"), ("output", "after")]


def test_frames_come_again_after_the_terminal_was_given_back(made):
    """As while the process is stopped: the lines so far are written, and later ones at the next end."""
    shared, output, _, written = made
    shared.draw("frame 1")
    shared.write(output, "one")
    shared.step_aside()
    shared.draw("frame 2")
    shared.write(output, "at once")
    shared.step_back()
    shared.draw("frame 3")
    shared.write(output, "two")
    shared.leave()
    shared.step_aside()
    shared.step_back()
    shared.draw("frame 4")
    assert written == [("output", f"{ENTER}{HOME}frame 1{HOME}"), ("output", f"{LEAVE}one"), ("output", "waited"),
                       ("output", "at once"), ("output", f"{ENTER}{HOME}frame 3{HOME}"), ("output", f"{LEAVE}two"),
                       ("output", "waited")]


def test_errors_that_go_elsewhere_are_not_held(made):
    """They are noted all the same."""
    shared, _, errors, written = made
    shared.draw("frame")
    errors.columns_and_lines = None
    shared.write(errors, "threaded_echo: \x1b[2J\nmore")
    assert written[1:] == [("errors", "threaded_echo: \x1b[2J\nmore")]
    assert shared.notes() == ["12:00 \\x1b[2J"]


def test_frame_is_left_out_while_the_one_before_is_not_written(made):
    """A terminal that is stopped, and goes on later, shows no old frames."""
    shared, output, _, written = made
    output.is_behind = True
    shared.draw("frame")
    assert not written
    output.is_behind = False
    shared.draw("frame")
    assert len(written) == 1


def test_lines_that_are_held_are_bounded(made, monkeypatch):
    """The newest are kept, and the others counted."""
    shared, output, _, written = made
    monkeypatch.setattr(screen, "MOST_HELD", 2)
    shared.draw("frame")
    for line in "abcd":
        shared.write(output, line)
    shared.leave()
    assert written[1] == ("output", f"{LEAVE}2 lines were not kept\nc\nd")


@pytest.mark.parametrize("text, shown", [
    ("threaded_echo: a\nb\nc\n", "a"), (TRACEBACK.partition("\n  File")[0], "client 3: its handler has failed"),
    (TRACEBACK.rpartition("\nV")[0], "client 3: its handler has failed"), ("", "")])
def test_note_is_one_line(text, shown):
    """Of a traceback it has the exception, if there is one."""
    assert screen._shortened(text) == shown
