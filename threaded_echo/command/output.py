"""The command's output: log lines, escaped, or as JSON, written by threads of their own.

Guarantees:

- A thread that logs a line never waits for the reader of the output. At most `MOST_LINES` lines, of `MOST_BYTES`
  together, wait to be written. Further lines are dropped and counted; the count is printed when there is room again.
- Lines keep their order.
- The interpreter's end waits neither for a reader nor for a thread that writes: nothing is in the buffer of a standard
  stream, and if what is left cannot be written in time, the stream is redirected to `os.devnull`.
"""
from __future__ import annotations

import collections
import io
import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from types import TracebackType
from typing import Any, TextIO

from ..accepting.signals import handled
from ..observe.logs import printable
from .json_lines import JsonFormatter

MOST_LINES = 10_000
MOST_BYTES = 16 << 20
"""The most that may wait to be written; characters are counted as bytes."""

_AT_ONCE = 65536  # characters that are written together
_LAST_CHANCE = 1.0  # seconds for what is left at the end

logger = logging.getLogger("threaded_echo")


def _show_count(count: int) -> str:
    return f"{count:,} line{' was' if count == 1 else 's were'} not printed"


class Writer:
    """Writes lines to a stream, from a thread of its own. *Thread safety*: any thread may call `write`.

    ``broken`` is called in that thread when writing has failed; later lines are dropped. A stream without a descriptor,
    as tests and notebooks have, is written to by its own methods. ``show_count`` makes the line that says how many were
    dropped.
    """

    def __init__(self, stream: TextIO | None, broken: Callable[[OSError], object], name: str,
                 show_count: Callable[[int], str] = _show_count) -> None:
        self._stream = stream if stream is not None else io.StringIO()  # a program without a console has none
        self._broken = broken
        self._show_count = show_count
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self._descriptor: int | None = None
        with suppress(OSError, AttributeError):  # io.UnsupportedOperation is an OSError
            self._descriptor = self._stream.fileno()
        self._thread = threading.Thread(target=self._run, name=f"threaded_echo {name}", daemon=True)
        # Guards the fields below, and is notified of changes. Re-entrant, for signal handlers that log.
        self._changed = threading.Condition()
        self._lines: collections.deque[str] = collections.deque()
        self._size = 0  # of the lines that wait
        self._dropped = 0
        self._is_idle = False  # the thread waits for lines, or has ended
        self._closed = False
        self._given_up = False
        self._patience = _LAST_CHANCE  # of the next call of `settle` or `close`

    def start(self) -> None:
        """Begin to write. Raises RuntimeError if there are no threads."""
        with suppress(OSError):  # it is broken: the first line finds that out
            self._stream.flush()  # what was printed before comes first
        self._thread.start()

    def write(self, line: str) -> None:
        """Have a line written, with a line end; never waits. A line for which there is no room is dropped."""
        with self._changed:
            if self._closed:
                return
            # After a drop, the queue has to be half empty first: otherwise every second line would be a count.
            share = 2 if self._dropped else 1
            if len(self._lines) >= MOST_LINES // share or self._size + len(line) > MOST_BYTES // share:
                self._dropped += 1
                return
            self._add_count_locked()
            self._add_locked(line)

    def settle(self) -> None:
        """Wait a moment for what is left to be written, or for `broken` to be called because that has failed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_idle and not self._lines, self._patience):
                self._patience = 0.0

    def wait_until_written(self, seconds: float) -> bool:
        """Wait until nothing is left to be written; False if the time is up, or if nothing can be written any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle and not self._lines, seconds)
            return self._is_idle and not (self._lines or self._given_up)

    def size(self) -> tuple[int, int] | None:
        """Return the columns and the lines of the terminal that the stream is; ``None`` if it is none."""
        try:
            if not self._stream.isatty():
                return None
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, AttributeError, ValueError):  # no stream as others are, or it is closed
            return None
        return columns or 80, lines or 24  # a terminal need not know its size

    def close(self) -> None:
        """Wait a moment for what is left to be written, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._patience = 0.0
            self._give_up()

    def _add_locked(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        self._changed.notify_all()

    def _add_count_locked(self) -> None:
        if self._dropped:
            self._add_locked(self._show_count(self._dropped))
            self._dropped = 0

    def _run(self) -> None:
        try:
            while text := self._take():
                self._write(text)
        except OSError as error:
            if self._give_up():
                self._broken(error)
        finally:
            self._rest()

    def _rest(self) -> None:
        """Note that there is nothing to write."""
        with self._changed:
            self._is_idle = True
            self._changed.notify_all()

    def _take(self) -> str:
        """Wait for lines, and return some; empty at the end."""
        with self._changed:
            while not self._lines:
                self._add_count_locked()
                if not self._lines:
                    if self._closed:
                        return ""
                    self._rest()
                    self._changed.wait()
            self._is_idle = False
            taken, size = [], 0
            while self._lines and size < _AT_ONCE:
                taken.append(line := self._lines.popleft())
                size += len(line)
            self._size -= size
        return "\n".join([*taken, ""])

    def _write(self, text: str) -> None:
        data = text.encode(self.encoding, "backslashreplace")
        if self._descriptor is None:
            self._stream.write(data.decode(self.encoding))
            self._stream.flush()
            return
        while data and not self._given_up:
            try:
                data = data[os.write(self._descriptor, data):]
            except BlockingIOError:  # a process that shares it has made it non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()

    def _give_up(self) -> bool:
        """Drop all lines, and return True the first time.

        Redirects the descriptor to `os.devnull`: what others have left in the stream's buffer must neither delay the
        end of the process nor fail. Only the first time, since later the descriptor may belong to somebody else.
        """
        with self._changed:
            if self._given_up:
                return False
            self._given_up = self._closed = True
            self._lines.clear()
            self._changed.notify_all()
            if self._descriptor is not None:
                with suppress(OSError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._descriptor)
        return True


class LogLineHandler(logging.Handler):
    """Hands records to ``write``, with all characters escaped that could control a terminal, except tabs and line ends.

    A `JsonFormatter` has escaped the line ends, too.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
        except Exception:  # a wrong call of the logger, in a program's own handler
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


class Output:
    """Sends the package's messages to standard output, and its warnings and errors to standard error.

    With ``as_json`` all go to standard output, as JSON; only warnings and errors that come when that takes no more
    lines go to standard error. For a ``with`` block, which leaves the logger as it was.
    """

    def __init__(self, level: int, as_json: bool = False) -> None:
        self._level = level
        self._json = JsonFormatter() if as_json else None
        self._stack = ExitStack()
        self._output = Writer(sys.stdout, self._is_broken, "output", self._show_count)
        self._errors = Writer(sys.stderr, lambda error: None, "errors")
        self._broken: Callable[[], object] = lambda: None
        self.error: OSError | None = None
        """Why standard output takes no more lines."""

    def __enter__(self) -> Output:
        with ExitStack() as stack:
            for writer in (self._errors, self._output):
                writer.start()
                stack.callback(writer.close)
            self._take_logger(stack, *self._handlers())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        with handled(lambda number: None):  # a signal must not cut off the last lines, which take a moment only
            self._stack.close()

    def showing(self, server: Any) -> AbstractContextManager[object]:
        """Return a context in which a server serves: what is shown besides lines. Here, nothing is."""
        return nullcontext()

    def when_broken(self, broken: Callable[[], object]) -> None:
        """Have ``broken`` called, in another thread, when standard output takes no more lines; at once if it is so now.
        """
        self._broken = broken
        if self.error is not None:  # set before that is called, so that none of the two threads can miss the other
            broken()

    def settle(self) -> None:
        """Wait a moment for the last lines of standard output to be written. Afterwards `error` is known."""
        with handled(lambda number: None):  # as above
            self._output.settle()

    def _handlers(self) -> tuple[logging.Handler, ...]:
        """Make the logger's handlers: for standard output, for standard error, and others."""
        return LogLineHandler(self._output.write), LogLineHandler(self._errors.write)

    def _take_logger(self, stack: ExitStack, output: logging.Handler, errors: logging.Handler,
                     *others: logging.Handler) -> None:
        output.setFormatter(self._json)
        if self._json is None:
            output.addFilter(lambda record: record.levelno < logging.WARNING)
        else:
            errors.addFilter(lambda record: self.error is not None)
        errors.setLevel(logging.WARNING)
        errors.setFormatter(logging.Formatter("threaded_echo: %(message)s"))
        for name in ("propagate", "disabled"):  # logging.config, in a handler's module, disables what it does not know
            stack.callback(setattr, logger, name, getattr(logger, name))
            setattr(logger, name, False)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(self._level)
        for handler in (output, errors, *others):
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)

    def _show_count(self, count: int) -> str:
        text = _show_count(count)
        return text if self._json is None else self._json.line(logging.WARNING, "omitted", text)

    def _is_broken(self, error: OSError) -> None:
        self.error = error
        self._broken()
