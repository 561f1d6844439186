"""The lines that threads are running, with the GIL and without."""
from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from threaded_echo import stacks

from .tools import running, wait_until

PACKAGE = os.path.dirname(stacks.__file__)


@contextmanager
def staying():
    """Run a thread that stays in `stay`."""
    entered, release = threading.Event(), threading.Event()

    def stay():
        entered.set()
        wait_until(release)

    with running(stay) as thread:
        try:
            wait_until(entered)
            yield thread
        finally:
            release.set()


@pytest.fixture(params=[True, False], ids=["the GIL", "no GIL"])
def has_gil(request, monkeypatch):
    """Have stacks read as with the GIL and as without; frames are read only if this interpreter has it."""
    if request.param and not getattr(sys, "_is_gil_enabled", lambda: True)():
        monkeypatch.setattr(stacks, "_read_frames", stacks._ask_faulthandler)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: request.param, raising=False)
    monkeypatch.setattr(stacks, "_STOPS_THREADS", (3,))
    return request.param


def test_stacks_are_those_of_the_threads_that_run(has_gil):
    """With the source, outermost call first; a thread that has not begun, and one that is none, have no stack."""
    with staying() as thread:
        found = stacks.stacks_of([thread, threading.Thread(), None])
    assert list(found) == [thread]
    lines = stacks.own_frames(found[thread])
    assert lines[0].endswith("in stay\n    wait_until(release)\n")
    assert "in wait_until\n" in lines[1]


def test_threads_at_the_same_lines_share_their_stack(has_gil):
    """Ten thousand idle clients have one, which is formatted once."""
    with staying() as one, staying() as other:
        found = stacks.stacks_of([one, other])
    assert found[one] is found[other]


def test_with_nobody_to_look_for_nothing_is_read(monkeypatch):
    """A stop that leaves no survivor asks for nobody."""
    monkeypatch.setattr(stacks, "_read_frames", None)
    monkeypatch.setattr(stacks, "_ask_faulthandler", None)
    assert stacks.stacks_of([]) == {} == stacks.stacks_of([None])


def test_stack_that_has_no_frame_of_the_program_is_shown_whole():
    """There is nothing else to show."""
    stack = ('  File "/usr/lib/python3/threading.py", line 1, in run\n',)
    assert stacks.own_frames(stack) == stack


@pytest.mark.parametrize("name", [
    "/home/me/multithreading.py", f"{PACKAGE}_demo/server.py", f"{PACKAGE}_demo.py", f"{PACKAGE}/examples/chat.py"])
def test_program_with_a_name_like_ours_is_the_programs_own(name):
    """A script may lie beside the package, and the examples are programs."""
    stack = tuple(f'  File "{place}", line 1, in f\n' for place in (
        "/usr/lib/python3/threading.py", f"{PACKAGE}/hooks_serving.py", "/usr/lib/python3/socketserver.py", name,
        "/usr/lib/python3/socket.py"))
    assert stacks.own_frames(stack) == stack[3:]


def test_names_that_look_like_other_lines_are_read_as_names():
    """Python 3.14 tells the thread's name, too; and a folder may be called anything."""
    text = ('Thread 0x00000000000000ff [Thread 0x01 (a)] (most recent call first):\n'
            '  File "/a", line 7 in b/program.py", line 12 in <lambda>\n'
            '  File "/lib/threading.py", line 3 in run\n'
            '\n'
            'Current thread 0x0000000000000010 (most recent call first):\n'
            '  <no Python frame>\n'
            '...\n')
    named = '/a", line 7 in b/program.py', 12, "<lambda>"
    assert stacks._parse(text) == {255: (("/lib/threading.py", 3, "run"), named)}


def test_nothing_is_read_without_the_gil_if_other_threads_would_go_on_meanwhile(monkeypatch):
    """That could crash the interpreter."""
    monkeypatch.setattr(stacks, "_STOPS_THREADS", (9,))
    monkeypatch.setattr(faulthandler, "dump_traceback", None)
    assert stacks._ask_faulthandler() == {}


def test_nothing_is_read_without_the_gil_if_no_file_can_be_made(monkeypatch):
    """Then there is no descriptor left, or no room."""
    def fail(name):
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(stacks, "_STOPS_THREADS", (3,))
    monkeypatch.setattr(os, "memfd_create", fail)
    assert stacks._ask_faulthandler() == {}


def test_interpreter_that_makes_no_files_in_memory_uses_one_of_a_folder(monkeypatch, tmp_path):
    """As macOS, and free-threaded ones of uv and conda, which are built for an older C library."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(stacks, "_STOPS_THREADS", (3,))
    with staying() as thread:
        found = stacks._ask_faulthandler()[thread.ident]
    assert "stay" in [name for _, _, name in found]


@pytest.mark.parametrize("version, keywords", [((3, 14, 8), {}), ((3, 15), {"max_threads": stacks._MOST})])
def test_faulthandler_is_asked_for_as_many_threads_as_it_tells_of(monkeypatch, version, keywords):
    """It had a bound of its own before 3.15."""
    asked = []
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda file, **given: asked.append(given))
    assert stacks._ask_faulthandler() == {} and asked == [keywords]


@pytest.mark.parametrize("broken, is_read", [(0, True), (3, True), (stacks._TRIES, False)])
def test_dump_that_breaks_off_at_a_thread_that_is_being_started_is_made_again(monkeypatch, broken, is_read):
    """After a pause; not for ever."""
    pauses, whole = [], 'Thread 0x0f (most recent call first):\n  File "a.py", line 1 in f\n'
    texts = [f"{stacks._BROKEN_OFF}\n"] * broken + [whole]
    monkeypatch.setattr(stacks, "_STOPS_THREADS", (3,))
    monkeypatch.setattr(stacks, "_dump_all", lambda: texts.pop(0))
    monkeypatch.setattr(stacks, "time", SimpleNamespace(sleep=pauses.append))
    assert stacks._ask_faulthandler() == ({15: (("a.py", 1, "f"),)} if is_read else {})
    assert pauses == [stacks._PAUSE] * broken
