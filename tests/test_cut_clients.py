"""What a handler processes of a client whom the server has cut: nothing any more, whatever has arrived before."""
from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from threaded_echo import ClientHandler, LineHandler

from .tools import ask, connect, receive_all, running, wait_until


@pytest.mark.parametrize("base", [ClientHandler, LineHandler])
def test_client_that_setup_refuses_has_nothing_processed(serve, base):
    """It has sent a command behind its wrong password, in one piece."""
    processed = []

    class Guarded(base):
        """Wants a password."""

        def setup(self):
            """Refuse the wrong one."""
            super().setup()
            if self.receive_until() != b"secret\n":
                self.send(b"no")
                self.client.disconnect()

        def process(self, data):
            """Obey."""
            processed.append(data)

    server = serve(Guarded)
    assert ask(server, b"wrong\nformat the disk\n") == b"no" and not processed
    ask(server, b"secret\nhello\n")
    assert [data.strip() for data in processed] == [b"hello"]
    assert server.stats().failed == 0


def test_lines_behind_the_one_that_disconnects_are_not_processed(serve):
    """They have arrived with it."""
    processed = []

    class Handler(LineHandler):
        """Ends at b"quit"."""

        def process(self, line):
            """Note the line."""
            processed.append(line)
            if line == b"quit":
                self.client.disconnect()

    assert ask(serve(Handler), b"one\nquit\nthree\nfour\nand a rest") == b""
    assert processed == [b"one", b"quit"]


@pytest.mark.parametrize("base", [ClientHandler, LineHandler])
def test_chunks_behind_the_one_that_disconnects_are_not_processed(serve, base):
    """The kernel has them still."""
    processed, entered, release = [], threading.Event(), threading.Event()

    class Handler(base):
        """Waits in its first call, and then ends."""

        def process(self, data):
            """Note it."""
            processed.append(data)
            entered.set()
            wait_until(release)
            self.client.disconnect()

    server = serve(Handler)
    with connect(server) as client:
        client.sendall(b"one\n")
        wait_until(entered)
        client.sendall(b"two\n")
        release.set()
        assert receive_all(client) == b""
    server.stop()
    assert [data.strip() for data in processed] == [b"one"]


class Waiting(LineHandler):
    """Notes its lines, and waits in the second one."""

    def setup(self):
        """Take what the test has made."""
        super().setup()
        self.test = self.server.test

    def process(self, line):
        """Note the line."""
        self.test.processed.append(line)
        if line == b"2":
            self.test.entered.set()
            wait_until(self.test.release)


@pytest.fixture
def waiting(serve):
    """Serve it, and have four lines come together."""
    made = serve(Waiting)
    made.test = SimpleNamespace(processed=[], entered=threading.Event(), release=threading.Event())
    with connect(made) as made.test.client:
        made.test.client.sendall(b"1\n2\n3\n4\n")
        wait_until(made.test.entered)
        yield made
        made.test.release.set()


def test_lines_that_have_come_are_processed_while_a_stop_drains(waiting):
    """The handler is in the middle of its work."""
    reports = []
    with running(lambda: reports.append(waiting.stop(50.0))):
        wait_until(waiting.stopping)
        waiting.test.release.set()
        assert receive_all(waiting.test.client) == b""
    assert reports[0].drained == 1 and waiting.test.processed == [b"1", b"2", b"3", b"4"]


def test_no_line_is_processed_after_a_stop_has_forced(waiting):
    """The handler ends with the line that it is in, so that the next stop finds nobody."""
    assert len(waiting.stop(0, 0).survivors) == 1
    waiting.test.release.set()
    assert waiting.stop(50.0, 50.0).clean and waiting.test.processed == [b"1", b"2"]
