"""The lines that threads are running.

With the GIL they are read from the threads' frames. Without it, a thread changes its frames while it runs, and to read
them then can crash the interpreter (seen on 3.13). There `faulthandler` reads them, which stops all threads for that.
"""
from __future__ import annotations

import faulthandler
import linecache
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

_HERE = os.path.join(Path(__file__).parent, "")  # with its last separator: a program beside it may begin with its name
_EXAMPLES = os.path.join(_HERE, "examples", "")

Places = tuple[tuple[str, int, str], ...]
"""Where a thread is: the file, the line and the function of each call, outermost first."""

_STOPS_THREADS = (3, 13, 2)
"""The first version in which faulthandler stops the other threads (CPython's issue 128400)."""

_MOST = 1_000
"""The most threads that faulthandler is asked for, where that can be said (3.15); before, it is 100, the newest."""

_BROKEN_OFF = "<freed thread state>"
"""What it writes, in place of the rest, if it comes to a thread that is just being started."""

_TRIES, _PAUSE = 20, 0.001  # seconds

_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)\b")
_CALL = re.compile(r'  File "(.*)", line (\d+) in (.*)')


def stacks_of(threads: Iterable[threading.Thread | None]) -> dict[threading.Thread, tuple[str, ...]]:
    """Format the lines where each thread is, outermost call first; no entry for one whose lines cannot be read.

    Threads at the same lines share one tuple. *Thread safety*: any thread. The source is read from the files.
    """
    wanted = {thread: thread.ident for thread in threads if thread is not None and thread.ident is not None}
    if not wanted:
        return {}
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    places = _read_frames() if has_gil else _ask_faulthandler()
    formatted: dict[Places, tuple[str, ...]] = {}
    for found in set(places.values()):
        formatted[found] = tuple(traceback.format_list([traceback.FrameSummary(*place) for place in found]))
    return {thread: formatted[places[ident]] for thread, ident in wanted.items() if ident in places}


def _read_frames() -> dict[int, Places]:
    """Read where each thread is from its frames, by the threads' identifiers."""
    found = {}
    for ident, innermost in sys._current_frames().items():
        places = []
        for frame, line in traceback.walk_stack(innermost):
            linecache.lazycache(frame.f_code.co_filename, frame.f_globals)
            places.append((frame.f_code.co_filename, line or 0, frame.f_code.co_name))
        found[ident] = tuple(reversed(places))
    return found


def _ask_faulthandler() -> dict[int, Places]:
    """Read where each thread is, with all of them stopped; nothing if that cannot be done."""
    if sys.version_info < _STOPS_THREADS:
        return {}
    found: dict[int, Places] = {}
    with suppress(OSError):  # no descriptor, or no room
        for _ in range(_TRIES):
            text = _dump_all()
            found.update(_parse(text))
            if _BROKEN_OFF not in text:
                break
            time.sleep(_PAUSE)
    return found


def _dump_all() -> str:
    """Return what faulthandler writes about all threads."""
    # Not a pipe: while the threads are stopped, nobody would read it.
    with _open_file() as file:
        if sys.version_info >= (3, 15):
            faulthandler.dump_traceback(file, max_threads=_MOST)
        else:
            faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode("ascii", "replace")


def _open_file() -> IO[bytes]:
    """Open a file without a name, in memory if the platform can."""
    if hasattr(os, "memfd_create"):  # an interpreter that is built for an old C library has none, on Linux either
        return open(os.memfd_create("stacks"), "w+b", buffering=0)
    import tempfile  # it loads much that nothing else here needs
    return tempfile.TemporaryFile(buffering=0)


def _parse(text: str) -> dict[int, Places]:
    """Read what faulthandler has written."""
    found: dict[int, list[tuple[str, int, str]]] = {}
    calls: list[tuple[str, int, str]] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            calls = found.setdefault(int(thread[1], 16), [])
        elif call := _CALL.fullmatch(line):
            calls.append((call[1], int(call[2]), call[3]))
    return {ident: tuple(reversed(calls)) for ident, calls in found.items() if calls}


def own_frames(stack: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the frames ahead of the program's first own one: those of threading and of this package."""
    for number, lines in enumerate(stack):
        if _is_own(lines.partition('"')[2].partition('"')[0]):
            return stack[number:]
    return stack


def _is_own(place: str) -> bool:
    """Return whether a file is the program's; the examples are programs."""
    if place.startswith(_HERE):
        return place.startswith(_EXAMPLES)
    return os.path.basename(place) not in ("threading.py", "socketserver.py")
