"""What a table shows of a server: which clients, their rates, and the last minute."""
from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from threaded_echo import EchoHandler
from threaded_echo.observe.recent import RecentMessages
from threaded_echo.observe.watching import History, Watcher
from threaded_echo.transport.listeners import show_address
from threaded_echo.transport.tcp_info import Traffic

from ..tools import connect, receive


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@dataclass
class Counter:
    """Counts of messages that a test sets."""

    logged: int = 0
    left_out: int = 0
    kept: dict[int, str] = field(default_factory=dict)

    def counts(self) -> tuple[int, int]:
        """Return them."""
        return self.logged, self.left_out

    def last_of(self, number: int) -> str:
        """Return a message."""
        return self.kept.get(number, "")

    def numbers(self) -> list[int]:
        """Return whose messages there are."""
        return list(self.kept)

    def forget(self, number: int) -> None:
        """Forget one."""
        del self.kept[number]


class Server:
    """A server whose clients a test makes."""

    def __init__(self) -> None:
        self.clients: dict[int, Any] = {}
        self.bytes: tuple[int | None, int | None] = (0, 0)

    def stats(self) -> Any:
        """Tell the bytes."""
        return SimpleNamespace(bytes_received=self.bytes[0], bytes_sent=self.bytes[1])

    def put(self, number: int, traffic: Traffic | None, age: float = 100.0) -> None:
        """Have a client."""
        self.clients[number] = SimpleNamespace(number=number, address=("192.0.2.1", number), state="serving", age=age,
                                               _connection=SimpleNamespace(traffic=lambda: traffic))


@pytest.fixture
def watched():
    """A server, its messages, a clock, and who watches them."""
    server, counter, clock = Server(), Counter(), Clock()
    return server, counter, clock, Watcher(server, counter, show_address, clock)


def numbers(look):
    """Return which clients are shown."""
    return [row.number for row in look.rows]


def test_clients_of_a_server_are_rows(serve):
    """What a row has is what the client has."""
    server = serve(EchoHandler)
    watcher = Watcher(server, RecentMessages(), show_address)
    assert watcher.look(10).rows == ()
    with connect(server) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        look = watcher.look(10)
        (row,) = look.rows
        assert (row.number, row.address) == (1, f"127.0.0.1:{client.getsockname()[1]}")
        assert (row.state, row.received, row.sent, row.rate, row.message) == ("serving", 5, 5, None, "")
        assert 0 <= row.idle <= row.age
        assert look.stats.accepted == 1 and look.hidden == 0


def test_clients_that_do_not_fit_are_those_that_were_active_least(watched):
    """One line says how many; the others stay in the order of their numbers, and equal ones stay where they are."""
    server, _, _, watcher = watched
    for number, idle in enumerate((9.0, 0.4, 5.0, 0.1, 0.3), 1):
        server.put(number, Traffic(0, 0, idle))
    look = watcher.look(4)
    assert (numbers(look), look.hidden) == ([2, 4, 5], 2)
    assert numbers(watcher.look(5)) == [1, 2, 3, 4, 5]
    assert numbers(watcher.look(3)) == [2, 4]
    assert numbers(watcher.look(1)) == [2]


def test_clients_whose_silence_is_not_known_are_shown_by_their_age(watched):
    """As those of a Unix socket; the newest come first."""
    server, _, _, watcher = watched
    for number, age in enumerate((30.0, 20.0, 10.0), 1):
        server.put(number, None, age)
    look = watcher.look(2)
    assert numbers(look) == [3]
    row = look.rows[0]
    assert (row.idle, row.received, row.sent, row.rate) == (None, None, None, None)


def test_rate_is_that_since_the_look_before(watched):
    """In both directions together; it is not known at the first look at a client."""
    server, _, clock, watcher = watched
    server.put(1, Traffic(100, 50, 0.0))
    assert watcher.look(9).rows[0].rate is None
    clock.now += 2
    server.put(1, Traffic(300, 150, 0.0))
    server.put(2, Traffic(7, 7, 0.0))
    assert [row.rate for row in watcher.look(9).rows] == [150.0, None]
    assert [row.rate for row in watcher.look(9).rows] == [None, None]  # the same moment


def test_messages_of_clients_that_have_gone_are_forgotten(watched):
    """Else they would be kept for ever."""
    server, counter, _, watcher = watched
    server.put(2, None)
    counter.kept.update({1: "gone", 2: "here"})
    assert [row.message for row in watcher.look(9).rows] == ["here"]
    assert counter.kept == {2: "here"}


def test_last_minute_has_a_value_for_each_second(watched):
    """What happened before the first look is not in it; the most clients of a second are."""
    server, counter, clock, watcher = watched
    counter.logged, counter.left_out, server.bytes = 0, 0, (1000, 1000)
    watcher.look(9)
    server.put(1, None)
    server.put(2, None)
    counter.logged, counter.left_out, server.bytes = 3, 0, (1010, 1020)
    clock.now += 0.5
    watcher.look(9)
    server.clients.clear()
    counter.logged, counter.left_out, server.bytes = 5, 40, (1011, 1020)
    clock.now += 2
    look = watcher.look(9)
    assert (look.clients, look.messages, look.traffic, look.left_out) == ((2, 0, 0), (3, 0, 2), (30, 0, 1), 40)
    clock.now += 1000
    look = watcher.look(9)
    assert (look.clients, look.messages, look.traffic, look.left_out) == ((0,) * 60, (0,) * 60, (0,) * 60, 0)


def test_bytes_that_are_not_known_have_no_history(watched):
    """The other bars are there all the same."""
    server, _, _, watcher = watched
    server.bytes = (None, None)
    look = watcher.look(9)
    assert look.traffic == () and len(look.messages) == 1


def test_history_ends_after_its_seconds():
    """The newest are kept; looks in the same second are one value."""
    history = History(3)
    assert history.values() == ()
    for now in (0.0, 0.9, 1.0, 2.0, 3.5):
        history.add(now, 1)
    assert history.values() == (1, 1, 1)
    history.add(5.0, 4)
    assert history.values() == (1, 0, 4)
