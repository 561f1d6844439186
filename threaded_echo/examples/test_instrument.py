"""Tests of the client of instruments, each against a server that the fixture ``threaded_server`` starts."""
from __future__ import annotations

import pytest

from threaded_echo import LineHandler
from threaded_echo.examples.instrument import Instrument, InstrumentError
from threaded_echo.testing import ServerFactory


def test_query_is_answered(threaded_server: ServerFactory) -> None:
    """A mapping has a reply for each message; the record has what was sent, line ends not counted."""
    device = threaded_server.record({b"*IDN?": b"ACME,PSU-30,1,1.0", b"MEAS:VOLT?": b"4.998"})
    server = threaded_server(device)
    with Instrument(server.server_address) as instrument:
        assert instrument.ask("*IDN?") == "ACME,PSU-30,1,1.0"
        assert instrument.measure() == 4.998
    assert device.messages == [b"*IDN?", b"MEAS:VOLT?"]


def test_error_of_a_command_is_raised(threaded_server: ServerFactory) -> None:
    """A list has the replies one after the other; ``None``: no reply, as to a command."""
    device = threaded_server.record([None, b'-222,"Data out of range"', None, b'0,"No error"'])
    with Instrument(threaded_server(device).server_address) as instrument:
        with pytest.raises(InstrumentError, match="VOLT 1000: .*Data out of range"):
            instrument.tell("VOLT 1000")
        instrument.tell("VOLT 5")


def test_query_is_sent_again_when_the_connection_was_lost(threaded_server: ServerFactory) -> None:
    """The server hangs up on the first client, and the same query comes from the second one."""
    device = threaded_server.record([threaded_server.HANG_UP, b"4.998"])
    with Instrument(threaded_server(device).server_address) as instrument:
        assert instrument.measure() == 4.998
    assert device.received == {1: [b"MEAS:VOLT?"], 2: [b"MEAS:VOLT?"]}


def test_instrument_that_says_nothing_is_a_timeout(threaded_server: ServerFactory) -> None:
    """Without a script there are no replies."""
    device = threaded_server.record()
    with Instrument(threaded_server(device).server_address, timeout=0.01) as instrument:
        with pytest.raises(TimeoutError):
            instrument.measure()
    assert device.wait_for(1) == [b"MEAS:VOLT?"]


class BrokenDevice(LineHandler):
    """Fails at what is no query."""

    def process(self, line: bytes) -> bytes:
        """Answer."""
        if not line.endswith(b"?"):
            raise ValueError(f"no query: {line!r}")
        return b"1.5"


def test_instrument_that_breaks_down_ends_the_command(threaded_server: ServerFactory) -> None:
    """That the handler raises an exception is expected here; otherwise it would fail the test."""
    server = threaded_server(BrokenDevice, raises=ValueError)
    with Instrument(server.server_address) as instrument:
        assert instrument.measure() == 1.5
        with pytest.raises(ConnectionError):
            instrument.tell("VOLT 5")
    assert str(threaded_server.errors[0]) == "no query: b'VOLT 5'"


def test_two_instruments_are_told_apart(threaded_server: ServerFactory) -> None:
    """A test may start several servers."""
    servers = [threaded_server(threaded_server.record(reply)) for reply in (b"1.5", b"2.5")]
    with Instrument(servers[0].server_address) as first, Instrument(servers[1].server_address) as second:
        assert (first.measure(), second.measure()) == (1.5, 2.5)
