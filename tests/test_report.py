"""What a stop reports: counts, survivors, and where they are."""
from __future__ import annotations

import sys
import threading
import types

import pytest

from threaded_echo import StopReport, Survivor, report

from .tools import running, wait_until


def test_report_for_people_has_the_counts_and_each_survivor():
    """A thread that serves no client has its own name there."""
    thread = threading.Thread(name="a thread of the program's own")
    stack = ('  File "/usr/lib/python3/threading.py", line 1, in run\n', '  File "program.py", line 3, in handle\n')
    survivors = (Survivor(None, stack, thread), Survivor(None, ()))
    made = StopReport(2, 1, survivors, 1.5)
    assert not made.clean and StopReport(2, 1, (), 0.0).clean
    assert str(made) == ("stopped in 1.500 s: 2 drained, 1 forced, 2 still running\n"
                         "thread a thread of the program's own:\n"
                         '  File "program.py", line 3, in handle\n'
                         "thread ?:")


def test_stack_that_has_no_frame_of_the_program_is_shown_whole():
    """There is nothing else to show."""
    stack = ('  File "/usr/lib/python3/threading.py", line 1, in run\n',)
    assert report.own_frames(stack) == stack


def test_stacks_are_those_of_the_threads_that_run(monkeypatch):
    """A thread that has ended, and one that is none, have no stack; with nobody to look for, nothing is read."""
    entered, release = threading.Event(), threading.Event()

    def stay():
        entered.set()
        wait_until(release)

    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    with running(stay) as thread:
        wait_until(entered)
        found = report.stacks_of([thread, threading.Thread(), None])
        release.set()
    assert list(found) == [thread] and any("in stay" in line for line in found[thread])
    monkeypatch.setattr(sys, "_current_frames", None)
    assert report.stacks_of([]) == {}


@pytest.mark.parametrize("tries, is_read", [(0, True), (3, True), (report._TRIES, False)])
def test_frames_are_read_without_the_gil_when_all_others_wait_or_not_at_all(monkeypatch, tries, is_read):
    """A moment is looked for some times, with a pause before the next look."""
    answers, pauses = [False] * tries + [True], []
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(report, "_all_others_wait", lambda: answers.pop(0))
    monkeypatch.setattr(report, "time", types.SimpleNamespace(sleep=pauses.append))
    frames = {threading.get_ident(): sys._getframe()}
    monkeypatch.setattr(sys, "_current_frames", lambda: frames)
    found = report.stacks_of([threading.current_thread()])
    assert bool(found) == is_read and len(pauses) == tries
    assert not is_read or "report.stacks_of" in found[threading.current_thread()][-1]


@pytest.mark.parametrize("states, expected", [("SDS", True), ("SRS", False), ("", True)])
def test_all_others_wait_if_none_of_them_runs(monkeypatch, tmp_path, states, expected):
    """The calling thread runs, and is not asked; a thread's name may look like a state."""
    monkeypatch.setattr(report, "Path", lambda path: tmp_path)
    for number, state in [(threading.get_native_id(), "R"), *enumerate(states, threading.get_native_id() + 1)]:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} (a) R (b)) {state} 1 2 3")
    assert report._all_others_wait() is expected


def test_threads_that_nothing_tells_of_are_taken_to_run(monkeypatch, tmp_path):
    """A thread may end between the look at the list and the look at its state, and some platforms have no such list."""
    monkeypatch.setattr(report, "Path", lambda path: tmp_path)
    (tmp_path / "0").mkdir()
    assert report._all_others_wait() is False
    monkeypatch.setattr(report, "Path", lambda path: tmp_path / "nowhere")
    assert report._all_others_wait() is False
