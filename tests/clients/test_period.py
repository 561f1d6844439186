"""The period of serving: what a stop says to everything that began before it."""
from __future__ import annotations

from threaded_echo.clients.period import Period

from ..tools import GUARD, Gate, connect, running, until, wait_until


def test_period_goes_from_serving_to_stopping_to_forced():
    """Each step stays, and may be taken again."""
    period = Period()
    assert (period.is_stopping(), period.forced) == (False, False)
    for _ in range(2):
        period.stop()
        assert (period.is_stopping(), period.stopping.is_set(), period.forced) == (True, True, False)
    for _ in range(2):
        period.force()
        assert (period.is_stopping(), period.forced) == (True, True)
    period.stop()
    assert period.forced, "no step is taken back"


def test_period_that_is_forced_at_once_is_stopping_too():
    """Whoever waits for the first step is not left behind by the second one."""
    period = Period()
    with running(period.stopping.wait, GUARD):
        period.force()
    wait_until(period.stopping)


def test_clients_of_an_earlier_period_go_on_seeing_its_stop(serve):
    """When the server serves again, new clients have a new period, in which nothing has stopped."""
    gate = Gate()
    server = serve(gate.handler, drain_timeout=0.0, force_timeout=0.0)
    with connect(server):
        wait_until(gate.entered)
        [survivor] = server.clients.values()
        thread, stopping = survivor.thread, server.stopping
        server.shutdown()
        gate.entered.clear()
        server.start()
        with connect(server):
            wait_until(gate.entered)
            newcomer = server.clients[2]
            seen = [survivor._period.forced, newcomer._period.is_stopping(), newcomer._period.stopping is stopping]
            gate.release.set()
            thread.join(GUARD)
            until(lambda: newcomer.state == "gone")
    assert seen == [True, False, False]
