"""The example of a client, as a program; its own tests are run by test_pytest_plugin.py."""
from __future__ import annotations

import re
from typing import Any

import pytest

from threaded_echo.examples import instrument
from threaded_echo.examples.device import Supply, SupplyHandler
from threaded_echo.testing import Recorder

from ..conftest import LOOPBACK


def test_program_sets_and_measures_what_the_device_simulates(serve: Any, capsys: Any) -> None:
    """It prints who answers, and the voltage."""
    server = serve(SupplyHandler, Supply)
    instrument.main(["127.0.0.1", str(server.server_address[1]), "--volts", "7"])
    assert re.fullmatch(r"threaded_echo,PSU-30,1,1\.0\n(7\.00|6\.99)\d V\n", capsys.readouterr().out)
    assert server.volts == 7


def test_error_that_the_device_reports_is_told(serve: Any) -> None:
    """The exit message has its words and its number."""
    server = serve(SupplyHandler, Supply)
    with pytest.raises(SystemExit, match=r'^instrument: VOLT 31: "Data out of range" \(-222\)$'):
        instrument.main(["127.0.0.1", str(server.server_address[1]), "--volts", "31"])


def test_instrument_that_is_not_there_is_told() -> None:
    """The exit message has the system's reason."""
    with Supply(LOOPBACK, SupplyHandler) as server:
        port = server.server_address[1]
    with pytest.raises(SystemExit, match="^instrument: .*refused"):
        instrument.main(["127.0.0.1", str(port)])


@pytest.mark.parametrize("reply, volts, reason", [
    (b"PSU", "5", "invalid literal for int.*'PSU'"), (b"0,PSU", "5", "could not convert string to float: '0,PSU'"),
    (b"\xff", "5", "'ascii' codec can't decode"), (b"PSU", "\u0665", "'ascii' codec can't encode")])
def test_what_is_no_instrument_or_no_number_is_told(serve: Any, reply: bytes, volts: str, reason: str) -> None:
    """The exit message has the reason."""
    server = serve(Recorder(reply))
    with pytest.raises(SystemExit, match=f"^instrument: {reason}"):
        instrument.main(["127.0.0.1", str(server.server_address[1]), "--volts", volts])
