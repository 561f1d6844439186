"""Simulates a power supply that is set and asked with SCPI, a line each way, as instruments in a laboratory are.

Run ``python3 -m threaded_echo.examples.device``, then ``nc 127.0.0.1 5025``, and type ``*IDN?``, ``VOLT 5``, ``OUTP
ON`` and ``MEAS:VOLT?``. What is wrong gets no answer, but ``SYST:ERR?`` tells of it. All clients use the same supply,
each with errors of its own.
"""
from __future__ import annotations

import argparse
import random
import re
from collections import deque
from collections.abc import Callable, Sequence

from threaded_echo import LineHandler, ThreadedTCPServer

HIGHEST = 30.0  # volts that may be set
_NOISE = 0.002  # volts
_MOST_ERRORS = 10  # that are kept for a client: the latest


class Supply(ThreadedTCPServer):
    """The power supply: what is set."""

    volts = 0.0
    is_on = False


class SupplyHandler(LineHandler):
    """Obeys commands, and answers queries; several in a line are separated by semicolons."""

    server: Supply
    max_line = 1024

    def setup(self) -> None:
        """Begin without errors."""
        super().setup()
        self.errors: deque[str] = deque(maxlen=_MOST_ERRORS)

    def process(self, line: bytes) -> bytes | None:
        """Return the answers to the queries in the line; ``None``: there are no queries, or they are wrong."""
        answers = []
        for command in line.decode("ascii", "replace").split(";"):
            header, _, parameter = command.strip().partition(" ")
            try:
                answers.append(header and self.obey(header, parameter.strip()))
            except ValueError as error:
                self.errors.append(str(error))
        return ";".join(filter(None, answers)).encode() or None

    def obey(self, header: str, parameter: str) -> str:
        """Do what one command says, and return its answer, empty for none. Raises ValueError."""
        for pattern, takes_parameter, act in COMMANDS:
            if pattern.fullmatch(header):
                if bool(parameter) != takes_parameter:
                    raise ValueError('-109,"Missing parameter"' if takes_parameter else '-108,"Parameter not allowed"')
                return act(self, parameter) or ""
        raise ValueError('-113,"Undefined header"')

    def reset(self, _: str) -> None:
        """Switch off."""
        self.server.volts, self.server.is_on = 0.0, False

    def set_voltage(self, parameter: str) -> None:
        """Set the voltage."""
        try:
            volts = float(parameter.replace("_", "?"))  # Python allows it in numbers, SCPI does not
        except ValueError:
            raise ValueError('-104,"Data type error"') from None
        if not 0 <= volts <= HIGHEST:
            raise ValueError('-222,"Data out of range"')
        self.server.volts = volts

    def switch(self, parameter: str) -> None:
        """Switch the output on or off."""
        if parameter.upper() not in ("ON", "OFF", "1", "0"):
            raise ValueError('-224,"Illegal parameter value"')
        self.server.is_on = parameter.upper() in ("ON", "1")

    def measure(self, _: str) -> str:
        """Measure the voltage at the output."""
        return f"{self.server.volts * self.server.is_on + random.uniform(-_NOISE, _NOISE):.4f}"

    def next_error(self, _: str) -> str:
        """Tell the oldest error, once."""
        return self.errors.popleft() if self.errors else '0,"No error"'


def _pattern(header: str) -> re.Pattern[str]:
    """Make what matches a header with or without the letters that are small in it, in either case."""
    return re.compile(re.sub("[a-z]+", r"(?:\g<0>)?", re.escape(header)), re.IGNORECASE)


COMMANDS: list[tuple[re.Pattern[str], bool, Callable[[SupplyHandler, str], str | None]]] = [
    (_pattern("*IDN?"), False, lambda handler, _: "threaded_echo,PSU-30,1,1.0"),
    (_pattern("*RST"), False, SupplyHandler.reset),
    (_pattern("*CLS"), False, lambda handler, _: handler.errors.clear()),
    (_pattern("SYSTem:ERRor?"), False, SupplyHandler.next_error),
    (_pattern("VOLTage"), True, SupplyHandler.set_voltage),
    (_pattern("VOLTage?"), False, lambda handler, _: f"{handler.server.volts:.4f}"),
    (_pattern("OUTPut"), True, SupplyHandler.switch),
    (_pattern("OUTPut?"), False, lambda handler, _: f"{handler.server.is_on:d}"),
    (_pattern("MEASure:VOLTage?"), False, SupplyHandler.measure),
]
"""Each header, whether it takes a parameter, and what it does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="device", description="Simulate a power supply that understands SCPI.")
    parser.add_argument("--port", type=int, default=5025, help="0 picks a free one (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with Supply(("127.0.0.1", options.port), SupplyHandler) as server:
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
    except (OSError, OverflowError) as error:
        raise SystemExit(f"device: cannot serve: {error}") from None


if __name__ == "__main__":
    main()
