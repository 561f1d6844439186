"""The thread that writes the command's output: order, bounds, readers that are slow, stuck or gone."""
from __future__ import annotations

import errno
import io
import os
import threading
from contextlib import suppress

import pytest

from threaded_echo.command import output
from threaded_echo.command.output import Writer

from ..tools import GUARD, running, wait_until


class Slow(io.StringIO):
    """A stream whose writes wait to be let through, one by one; it has no descriptor."""

    def __init__(self):
        """Let nothing through yet."""
        super().__init__()
        self.waits = threading.Semaphore(0)
        self.lets = threading.Semaphore(0)

    def write(self, text):
        """Wait, then keep it."""
        self.waits.release()
        assert self.lets.acquire(timeout=GUARD)
        return super().write(text)

    def is_waiting(self):
        """Return once a write waits."""
        assert self.waits.acquire(timeout=GUARD)
        self.waits.release()

    def let(self, count=1):
        """Let so many writes through, once they are waiting."""
        for _ in range(count):
            assert self.waits.acquire(timeout=GUARD)
            self.lets.release()


def unexpected(error):
    """Stand for a stream that does not break."""
    raise AssertionError(error)


def lines(numbers):
    """Make the lines of these numbers."""
    return [f"line {number}" for number in numbers]


@pytest.fixture
def slow(monkeypatch):
    """A writer to a slow stream, which holds ten lines and writes one at a time; its first line is being written."""
    monkeypatch.setattr(output, "MOST_LINES", 10)
    monkeypatch.setattr(output, "_AT_ONCE", 1)
    stream = Slow()
    writer = Writer(stream, unexpected, "test")
    writer.start()
    writer.write("first")
    stream.is_waiting()
    return writer, stream


def test_lines_that_find_no_room_are_dropped_and_counted_when_all_are_written(slow):
    """Nobody waits for the reader, and the count follows the lines that were kept."""
    writer, stream = slow
    for line in lines(range(1244)):
        writer.write(line)
    stream.let(12)
    writer.close()
    assert stream.getvalue().splitlines() == ["first", *lines(range(10)), "1,234 lines were not printed"]


def test_settling_waits_until_all_is_written(slow):
    """And later lines are written all the same."""
    writer, stream = slow
    writer.write("second")
    with running(stream.let, 2):
        writer.settle()
    assert stream.getvalue() == "first\nsecond\n"
    writer.write("third")
    with running(stream.let):
        writer.close()
    assert stream.getvalue().endswith("third\n")


def test_settling_gives_up_on_a_reader_that_is_stuck(slow, monkeypatch):
    """There is one last chance for all that is left, so that closing does not wait for it again."""
    writer, stream = slow
    writer._patience = 0.01
    writer.settle()
    assert writer._patience == 0
    writer.close()
    stream.let()
    writer._thread.join(GUARD)


def test_count_comes_before_the_next_line_that_finds_room(slow):
    """There is room when the queue is half empty, so that not each second line is a count."""
    writer, stream = slow
    for line in lines(range(11)):
        writer.write(line)
    stream.let(5)
    stream.is_waiting()
    writer.write("dropped as well")  # five lines wait
    stream.let()
    stream.is_waiting()
    writer.write("after")
    stream.let(7)
    writer.close()
    assert stream.getvalue().splitlines() == ["first", *lines(range(10)), "2 lines were not printed", "after"]


def test_lines_that_are_long_are_bounded_together(slow, monkeypatch):
    """A few long lines are dropped as well as many short ones."""
    writer, stream = slow
    monkeypatch.setattr(output, "MOST_BYTES", 100)
    writer.write("x" * 60)
    writer.write("y" * 60)
    writer.write("z" * 41)
    writer.write("z" * 41)
    stream.let(3)
    writer.close()
    assert stream.getvalue().splitlines() == ["first", "x" * 60, "3 lines were not printed"]


def test_line_after_the_end_is_dropped():
    """A survivor of the stop may go on logging."""
    stream = io.StringIO()
    writer = Writer(stream, unexpected, "test")
    writer.start()
    writer.write("in time")
    writer.close()
    writer.write("too late")
    assert stream.getvalue() == "in time\n"


def test_program_without_a_console_prints_nothing():
    """Such a program's standard output is None."""
    writer = Writer(None, unexpected, "test")
    writer.start()
    writer.write("nowhere")
    writer.close()


class Pipe:
    """A pipe, and the stream that a writer is given."""

    def __init__(self):
        """Open it."""
        self.reads, self.writes = os.pipe()
        self.stream = open(self.writes, "w", encoding="ascii")

    def read_all(self):
        """Read until the end, and decode."""
        with open(self.reads, encoding="ascii") as reader:
            return reader.read()


def test_what_was_printed_before_comes_first():
    """The lines go past the stream's buffer."""
    pipe = Pipe()
    with pipe.stream:
        pipe.stream.write("before\n")
        writer = Writer(pipe.stream, unexpected, "test")
        writer.start()
        writer.write("after \u00e9")
        writer.close()
    assert pipe.read_all() == "before\nafter \\xe9\n"


def test_descriptor_that_does_not_block_is_waited_for():
    """Another program that shares a pipe or a terminal may have made it so."""
    pipe = Pipe()
    os.set_blocking(pipe.writes, False)
    with pipe.stream:
        writer = Writer(pipe.stream, unexpected, "test")
        writer.start()
        for _ in range(1000):
            writer.write("x" * 999)
        piece = os.read(pipe.reads, 1)
        while len(piece) < 1_000_000:
            piece += os.read(pipe.reads, 65536)
        writer.close()
    assert piece == (b"x" * 999 + b"\n") * 1000
    assert pipe.read_all() == ""


def test_reader_that_has_gone_is_reported_once():
    """Later lines, and what others print, go nowhere."""
    pipe, errors, told = Pipe(), [], threading.Event()

    def broken(error):
        """Keep it."""
        errors.append(error.errno)
        told.set()

    os.close(pipe.reads)
    with pipe.stream:
        writer = Writer(pipe.stream, broken, "test")
        writer.start()
        writer.write("first")
        wait_until(told)
        writer.write("second")
        writer.close()
        print("print", file=pipe.stream, flush=True)
    assert errors == [errno.EPIPE]


def test_thread_that_tells_of_a_broken_stream_is_waited_for():
    """What it calls may take a moment: it stops the server."""
    pipe, told, release = Pipe(), threading.Event(), threading.Event()

    def broken(error):
        """Take until the test says so."""
        told.set()
        wait_until(release)

    os.close(pipe.reads)
    with pipe.stream:
        writer = Writer(pipe.stream, broken, "test")
        writer.start()
        writer.write("first")
        wait_until(told)
        with running(writer.close) as closing:
            release.set()
            closing.join(GUARD)
            assert not writer._thread.is_alive()


def test_stream_that_is_broken_at_the_start_is_reported_with_the_first_line():
    """What was printed before is lost."""
    pipe, told = Pipe(), threading.Event()
    os.close(pipe.reads)
    with pipe.stream:
        pipe.stream.write("before")
        writer = Writer(pipe.stream, lambda error: told.set(), "test")
        writer.start()
        writer.write("first")
        wait_until(told)
        writer.close()


def test_reader_that_is_stuck_is_not_waited_for_at_the_end(monkeypatch):
    """What is left is given up after a moment, and what others have left in the stream's buffer goes nowhere."""
    monkeypatch.setattr(output, "_LAST_CHANCE", 0.01)
    pipe = Pipe()
    os.set_blocking(pipe.writes, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe.writes, bytes(4096))
    os.set_blocking(pipe.writes, True)
    with pipe.stream:
        writer = Writer(pipe.stream, unexpected, "test")
        writer.start()
        writer.write("stuck")
        for _ in range(2):
            writer.close()
        print("x" * 100_000, file=pipe.stream, flush=True)
    os.close(pipe.reads)  # ends the thread that still writes
    writer._thread.join(GUARD)
    assert not writer._thread.is_alive()


def test_what_waits_can_be_waited_for(slow):
    """For as long as one wants; an end that has given up has nothing written any more."""
    writer, stream = slow
    assert not writer.wait_until_written(0)
    with running(stream.let):
        assert writer.wait_until_written(GUARD)
    writer.write("another")
    assert not writer.wait_until_written(0)
    stream.let()
    assert writer.wait_until_written(GUARD)
    writer._give_up()
    assert not writer.wait_until_written(GUARD)
    writer.close()


def test_size_is_that_of_a_terminal():
    """A file, and a stream that is closed, have none."""
    ours, theirs = os.openpty()
    with open(ours, "rb"), open(theirs, "w") as stream:
        writer = Writer(stream, unexpected, "output")
        assert writer.size() == (80, 24)  # what it is taken for, as it does not know it
    assert writer.size() is None
    assert Writer(io.StringIO(), unexpected, "output").size() is None
    assert Writer(None, unexpected, "output").size() is None
