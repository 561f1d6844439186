"""Turns go round the hosts that wait."""
from __future__ import annotations

import random
import socket
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from threaded_echo import ClientHandler, OffloadRefused, ThreadedUnixStreamServer
from threaded_echo.clients.period import Period
from threaded_echo.offloading.call import Call, Terms
from threaded_echo.offloading.turns import Turn, Turns

from .. import calls
from ..tools import GUARD, Gate, connect, receive, running, until, wait_until
from .tools import calling, meet_at, meeting_server, stay, wait_for


def connect_from(host: str, server) -> socket.socket:
    """Connect from an address of this machine."""
    return socket.create_connection(server.server_address, GUARD, source_address=(host, 0))


def line_up(server, clients: list[socket.socket]) -> None:
    """Have clients call, one after the other."""
    for client in clients:
        stats = server.stats()
        before = stats.offloads_running + stats.offloads_waiting
        client.sendall(b"\n")
        wait_for(server, lambda stats: stats.offloads_running + stats.offloads_waiting == before + 1)


@pytest.mark.parametrize("kind", ["inline", "workers", "worker threads", "threads"])
def test_one_connection_waits_for_two_calls_of_a_host_with_fifty(kind, meeting):
    """The one that runs, and one more. All others are served in their order."""
    with meeting_server(kind, meeting, max_offloads=1) as server, ExitStack() as stack:
        many = [stack.enter_context(connect_from("127.0.0.1", server)) for _ in range(50)]
        one = stack.enter_context(connect_from("127.0.0.2", server))
        line_up(server, [*many, one])
        for number in range(51):
            meeting.welcome()
            assert not meeting.is_awaited()
            meeting.dismiss(b"%02d" % number)
        replies = [int(receive(client, 3)) for client in (one, *many)]
        assert replies[0] <= 2, "so many calls have begun before it"
        assert replies[1:] == sorted(replies[1:]) and sorted(replies) == list(range(51))


def test_share_of_a_host_leaves_the_others_a_worker(meet, meeting):
    """However many workers are free. A call of the program's own has no host."""
    server = meet(executor=3, max_offloads_per_host=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect_from(host, server)) for host in ("127.0.0.1", "127.0.0.1", "127.0.0.2")]
        line_up(server, clients[:2])
        meeting.welcome()
        line_up(server, clients[2:])
        meeting.welcome()
        assert (server.stats().offloads_running, server.stats().offloads_waiting) == (2, 1)
        stack.enter_context(running(server.offload, calls.meet, meeting.address))
        meeting.welcome()
        assert server.stats().offloads_running == 3
        meeting.dismiss(b"1")
        meeting.welcome()
        for _ in range(3):
            meeting.dismiss(b"2")
        assert [receive(client, 2) for client in clients] == [b"1\n", b"2\n", b"2\n"]


def test_share_of_a_host_can_refuse(meet, meeting):
    """Only that host is refused, and the limit is named. It may try again."""
    server = meet(max_offloads_per_host=1, at_offload_limit="refuse")
    with connect(server) as one, connect(server) as other, connect_from("127.0.0.2", server) as third:
        line_up(server, [one])
        meeting.welcome()
        other.sendall(b"\n")
        assert receive(other, 15) == b"OffloadRefused\n"
        line_up(server, [third])
        meeting.welcome()
        meeting.dismiss()
        meeting.dismiss()
        assert receive(one, 3) == receive(third, 3) == b"go\n"
        wait_for(server, lambda stats: stats.offloads_running == 0)
        line_up(server, [other])
        meeting.welcome()
        meeting.dismiss()
        assert receive(other, 3) == b"go\n"


def test_each_client_of_a_unix_socket_is_a_host(tmp_path, meeting):
    """Its address says nothing about who it is, and it can make one call at a time."""
    path = str(tmp_path / "socket")
    server = ThreadedUnixStreamServer(path, meet_at(meeting), executor=2, max_offloads_per_host=1)
    with server.start(), connect(server) as one, connect(server) as other:
        line_up(server, [one, other])
        assert server.stats().offloads_running == 2
        for _ in range(2):
            meeting.welcome()
            meeting.dismiss()
        assert receive(one, 3) == receive(other, 3) == b"go\n"


# The turns alone.

class Hosts:
    """Makes turns for calls of hosts."""

    def __init__(self, slots: int | None, per_host: int | None = None, limit: int | None = None,
                 refuses: bool = False) -> None:
        self.turns = Turns()
        self.slots, self.limit, self.refuses = slots, limit, refuses
        self.terms = Terms(per_host=per_host)

    def call(self, host: str | None) -> Turn:
        """Make a call, which begins or waits."""
        client = host and SimpleNamespace(address=(host, 0))
        call = Call(Period(), client, calls.square, (), {}, nullcontext, self.terms)
        turn = Turn(call, self.slots, self.limit, self.refuses, False)
        turn.waker = SimpleNamespace(set=lambda: None)
        if not self.turns.begin(turn):
            self.turns.wait(turn)
        return turn

    def run_all(self, waiting: list[Turn]) -> str:
        """End the calls in the order in which they begin; return their hosts in that order."""
        order = ""
        while waiting:
            turn = next(turn for turn in waiting if turn.has_slot)
            waiting.remove(turn)
            self.turns.end(turn)
            order += turn.call.client.address[0] if turn.call.client else "-"
        return order


def test_turns_go_round():
    """Each host that waits has one, then each again."""
    hosts = Hosts(1)
    assert hosts.run_all([hosts.call(host) for host in "aaaabbc"]) == "aabcaba"
    assert not hosts.turns._hosts and not hosts.turns._ring
    assert (hosts.turns.running, hosts.turns.waiting) == (0, 0)


def test_host_that_comes_again_is_the_last_one():
    """Those that have waited meanwhile go first."""
    hosts = Hosts(1)
    first, waiting = hosts.call("a"), [hosts.call("b"), hosts.call("c")]
    hosts.turns.end(first)
    waiting.append(hosts.call("a"))
    assert hosts.run_all(waiting) == "bca"


def test_calls_of_the_program_take_turns_as_one_host():
    """They do not go ahead of clients, nor behind them all."""
    hosts = Hosts(1, per_host=1)
    assert hosts.run_all([hosts.call(host) for host in ("a", "b", "b", None, None, "c")]) == "ab-cb-"


def test_call_that_leaves_the_queue_leaves_the_others_their_turns():
    """Wherever it was in it."""
    for gone in range(1, 5):
        hosts = Hosts(1)
        turns = [hosts.call(host) for host in "aabbc"]
        turn = turns.pop(gone)
        hosts.turns.end(turn)
        hosts.turns.end(turn)  # once more, which has no effect
        rest = [host for number, host in enumerate("aabbc") if number != gone]
        assert sorted(hosts.run_all(turns)) == rest
        assert not hosts.turns._hosts


def test_host_at_its_share_does_not_hold_up_the_others():
    """It is passed over until one of its calls ends."""
    hosts = Hosts(3, per_host=1)
    turns = [hosts.call(host) for host in "aaabc"]
    assert [turn.has_slot for turn in turns] == [True, False, False, True, True]
    hosts.turns.end(turns[3])
    assert not turns[1].has_slot, "a slot is free, but not for this host"
    hosts.turns.end(turns[0])
    assert turns[1].has_slot and not turns[2].has_slot


def test_call_does_not_overtake_those_of_its_host():
    """The limit may have been raised meanwhile."""
    hosts = Hosts(2, per_host=1)
    first, second = hosts.call("a"), hosts.call("a")
    hosts.terms = Terms(per_host=2)
    third = hosts.call("a")
    assert (first.has_slot, second.has_slot, third.has_slot) == (True, False, False)


@pytest.mark.parametrize("limits", [{"limit": 2}, {"per_host": 2}])
def test_refused_call_leaves_no_trace(limits):
    """Neither in the counts nor in the list of hosts."""
    hosts = Hosts(None, refuses=True, **limits)
    hosts.slots = limits.get("limit")
    turns = [hosts.call("a"), hosts.call("a")]
    with pytest.raises(OffloadRefused, match="no more than 2"):
        hosts.call("b" if "limit" in limits else "a")
    for turn in turns:
        hosts.turns.end(turn)
    assert not hosts.turns._hosts


def test_no_limit_makes_nobody_wait():
    """As with an executor of the program's, which has a queue of its own."""
    hosts = Hosts(None)
    assert all(turn.has_slot for turn in [hosts.call("a") for _ in range(100)])


@pytest.mark.parametrize("seed", range(20))
def test_random_calls_are_all_served_within_the_limits(seed):
    """However they come, end and leave. While slots are free, nobody waits who may run."""
    pick = random.Random(seed)
    slots, per_host = pick.randint(1, 4), pick.choice([None, 1, 2])
    hosts = Hosts(slots, per_host)
    open_turns: list[Turn] = []
    for step in range(600):
        if step < 400 and pick.random() < 0.55 or not open_turns:
            open_turns.append(hosts.call(pick.choice("abcdef")))
        else:
            turn = pick.choice(open_turns)
            open_turns.remove(turn)
            hosts.turns.end(turn)
        running_now = [turn.call.client.address[0] for turn in open_turns if turn.has_slot]
        assert hosts.turns.running == len(running_now) <= slots
        assert hosts.turns.waiting == len(open_turns) - len(running_now)
        for turn in open_turns:
            share = running_now.count(turn.call.client.address[0])
            assert per_host is None or share <= per_host
            if not turn.has_slot:
                assert len(running_now) == slots or share == per_host
    hosts.run_all(open_turns)
    assert not hosts.turns._hosts and not hosts.turns._ring


def test_slot_that_comes_to_a_call_as_it_gives_up_is_not_lost(serve, monkeypatch):
    """The call that gives it away ends as always, and the next one gets it."""
    gate, server = Gate(), serve(ClientHandler, max_offloads=1)
    offloads = server._threaded_state.offloads
    real = offloads._end

    def end(turn: Any, succeeded: bool) -> None:
        """Let the first call end just before the one that is late."""
        if turn.call.terms.timeout is not None:
            gate.release.set()
            until(lambda: server.stats().offloads_done == 1)
        real(turn, succeeded)

    with calling(server.offload, stay, gate) as outcome:
        wait_until(gate.entered)
        monkeypatch.setattr(offloads, "_end", end)
        with pytest.raises(TimeoutError):
            server.offload_within(0.01, calls.square, 2)
    assert outcome == [None]
    assert server.offload(calls.square, 3) == 9
    assert not server.offloads() and server.stats().offloads_running == 0
