"""``--live`` on a terminal, and where there is none."""
from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
from dataclasses import replace

import pytest

from threaded_echo import EchoHandler, ThreadedTCPServer
from threaded_echo.command import live, output, screen
from threaded_echo.command import run as cli
from threaded_echo.observe.live import Table
from threaded_echo.observe.recent import RecentMessages

from ..tools import LOOPBACK, ask, connect, receive, receive_all, wait_until
from .operating import STOPPED, run
from .terminal import Terminal, run_on
from .test_ending import Blocked

ENTER, LEAVE = r"\x1b\[\?1049h", r"\x1b\[\?1049l"


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """A terminal of a common kind; frames follow each other fast."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(live, "INTERVAL", 0.01)
    monkeypatch.setattr(live, "_SHARE", 1)
    monkeypatch.setattr(live, "_FIRST", 0.01)
    return Terminal


class Failing(EchoHandler):
    """Fails on a line that asks for it."""

    def process(self, data):
        """Fail, or echo."""
        if data == b"fail\n":
            raise ValueError("\x1b[2J asked for")
        return super().process(data)


def address_on(terminal):
    """Wait for the first frame, and return the address in its title."""
    port = terminal.wait_for(rf"^listening on 127\.0\.0\.1:(\d+)\n{ENTER}.* threaded_echo on 127\.0\.0\.1:\1 ")[1]
    return ("127.0.0.1", int(port))


def end(terminal):
    """Interrupt; return what is on the terminal after the table."""
    terminal.interrupt()
    return terminal.wait_for(rf"{LEAVE}(.*stopped in .*?)\n")[1]


def test_table_is_shown_from_the_start_to_the_stop(capsys):
    """Then the terminal is as it was, with the lines about the server itself."""
    seen = []

    def script(terminal):
        """Say hello, make the window narrower, and interrupt."""
        with connect(address_on(terminal)) as client:
            client.sendall(b"hello \x1b[2J\n")
            terminal.wait_for(rf"1 live .*  last message *\n 1  127.0.0.1:{client.getsockname()[1]}  serving .*  "
                              r"hello \\x1b\[2J ")
            terminal.resize(60, 10)
            terminal.wait_for(r"\n {60}\n *no  address [^\n]{48}\n.{60}\n {60}\n")
            terminal.resize(0, 0)
            terminal.wait_for(r"\n {80}\n")
            terminal.interrupt()
            seen.append(terminal.wait_for(rf"{LEAVE}(.*stopped in .*?)\n")[1])
            assert receive_all(client) == b"hello \x1b[2J\n"

    assert run_on(Terminal(), [], script) == cli.OK
    stopping, stopped = seen[0].split("\n")
    assert stopping == "stopping: 1 client live" and re.fullmatch(STOPPED.format(1, 0, 0), stopped)
    assert capsys.readouterr().err == ""


def test_error_is_noted_below_the_table_and_printed_after_it(named):
    """If standard error is the terminal, too: in the middle of the table it would be written over."""
    seen = []

    def script(terminal):
        """Have a handler fail."""
        address = address_on(terminal)
        assert ask(address, b"fail\n") == b""
        terminal.wait_for(r"\d\d:\d\d:\d\d client 1: its handler has failed: ValueError: \\x1b\[2J asked for")
        terminal.interrupt()
        terminal.wait_for(LEAVE)
        seen.append(terminal.wait_for(r"^stopping.*stopped in [^\n]*\nthreaded_echo: client 1: .* asked for\n$")[0])

    assert run_on(Terminal(), ["--handler", named(Failing)], script, with_errors=True) == cli.OK
    assert "Traceback (most recent call last):\n" in seen[0] and "\x1b" not in seen[0]


def test_error_that_goes_elsewhere_is_printed_at_once(named, capsys):
    """As in ``2> errors``."""
    def script(terminal):
        """Have a handler fail."""
        assert ask(address_on(terminal), b"fail\n") == b""
        terminal.wait_for("client 1: its handler has failed: ValueError")
        assert "failed" not in end(terminal)

    assert run_on(Terminal(), ["--handler", named(Failing)], script) == cli.OK
    assert capsys.readouterr().err.startswith("threaded_echo: client 1: its handler has failed\nTraceback")


def test_second_signal_cuts_the_connections(named):
    """The table is shown until then."""
    seen = []

    def script(terminal):
        """Interrupt twice."""
        with connect(address_on(terminal)) as client:
            assert receive(client, 1) == b"\0"
            terminal.interrupt()
            terminal.wait_for(r"\d\d:\d\d:\d\d stopping: 1 client live")
            seen.append(end(terminal))

    assert run_on(Terminal(), ["--drain-timeout", "300", "--handler", named(Blocked)], script) == cli.OK
    assert re.search(STOPPED.format(0, 1, 0), seen[0])


def test_table_is_out_of_the_way_while_the_process_is_stopped(monkeypatch):
    """Ctrl-Z: the shell has the terminal as it was, with the lines so far, until the process goes on."""
    stopped, goes_on = threading.Event(), threading.Event()

    def stop(number):
        """Stop as the process would."""
        assert signal.getsignal(number) is signal.SIG_DFL
        stopped.set()
        wait_until(goes_on)

    def script(terminal):
        """Stop it, and have it go on."""
        address = address_on(terminal)
        assert ask(address, b"fail\n") == b"fail\n"
        logging.getLogger("threaded_echo").error("an error")
        terminal.wait_for("an error")
        terminal.interrupt(signal.SIGTSTP)
        wait_until(stopped)
        terminal.wait_for(rf"{LEAVE}\n.*threaded_echo: an error\n$")
        assert ask(address, b"hello") == b"hello"
        goes_on.set()
        terminal.wait_for(rf"^{ENTER}.* threaded_echo on ")
        end(terminal)

    monkeypatch.setattr(signal, "raise_signal", stop)
    assert run_on(Terminal(), [], script, with_errors=True) == cli.OK
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_signal_that_is_ignored_stays_so():
    """As in a shell without job control; and a program's own handler is left alone."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)

    def script(terminal):
        """Look."""
        address_on(terminal)
        assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
        end(terminal)

    try:
        assert run_on(Terminal(), [], script) == cli.OK
    finally:
        signal.signal(signal.SIGTSTP, before)


def test_terminal_that_takes_nothing_holds_up_neither_the_service_nor_the_end(monkeypatch):
    """As after Ctrl-S."""
    monkeypatch.setattr(output, "_LAST_CHANCE", 0.01)
    monkeypatch.setattr(screen, "_LEAVING", 0.01)

    def script(terminal):
        """Read the first frame, and no more, until the terminal is full."""
        address = address_on(terminal)
        with connect(address) as client:
            for _ in range(20):
                client.sendall(b"hello\n")
                assert receive(client, 6) == b"hello\n"
        terminal.interrupt()

    assert run_on(Terminal(), [], script) == cli.OK


def test_terminal_that_has_gone_ends_the_command(capsys):
    """As an output that takes no more lines does, also if SIGHUP does not end it: a certificate is read anew then."""
    def script(terminal):
        """Close it after the first frame."""
        address_on(terminal)
        terminal.close()

    assert run_on(Terminal(), [], script) == cli.FAILED
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    assert capsys.readouterr().err == f"threaded_echo: stopped by an error: {error}\n"


def test_table_that_fails_is_left_and_the_server_goes_on(monkeypatch, capsys):
    """What only shows must not harm what serves."""
    is_seen = threading.Event()

    def fail(table, *arguments):
        """Fail after the first frame."""
        if is_seen.is_set():
            raise ZeroDivisionError
        return frame(table, *arguments)

    def script(terminal):
        """See the table go."""
        address = address_on(terminal)
        is_seen.set()
        terminal.wait_for(LEAVE)
        assert ask(address, b"hello") == b"hello"
        terminal.interrupt()
        terminal.wait_for("stopping: 0 clients live\nstopped in ")

    frame = Table.frame
    monkeypatch.setattr(Table, "frame", fail)
    assert run_on(Terminal(), [], script) == cli.OK
    error = capsys.readouterr().err
    assert error.startswith("threaded_echo: the table has failed, and is shown no more\nTraceback")
    assert error.endswith("ZeroDivisionError\n")


def test_server_that_cannot_serve_shows_no_table(capsys):
    """The terminal keeps what it has."""
    with socket.create_server(LOOPBACK) as taken:
        place = Terminal()
        assert run_on(place, ["--port", str(taken.getsockname()[1])], lambda terminal: None) == cli.FAILED
    assert place.seen == "" and "cannot listen on" in capsys.readouterr().err


def test_quiet_table_has_no_messages():
    """With --quiet they are not logged."""
    def script(terminal):
        """Say hello."""
        with connect(address_on(terminal)) as client:
            client.sendall(b"hello\n")
            assert receive(client, 6) == b"hello\n"
            row = terminal.wait_for(r"  last message *\n( 1  127[^\n]* 6 +6 +[^\n]*)\n")[1]
            assert "hello" not in row
            end(terminal)

    assert run_on(Terminal(), ["--quiet"], script) == cli.OK


@pytest.mark.parametrize("kind", ["dumb", "", "unknown"])
def test_terminal_that_knows_no_control_sequences_gets_lines(monkeypatch, kind):
    """As an editor's may be."""
    monkeypatch.setenv("TERM", kind)

    def script(terminal):
        """Say hello."""
        port = terminal.wait_for(r"listening on 127\.0\.0\.1:(\d+)\n")[1]
        ask(("127.0.0.1", int(port)), b"hello\n")
        terminal.wait_for(r"^client 1 connected from [^\n]*\nclient 1: hello\nclient 1 disconnected\n")
        terminal.interrupt()
        terminal.wait_for("stopped in ")

    assert run_on(Terminal(), [], script) == cli.OK


def test_output_that_is_no_terminal_gets_lines():
    """As in a pipe, or a file."""
    def script(operator):
        """Say hello."""
        ask(operator.address(), b"hello\n")
        operator.interrupt()

    status, lines = run(["--port", "0", "--live"], script)
    assert status == cli.OK and "client 1: hello" in lines


def test_rich_that_is_missing_is_told_in_a_line(monkeypatch, capsys):
    """It is the same with a terminal and without."""
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli.main(["--live", "--port", "0"]) == cli.FAILED
    assert capsys.readouterr().err == (
        'threaded_echo: --live needs the package rich (the extra "live"): python3 -m pip install rich\n')


@pytest.mark.parametrize("up, size, drawn", [(0.0, (80, 24), 0), (1.0, None, 2), (1.0, (80, 24), 2)])
def test_table_is_drawn_when_the_server_accepts(up, size, drawn):
    """Before that it waits; but not when the terminal has gone, which the frame is to find out."""
    class Ended:
        """Ends after two looks."""

        def __init__(self):
            self.pauses = []

        def wait(self, seconds):
            """Do not wait."""
            self.pauses.append(seconds)
            return len(self.pauses) > 2

    class Fake:
        """Stands for the server, the screen and the log."""

        encoding, clients, frames, server_address = "utf-8", {}, 0, LOOPBACK

        def stats(self):
            """Tell since when it accepts."""
            return stats

        def size(self):
            """Tell the size."""
            return size

        def notes(self):
            """Tell of nothing."""
            return []

        def draw(self, frame):
            """Count the frames."""
            self.frames += 1

    with ThreadedTCPServer(LOOPBACK, EchoHandler) as server:
        stats = replace(server.stats(), seconds_up=up)
    fake = Fake()
    table = live.LiveTable(fake, RecentMessages(), fake)
    table._ended = Ended()
    table._run()
    assert fake.frames == drawn and len(table._ended.pauses) == 3
