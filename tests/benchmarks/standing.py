"""The benchmarks of servers that stand: many clients at once, and idle ones. Each runs a program of its own."""
from __future__ import annotations

import json
import subprocess

from .measure import ROOT, Step, Table, Where, compiled, environment
from .peers import ONE_CPU
from .standing_server import BARE, SECONDS


def program(where: Where, *arguments: object, seconds: float = SECONDS) -> dict[str, float]:
    """Run a standing server, and return its figures. One that is idle is watched for so long."""
    command = [where.python, "-m", f"{__package__}.standing_server", *map(str, arguments), str(compiled("load")),
               str(seconds)]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT,
                                                          env=environment(), preexec_fn=where.pin).stdout)
    return figures


def many(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """100, 1,000 and 10,000 clients at once: connecting, memory, one more accept, stopping and joining them all."""
    wanted = [BARE, "stock", "threaded_echo", *(peer for peer in peers if peer == ONE_CPU)]
    table = Table("many", "Many clients", "stop_s", "seconds to stop and join them all",
                  ("connect_s", "kb_a_client", "one_more_us"), more_is_better=False, base=BARE)

    def step(peer: str, count: int) -> Step:
        return lambda: table.row(where.named(f"{count:,} clients"), peer).add(program(where, "many", peer, count))

    return table, [step(peer, count) for count in (100, 1000, 10_000) for peer in wanted]


def idle(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """Wake-ups and processor time over some seconds, with 0 and 100 clients; and the time of a stop."""
    table = Table("idle", "Idle", "wakeups_a_second", "wake-ups a second", ("cpu_ms_a_second", "stop_ms"),
                  more_is_better=False)

    def step(peer: str, count: int) -> Step:
        return lambda: table.row(where.named(f"{count} clients"), peer).add(program(where, "idle", peer, count))

    return table, [step(peer, count) for count in (0, 100) for peer in ("stock", "threaded_echo")]
