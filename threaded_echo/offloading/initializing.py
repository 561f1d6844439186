"""WorkerProcesses: a number of worker processes that are prepared before their first call."""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self


class WorkerProcesses(int):
    """``n`` worker processes, each of which calls ``initializer(*initargs)`` before its first call.

    ``executor=WorkerProcesses(2, initializer=load, initargs=("a.model",))`` is as ``executor=2``, but for that. The
    initializer is a function of a module, and keeps what it has loaded in a global variable there: each process runs
    one call at a time, and keeps its modules from call to call.

    An initializer that raises, or that cannot be pickled, fails the start of the server: WorkerDied, with the exception
    as its cause, or TypeError. So it does a call that needs a new process, after the death of another. It may take as
    long as it needs; a stop interrupts it.
    """

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]

    def __new__(cls, n: int, *, initializer: Callable[..., object] | None = None,
                initargs: tuple[Any, ...] = ()) -> Self:
        """Raise TypeError or ValueError for a wrong argument."""
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be a number of processes, not {n!r}")
        if n < 1:
            raise ValueError(f"n must be at least one process: {n!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a function, not {initializer!r}")
        made = super().__new__(cls, n)
        made.initializer, made.initargs = initializer, tuple(initargs)
        return made

    def __repr__(self) -> str:
        return f"WorkerProcesses({int(self)}, initializer={self.initializer!r})"


def find_setup(count: int) -> WorkerProcesses | None:
    """Return what a number of worker processes says of how each is prepared; ``None``: not at all."""
    return count if isinstance(count, WorkerProcesses) and count.initializer is not None else None
