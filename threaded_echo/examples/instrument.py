"""A client of measuring instruments, and how its tests use the pytest fixture ``threaded_server``.

The tests are in ``test_instrument.py``: run ``python3 -m pytest --pyargs threaded_echo.examples.test_instrument``, from
a checkout with ``-p threaded_echo.pytest_plugin``. Against the example ``device``, or a real instrument, run ``python3
-m threaded_echo.examples.instrument 127.0.0.1 5025``, which sets 5 volts and prints what is measured.
"""
from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any


class InstrumentError(Exception):
    """Raised for an error that the instrument reports, with its number and its words."""


class Instrument:
    """Speaks to an instrument with SCPI, a line each way; a query is sent again if the connection was lost meanwhile.

    ``timeout``: seconds to wait for an answer. Methods raise OSError if there is none, and ValueError if it is wrong,
    or if the text to send is not ASCII.
    """

    def __init__(self, address: tuple[Any, ...], timeout: float = 5.0) -> None:
        self._address, self._timeout = address, timeout
        self._connect()

    def __enter__(self) -> Instrument:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):  # what is lost needs no close
            self._lines.close()
        self._socket.close()

    def ask(self, query: str) -> str:
        """Send a query, and return the answer."""
        try:
            return self._ask(query)
        except ConnectionError:  # the instrument was switched off and on: a query changes nothing, so ask again
            self.close()
            self._connect()
            return self._ask(query)

    def tell(self, command: str) -> None:
        """Send a command, which has no answer. Raises InstrumentError if the instrument reports an error."""
        self._send(command)
        number, _, words = self._ask("SYST:ERR?").partition(",")
        if int(number):
            raise InstrumentError(f"{command}: {words} ({number})")

    def measure(self) -> float:
        """Return the voltage."""
        return float(self.ask("MEAS:VOLT?"))

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address, self._timeout)
        self._lines = self._socket.makefile("rw", encoding="ascii", newline="\n")

    def _send(self, line: str) -> None:
        self._lines.write(f"{line}\n")
        self._lines.flush()

    def _ask(self, query: str) -> str:
        self._send(query)
        answer = self._lines.readline()
        if not answer.endswith("\n"):
            raise ConnectionResetError("the instrument has ended the connection")
        return answer[:-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Set and measure a voltage. Raises SystemExit if that fails."""
    parser = argparse.ArgumentParser(prog="instrument", description="Have an instrument set and measure a voltage.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--volts", default="5")
    options = parser.parse_args(arguments)
    try:
        with Instrument((options.host, options.port)) as instrument:
            print(instrument.ask("*IDN?"))
            instrument.tell(f"VOLT {options.volts}")
            instrument.tell("OUTP ON")
            print(f"{instrument.measure():.3f} V")
    except (OSError, OverflowError, ValueError, InstrumentError) as error:
        raise SystemExit(f"instrument: {error}") from None


if __name__ == "__main__":
    main()
