"""Runs the examples in this process."""
from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from ..tools import GUARD, running
from .test_primes import Told


def operate(main: Callable[[list[str]], None], script: Callable[[Any], Any], *arguments: str) -> Any:
    """Run a program in this thread, and a script with its address in another; SIGINT ends it.

    Returns what the script does.
    """
    told, outcome = Told(), []

    def run_script() -> None:
        try:
            found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", told.texts.get(timeout=GUARD))
            assert found
            outcome.append(script(("127.0.0.1", int(found[1]))))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with running(run_script), redirect_stdout(told):
        main(["--port", "0", *arguments])
    return outcome.pop()
