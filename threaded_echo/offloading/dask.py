"""Calls in a Dask cluster.

Dask itself runs a function again whose worker has died; while it reconnects to its scheduler, it keeps what is
submitted meanwhile; and it cancels what was submitted before. What its own executor leaves open is done here:

- Each call ends. Dask's `ClientExecutor` never ends a future whose result cannot be fetched, since it cannot be
  unpickled or the scheduler is lost just then, or whose client is closed.
- Each call is made, though an equal one has been: one that is shared could be ended by a caller that is not the only
  one. A program that wants to share calls says ``get_executor(pure=True)``.
- A call that its caller leaves is released. That waits for nothing, and Dask then does not begin it, unless somebody
  else wants its result.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any

CHECK_INTERVAL = 1.0
"""Seconds after which a waiting caller looks whether Dask's client is closed, since such a client ends no future."""

_LOST = "The function may have run, or may still run in a worker: Dask tells no more of this call."
_CLOSED = ("Dask's client is closed: by the program, or by itself, since it could not reach its scheduler again within "
           "its timeout. It stays closed: make another one, and assign that to the server's executor.")


class Outcome(Future[Any]):
    """The future of a call: Dask's, with an end in every case."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client

    def done(self) -> bool:
        """Return whether the call is over, which it is, too, if the client is closed."""
        if not super().done() and self._client.status == "closed":
            self.fail(CancelledError("the Dask client of this call is closed"), f"{_CLOSED} {_LOST}")
        return super().done()

    def fail(self, error: BaseException, note: str = "") -> None:
        """End the call by an error, unless it has ended."""
        if note:
            error.add_note(note)
        with suppress(InvalidStateError):  # its caller has left it, or it has noticed that the client is closed
            self.set_exception(error)

    async def follow(self, remote: Any) -> None:
        """End the call as Dask's future ends. In the client's event loop."""
        try:
            result = await _fetch(self._client, remote)
        except BaseException as error:  # the function's own, what its unpickling raises, or Dask's
            is_lost = isinstance(error, (CancelledError, OSError)) and remote.status != "error"
            self.fail(error, _LOST if is_lost else "")
        else:
            with suppress(InvalidStateError):  # as in fail
                self.set_result(result)
        finally:
            del self, remote  # the exception's traceback refers to this frame, which would refer to the exception


async def _fetch(client: Any, remote: Any) -> Any:
    """Return the result of a call, or raise its exception."""
    try:
        return await client.gather(remote, asynchronous=True)
    except OSError:  # the function's own, or the connection is lost
        raise
    except Exception:  # the function's own, or whatever its result raises when it is unpickled
        # Dask fetches what is there in one go, and fails all of it if one cannot be unpickled: so this one is fetched
        # again. It keeps the exception of a call that has failed.
        if remote.status != "finished":
            raise
    return await client.gather(remote, asynchronous=True)


class Cluster:
    """An executor that has only ``submit``: a client of Dask's, and the program's options for each submission."""

    def __init__(self, client: Any, options: dict[str, Any]) -> None:
        self._client = client
        self._options = {"pure": False, **options}

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Outcome:
        """Have a function called. Raises what Dask does if the call cannot be pickled, or if the client is closed."""
        client = self._client
        try:
            remote = client.submit(function, *args, **self._options)
        except Exception as error:
            if client.status in ("closing", "closed"):
                error.add_note(_CLOSED)
            raise
        outcome = Outcome(client)
        outcome.add_done_callback(lambda _: remote.release())
        client.loop.add_callback(outcome.follow, remote)
        return outcome


def find_cluster(executor: Any) -> Cluster | None:
    """Return what submits to Dask's client, if an executor is one, or is what its ``get_executor`` has returned."""
    distributed = sys.modules.get("distributed")  # loaded if the program uses it
    kind = getattr(distributed, "Client", None)
    if not isinstance(kind, type):
        return None
    if isinstance(executor, kind):
        return Cluster(executor, {})
    client = getattr(executor, "_client", None)  # there is no public way to it
    if isinstance(client, kind) and not getattr(executor, "_shutdown", False):
        return Cluster(client, getattr(executor, "_kwargs", {}))
    return None
