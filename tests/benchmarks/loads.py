"""The benchmarks that are a load on each peer: connections, ping-pong, lines, a chat, and the cost of the registry."""
from __future__ import annotations

from .measure import C_SERVER, Step, Table, Where, one
from .peers import ONE_CPU, OPTIONS, SAME_BUFFER, SHOWN

COLUMNS = ("switches_a_round", "p50_us", "p99_us", "load_cpu")


def connections(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """Connect, one message of 64 bytes, close: 8 and 64 at a time."""
    table = Table("connections", "Connections", "per_second", "a second", COLUMNS)
    return table, [one(table, f"{count} at a time", peer, "echo", ("connect", count, seconds, 64), where)
                   for count in (8, 64) for peer in peers if peer != SAME_BUFFER]


def pingpong(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """A message and its echo, again and again: 1, 64 and 512 clients with 64 bytes, 8 with 64 KiB."""
    table = Table("pingpong", "Ping-pong", "per_second", "a second", COLUMNS)
    loads = [(1, 64), (64, 64), (512, 64), (8, 65536)]
    return table, [one(table, f"{count} client{'s' * (count > 1)}, {size} B", peer, "echo",
                       ("pingpong", count, seconds, size), where) for count, size in loads for peer in peers
                   # Four sends for a message, and no TCP_NODELAY: that would measure Nagle's algorithm.
                   if peer != SAME_BUFFER or size == 64]


def lines(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """A line and its echo, again and again, and a hundred lines at once."""
    table = Table("lines", "Lines", "per_second", "rounds a second", COLUMNS)
    wanted = [peer for peer in peers if peer not in ("asyncio protocols", C_SERVER, SAME_BUFFER)]  # they have no lines
    loads = [(8, 1, 32), (64, 1, 64), (8, 100, 32)]
    return table, [one(table, f"{clients} clients, {count} line{'s' * (count > 1)} of {size} B", peer, "lines",
                       ("pingpong", clients, seconds, size * count, count), where)
                   for clients, count, size in loads for peer in wanted]


def chat(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """Lines of 64 bytes to each of 1,000 clients, of whom 1, or 8, speak. The times are until they have their own back.
    """
    table = Table("chat", "Chat", "delivered_per_second", "lines delivered a second", COLUMNS, base="asyncio streams")
    wanted = [peer for peer in peers if peer in ("stock", "threaded_echo", ONE_CPU) or peer.endswith("streams")]
    return table, [one(table, f"1,000 clients, {speakers} speak{'s' * (speakers == 1)}", peer, "chat",
                       ("chat", 1000, seconds, 64, speakers), where) for speakers in (1, 8) for peer in wanted]


def options(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """What options cost that no client runs into: connections, 8 at a time, and ping-pong of 64 clients."""
    table = Table("options", "Options", "per_second", "a second", COLUMNS)
    loads = {"connections, 8 at a time": ("connect", 8, seconds, 64), "64 clients, 64 B": ("pingpong", 64, seconds, 64)}
    return table, [one(table, load, "threaded_echo", name, arguments, where, name)
                   for load, arguments in loads.items() for name in OPTIONS]


def live(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """What the table of ``--live`` costs the clients: connections and ping-pong, with it and without, messages too."""
    table = Table("live", "The table of --live", "per_second", "a second", COLUMNS, base="without it")
    loads = {"connections, 8 at a time": ("connect", 8, seconds, 64), "64 clients, 64 B": ("pingpong", 64, seconds, 64),
             "512 clients, 64 B": ("pingpong", 512, seconds, 64)}
    return table, [one(table, f"{load}, {body.partition(',')[0]}", "threaded_echo", body, arguments, where,
                       "with it" if with_table else "without it")
                   for load, arguments in loads.items() for body, (_, with_table) in SHOWN.items()]


def cost(peers: list[str], seconds: float, where: Where) -> tuple[Table, list[Step]]:
    """What the registry and the counting cost: one handler body, 64 clients; with and without somebody looking."""
    table = Table("cost", "The same handler body", "per_second", "a second", ("p50_us", "p99_us"))

    def step(peer: str, body: str, name: str) -> Step:
        inner = Table("", "", "per_second", "", ())
        run = one(inner, "", peer, body, ("pingpong", 64, seconds, 64), where)

        def add() -> None:
            inner.rows.clear()
            run()
            table.row(where.named("64 clients, 64 B"), name).add(
                {key: values[-1] for key, values in inner.rows[0].figures.items()})
        return add

    return table, [step("stock", "same", "stock"), step("threaded_echo", "same", "threaded_echo"),
                   step("threaded_echo", "watched", "threaded_echo, watched")]
