"""The example that simulates a device: its commands and queries, and what it says of wrong ones."""
from __future__ import annotations

from typing import Any

import pytest

from threaded_echo.examples import device
from threaded_echo.examples.device import Supply, SupplyHandler

from ..tools import ask, connect, receive
from .programs import operate


@pytest.fixture
def supply(serve: Any) -> Any:
    """Serve."""
    return serve(SupplyHandler, Supply)


@pytest.mark.parametrize("lines, answer", [
    (b"*IDN?", b"threaded_echo,PSU-30,1,1.0\n"), (b"*idn?\r\n", b"threaded_echo,PSU-30,1,1.0\n"),
    (b"VOLT?", b"0.0000\n"), (b"VOLT 5.5\nvoltage?", b"5.5000\n"), (b"VOLT 30;VOLT?", b"30.0000\n"),
    (b"OUTP?", b"0\n"), (b"OUTP ON\nOUTPut?", b"1\n"), (b"outp 1;outp off;outp?", b"0\n"),
    (b"VOLT 5\nOUTP ON\n*RST\nVOLT?;OUTP?", b"0.0000;0\n"), (b"\n;\n ; \n", b""),
    (b"SYST:ERR?", b'0,"No error"\n'), (b"SYST:ERR?;SYSTem:ERRor?", b'0,"No error";0,"No error"\n'),
])
def test_line_is_answered(supply: Any, lines: bytes, answer: bytes) -> None:
    """Commands have no answer; headers are short or long, small or large."""
    assert ask(supply, lines) == answer


@pytest.mark.parametrize("line, error", [
    (b"VOL 5", b'-113,"Undefined header"'), (b"*IDN", b'-113,"Undefined header"'),
    (b"\xff", b'-113,"Undefined header"'),
    (b"VOLTA 5", b'-113,"Undefined header"'), (b"VOLT", b'-109,"Missing parameter"'),
    (b"VOLT? 5", b'-108,"Parameter not allowed"'), (b"VOLT five", b'-104,"Data type error"'),
    (b"VOLT 1_0", b'-104,"Data type error"'),
    (b"VOLT 30.1", b'-222,"Data out of range"'), (b"VOLT -1", b'-222,"Data out of range"'),
    (b"VOLT nan", b'-222,"Data out of range"'), (b"OUTP MAYBE", b'-224,"Illegal parameter value"'),
])
def test_wrong_line_has_no_answer_but_an_error(supply: Any, line: bytes, error: bytes) -> None:
    """It is told once."""
    assert ask(supply, line + b"\nSYST:ERR?\nSYST:ERR?\n") == error + b'\n0,"No error"\n'


def test_errors_are_the_clients_own_and_bounded(supply: Any) -> None:
    """The latest ten are kept, until they are read or cleared."""
    with connect(supply) as client:
        client.sendall(b"WRONG\n" * 12 + b"SYST:ERR?\n" * 11)
        expected = b'-113,"Undefined header"\n' * 10 + b'0,"No error"\n'
        assert receive(client, len(expected)) == expected
        client.sendall(b"WRONG\n*IDN?\n")
        receive(client, len(b"threaded_echo,PSU-30,1,1.0\n"))
        assert ask(supply, b"SYST:ERR?\n") == b'0,"No error"\n'
        client.sendall(b"*CLS\nSYST:ERR?\n")
        assert receive(client, 13) == b'0,"No error"\n'


def test_measurement_is_about_what_is_set_if_it_is_switched_on(supply: Any) -> None:
    """All clients use the same supply."""
    assert abs(float(ask(supply, b"VOLT 5\nMEAS:VOLT?\n"))) <= 0.0021
    assert abs(float(ask(supply, b"OUTP ON\nMEASURE:VOLTAGE?\n")) - 5) <= 0.0021


def test_program_serves_until_a_signal() -> None:
    """It prints where it listens."""
    assert operate(device.main, lambda address: ask(address, b"*IDN?\n")) == b"threaded_echo,PSU-30,1,1.0\n"
