"""The waker, which ends a poll."""
from __future__ import annotations

import queue
import select
import socket
import threading

import pytest

from threaded_echo.transport.waker import Waker

from ..tools import GUARD, running, together, wait_until


@pytest.fixture
def waker():
    """Make a waker; close it in the end."""
    made = Waker()
    yield made
    made.close()


def is_readable(waker, timeout=0):
    """Return whether a poll of the waker's descriptor would end, or ends in so many seconds."""
    return bool(select.select([waker.fileno()], [], [], timeout)[0])


def test_poll_that_has_begun_is_ended_by_set(waker):
    """The poll is another thread's."""
    woken = queue.SimpleQueue()
    with running(lambda: woken.put(is_readable(waker, GUARD))):
        waker.set()
        assert woken.get(timeout=GUARD) is True


def test_poll_that_begins_after_set_ends_at_once_until_clear(waker):
    """It stays readable for every poll, not only for the first one."""
    assert not is_readable(waker)
    waker.set()
    assert is_readable(waker) and is_readable(waker)
    waker.clear()
    assert not is_readable(waker)
    waker.clear()
    waker.set()
    assert is_readable(waker)


def test_waker_that_nobody_reads_fills_up_and_stays_readable(waker):
    """A signal upon a signal neither blocks nor fails; one `clear` takes them all back."""
    waker._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for _ in range(10_000):
        waker.set()
    with pytest.raises(BlockingIOError):
        waker._sender.send(b"\0")
    assert is_readable(waker)
    waker.clear()
    assert not is_readable(waker)


def test_waker_that_is_closed_may_be_set_and_closed_again(waker):
    """Whoever sets it need not know whether it is still wanted."""
    waker.close()
    assert waker.fileno() == -1
    waker.set()
    waker.close()


def test_waker_that_is_closed_in_the_middle_of_a_set_is_closed_by_that(waker):
    """Closing waits for nothing: the thread that sets it may be one that a signal handler has interrupted."""
    entered, release = threading.Event(), threading.Event()
    sender = waker._sender

    class Sender:
        """Waits to be released, and closes as the real one."""

        close = staticmethod(sender.close)

        def send(self, data):
            """Wait."""
            entered.set()
            wait_until(release)

    waker._sender = Sender()
    with running(waker.set):
        wait_until(entered)
        waker.close()
        assert waker.fileno() >= 0
        release.set()
    assert waker.fileno() == sender.fileno() == -1


def test_descriptor_is_not_given_away_in_the_middle_of_a_set():
    """Threads that set and close at once reach the waker's own descriptors or none: nothing fails in any of them."""
    for _ in range(50):
        waker = Waker()
        threads = iter([waker.set, waker.set, waker.close, waker.set])
        together(4, lambda: next(threads)())
