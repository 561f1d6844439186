"""Functions that tests offload: worker processes import this module, which imports next to nothing."""
from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

GUARD = 50.0  # as in tools, which imports more


def square(number: int) -> int:
    """Square a number."""
    return number * number


def same(value: Any) -> Any:
    """Return the argument."""
    return value


def keywords(**values: Any) -> dict[str, Any]:
    """Return the keywords."""
    return values


def describe() -> dict[str, Any]:
    """Return the properties of this process by which a worker differs from its server."""
    return {"process": os.getpid(), "parent": os.getppid(), "niceness": os.nice(0),
            "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "descriptors": {os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
                            if os.path.islink(path)}}  # not the one that lists them


loaded: list[Any] = []
"""What `load` has been told in this process."""


def load(*values: Any) -> Any:
    """Keep the values, as an initializer does; return what no pickler takes."""
    loaded.extend(values)
    return threading.Lock()


def keep(value: Any) -> None:
    """Keep a value."""
    loaded.append(value)


def read_loaded() -> tuple[int, list[Any]]:
    """Return this process, and what was loaded in it."""
    return os.getpid(), loaded


def fail_the_second_time(path: str) -> None:
    """Raise if a file is there, which is there afterwards."""
    if os.path.exists(path):
        raise LookupError("not again")
    open(path, "w").close()


def numbers(count: int) -> Iterator[int]:
    """Yield so many numbers."""
    yield from range(count)


def yield_for_ever() -> Iterator[int]:
    """Yield as fast as possible."""
    while True:
        yield 1


def numbers_and_fail(count: int) -> Iterator[int]:
    """Yield so many numbers, and raise."""
    yield from range(count)
    raise LookupError("no more")


def meet_for_each(address: tuple[str, int], count: int = 100) -> Iterator[bytes]:
    """Meet a listener for each item; meet it once more when the iteration is closed."""
    try:
        for _ in range(count):
            yield meet(address)
    finally:
        meet(address)


def yield_and_meet(address: tuple[str, int], items: list[Any]) -> Iterator[Any]:
    """Yield items, and meet a listener at the end."""
    yield from items
    yield meet(address)


def never_end(address: tuple[str, int]) -> Iterator[int]:
    """Yield once, and compute for ever."""
    yield os.getpid()
    meet(address)
    spin()


def will_not_close() -> Iterator[int]:
    """Yield for ever, whatever the generator is told."""
    while True:
        try:
            yield os.getpid()
        except GeneratorExit:
            pass


def fail_as_it_closes() -> Iterator[int]:
    """Raise when the iteration is closed."""
    try:
        for number in range(100):
            yield number
    finally:
        raise LookupError("as it closes")


def yield_a_lock() -> Iterator[Any]:
    """Yield what cannot be pickled."""
    yield 1
    yield threading.Lock()


def yield_a_traveller() -> Iterator[Any]:
    """Yield what cannot be unpickled."""
    yield 1
    yield Traveller()
    yield 2


def yield_and_die() -> Iterator[int]:
    """End the process between two items."""
    yield 1
    os._exit(6)


def run_a_process() -> str:
    """Use a process of one's own."""
    return subprocess.run([sys.executable, "-c", "print('hello')"], capture_output=True, text=True, check=True).stdout


def fail(message: str) -> None:
    """Raise."""
    raise LookupError(message)


def leave(status: int) -> None:
    """Raise SystemExit."""
    sys.exit(status)


def die(status: int) -> None:
    """End the process at once."""
    os._exit(status)


def affinity() -> set[int]:
    """Return the processors on which this process may run."""
    return os.sched_getaffinity(0)


def write(channel: socket.socket | Connection, data: bytes) -> int:
    """Write to a socket or a connection; return this process."""
    if isinstance(channel, Connection):
        channel.send_bytes(data)
    else:
        channel.sendall(data)
    return os.getpid()


def timeout_of(channel: socket.socket) -> float | None:
    """Return the timeout of a socket."""
    return channel.gettimeout()


def return_a_socket() -> tuple[int, socket.socket, socket.socket]:
    """Return this process and a pair of sockets."""
    return (os.getpid(), *socket.socketpair())


def die_with_a_child(address: tuple[str, int]) -> None:
    """End the process at once. A forked child, which keeps copies of its descriptors, stays until a listener answers.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them
            os.dup(int(name))
    if os.fork() == 0:
        meet(address)
        os._exit(0)
    os._exit(4)


def fork_and_return(address: tuple[str, int]) -> int:
    """Fork a child that stays until a listener answers; return this process."""
    if os.fork() == 0:
        meet(address)
        os._exit(0)
    return os.getpid()


def fork_and_return_twice() -> int:
    """Return in a forked child, too, as a careless library may."""
    os.fork()
    return 1


def meet(address: tuple[str, int]) -> bytes:
    """Send a listener the number of this process; wait for its answer, and return it."""
    with socket.create_connection(address, GUARD) as connection:
        connection.sendall(b"%d\n" % os.getpid())
        return connection.recv(16)


def backtrack() -> None:
    """Compute for ever in C, in a function that lets no other thread run."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def spin() -> None:
    """Compute for ever in Python."""
    while True:
        pass


def leave_a_thread() -> None:
    """Leave a thread that keeps the process from ending."""
    threading.Thread(target=threading.Event().wait, daemon=False).start()


class Picky(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Silent(Picky):
    """A Picky one whose text cannot be made."""

    def __str__(self) -> str:
        """Fail."""
        raise ValueError("no words")


def raise_silent() -> None:
    """Raise a Silent exception."""
    raise Silent(1, 2)


def raise_picky() -> None:
    """Raise a Picky exception."""
    raise Picky(1, 2)


def return_a_lock() -> object:
    """Return an object that cannot be pickled."""
    return threading.Lock()


def complain() -> None:
    """Raise, but only in the process of the tests, which unpickles the object."""
    if "pytest" in sys.modules:
        raise LookupError("not here")


class Deadly:
    """An object that ends the process in which it is unpickled."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


def return_and_be_killed(size: int) -> list[Any]:
    """Return something large. The process is killed as the beginning of it is unpickled."""
    return [Killer(os.getpid()), bytes(size)]


class Killer:
    """An object that kills a process when it is unpickled in the parent of that."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __reduce__(self) -> Any:
        return kill, (self.process,)


def kill(process: int) -> None:
    """Kill a process, and return when it has ended: while it finds room for what it sends, it goes on sending."""
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


stopped: list[int] = []
"""The processes that this one has stopped."""


def stop(process: int) -> None:
    """Stop a process in the middle of whatever it does, and return when it has stopped: see `kill`."""
    os.kill(process, signal.SIGSTOP)
    os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOWAIT)
    stopped.append(process)


class Stopper:
    """An object that stops a process when it is unpickled in another one."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __reduce__(self) -> Any:
        return stop, (self.process,)


def return_and_be_stopped(size: int) -> list[Any]:
    """Return something large. The process is stopped as the beginning of it is unpickled."""
    return [Stopper(os.getpid()), bytes(size)]


def yield_and_be_stopped(size: int) -> Iterator[Any]:
    """Yield once, and then something large: as before."""
    yield 1
    yield return_and_be_stopped(size)


def yield_and_fill(size: int) -> Iterator[Any]:
    """Yield this process, and then something large."""
    yield os.getpid()
    yield bytes(size)


def meet_and_return(address: tuple[str, int], size: int) -> bytes:
    """Meet a listener, and return something large."""
    meet(address)
    return bytes(size)


def interrupt() -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt


class Interrupting:
    """An object whose unpickling is interrupted."""

    def __reduce__(self) -> Any:
        return interrupt, ()


def return_interrupting() -> Interrupting:
    """Return such an object."""
    return Interrupting()


class Sightseer:
    """An object that meets a listener when it is unpickled."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    def __reduce__(self) -> Any:
        return meet, (self.address,)


class Traveller:
    """An object that can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return complain, ()


def return_a_traveller() -> Traveller:
    """Return such an object."""
    return Traveller()


def fail_with_a_traveller() -> None:
    """Raise an exception that has such an object."""
    raise LookupError(Traveller())


def end_as_it_starts(connection: Connection) -> None:
    """Behave as a worker whose script fails."""
    sys.exit(0)


def say_nothing(connection: Connection) -> None:
    """Behave as a worker that takes for ever to import its script."""
    threading.Event().wait(GUARD)
