"""How much one client, or one kind of error, may log."""
from __future__ import annotations

import importlib
import logging

import pytest

from threaded_echo import EchoHandler
from threaded_echo.observe import logs
from threaded_echo.observe.logs import NOTICE, BoundedLog, LogLimit, printable

from ..tools import ask, connect, receive, together

LOGGER = logging.getLogger("threaded_echo.test_logs")


def said(caplog):
    """Return what the clients have said, and what of it was left out; not that they have come and gone."""
    return [record.getMessage() for record in caplog.records if record.event in ("message", "omitted")]


def test_limit_admits_so_many_in_a_window():
    """The next window admits as many again, and begins with its first record."""
    limit = LogLimit(2, seconds=10)
    assert [limit.admit(now) for now in (100, 101, 102, 109.9, 110, 115, 119)] == [
        True, True, False, False, True, True, False]
    assert [limit.admit(now) for now in (130, 139, 139.5, 140)] == [True, True, False, True]


def test_limit_of_none_admits_all():
    """Nothing is counted, either."""
    limit = LogLimit(None)
    assert all(limit.admit(0) for _ in range(1000))
    assert limit.take_left_out() == 0


def test_count_of_what_is_left_out_is_taken_once_when_the_window_has_ended():
    """Who does not ask for the end of the window gets the count at once."""
    limit = LogLimit(1, seconds=10)
    assert [limit.admit(0), limit.admit(1)] == [True, False]
    limit.leave_out(5)
    assert [limit.take_left_out(now) for now in (2, 9.9, 10, 11)] == [0, 0, 6, 0]
    assert [limit.admit(20), limit.admit(21)] == [True, False]
    assert [limit.take_left_out(), limit.take_left_out()] == [1, 0]


def test_limit_holds_for_several_threads_together():
    """No more are admitted than the limit allows, and none is lost from the count."""
    limit = LogLimit(100)
    admitted = together(4, lambda: sum(limit.admit(0) for _ in range(1000)))
    assert sum(admitted) == 100
    assert limit.take_left_out() == 3900


def test_records_of_a_kind_are_bounded_and_counted(caplog):
    """Another kind has a limit of its own, and the count comes with the next record after the window."""
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    now = 0.0
    log = BoundedLog(LOGGER, clock=lambda: now)
    for number in range(5):
        log.log(2, "handler failures", logging.ERROR, "client %d failed", number, extra={"client": number})
    log.log(2, "refused clients", logging.INFO, "client 9 refused")
    now = 10.0
    log.log(2, "handler failures", logging.ERROR, "client 5 failed")
    assert caplog.messages == ["client 0 failed", "client 1 failed", "client 9 refused",
                               "3 more handler failures were not logged", "client 5 failed"]
    assert caplog.records[0].client == 0


def test_counts_that_are_left_are_logged_at_the_end(caplog):
    """Each count is logged once."""
    log = BoundedLog(LOGGER)
    for _ in range(1234 + 1):
        log.log(1, "handler failures", logging.ERROR, "failed")
    log.log(1, "other failures", logging.ERROR, "failed in another way")
    for _ in range(2):
        log.flush()
    assert caplog.messages == ["failed", "failed in another way", "1,234 more handler failures were not logged"]


def test_record_that_nobody_listens_to_is_not_counted(caplog):
    """The level is asked for first, so that such a record costs nothing and leaves out none."""
    caplog.set_level(logging.ERROR, logger=LOGGER.name)
    log = BoundedLog(LOGGER)
    for _ in range(5):
        log.log(1, "refused clients", logging.INFO, "refused")
    log.flush()
    assert caplog.messages == []


def test_chunk_of_line_ends_makes_no_more_records_than_the_limit(serve, caplog):
    """The rest of the lines is counted, and the count is logged when the client goes."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(EchoHandler)
    assert ask(server, b"\n" * 65536) == b"\n" * 65536
    server.stop()
    assert said(caplog) == ["client 1: "] * 100 + ["client 1: 65,436 more lines were not logged"]
    assert {(record.client, record.address[0]) for record in caplog.records} == {(1, "127.0.0.1")}
    assert [record.event for record in caplog.records] == [
        "connected", *["message"] * 100, "omitted", "disconnected"]


@pytest.mark.parametrize(("message", "count"), [(b"1\n2\n3\n4", 2), (b"1\n2\n3\n4\n", 2), (b"1\n2\n3", 1),
                                                (b"1\n2\n", 0), (b"1\n2", 0)])
def test_lines_that_are_left_out_are_counted_with_or_without_a_last_line_end(message, count, serve, caplog):
    """A last line without an end is a line, too."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(EchoHandler, logs_per_client=2)
    assert ask(server, message) == message
    server.stop()
    counted = [f"client 1: {count} more lines were not logged"] if count else []
    assert said(caplog) == ["client 1: 1", "client 1: 2", *counted]


def test_limit_is_each_clients_own_and_the_servers_option(serve, caplog):
    """One client's flood costs another client none of its lines."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(EchoHandler, logs_per_client=1)
    with connect(server) as one, connect(server) as other:
        for client in (one, one, other):
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
    server.stop()
    assert sorted(said(caplog)) == ["client 1: 1 more lines were not logged", "client 1: x", "client 2: x"]


def test_no_limit_logs_all(serve, caplog):
    """``None`` is no limit."""
    caplog.set_level(logging.INFO, logger="threaded_echo")
    server = serve(EchoHandler, logs_per_client=None)
    ask(server, b"\n" * 1000)
    server.stop()
    assert said(caplog) == ["client 1: "] * 1000


def test_line_end_cannot_forge_a_record():
    """It is escaped, as all that is not printable."""
    assert printable("a\nclient 2: b\x1b") == "a\\nclient 2: b\\x1b"


def test_level_of_what_a_server_tells_has_a_name():
    """A format with ``%(levelname)s`` shows no "Level 25"."""
    assert logging.getLevelName(NOTICE) == "NOTICE"


def test_level_that_the_program_has_named_keeps_its_name():
    """Levels are the whole process's."""
    logging.addLevelName(NOTICE, "SUCCESS")
    try:
        importlib.reload(logs)
        assert logging.getLevelName(NOTICE) == "SUCCESS"
    finally:
        logging.addLevelName(NOTICE, "NOTICE")
