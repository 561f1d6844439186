"""What systemd hands in, and how it is told: the variables are made here."""
from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from threaded_echo import ThreadedTCPServer
from threaded_echo.transport import systemd

from ..conftest import LOOPBACK
from ..tools import GUARD, ask

FIRST = 200  # in place of 3, which is something else's in a test


@pytest.fixture
def hand_in(monkeypatch):
    """Hand in what has descriptors; returns the variables."""
    monkeypatch.setattr(systemd, "_FIRST", FIRST)
    opened = []

    def hand(*files, **variables):
        for number, file in enumerate(files, FIRST):
            os.dup2(file.fileno(), number)  # which is inheritable
            opened.append(number)
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(files)), "HOME": "/", **variables}

    yield hand
    for number in opened:
        try:
            os.close(number)
        except OSError:  # a socket has taken it, and is closed
            pass


@pytest.fixture
def listeners(monkeypatch, tmp_path):
    """Listen on TCP and on a Unix socket."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(LOOPBACK) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("here")
        unix.listen()
        yield tcp, unix


def test_sockets_are_taken_and_not_handed_on(hand_in, listeners):
    """They are of any family. Neither they nor the variables are inherited by children."""
    environ = hand_in(*listeners, LISTEN_FDNAMES="tcp:unix")
    taken = systemd.take_sockets(environ)
    assert environ == {"HOME": "/"}
    assert [listener.fileno() for listener in taken] == [FIRST, FIRST + 1]
    assert [listener.family for listener in taken] == [socket.AF_INET, socket.AF_UNIX]
    assert not any(listener.get_inheritable() for listener in taken)
    with ThreadedTCPServer.from_sockets(taken).start() as server:
        assert [ask(address) for address in server.server_addresses] == [b"ping\n"] * 2


@pytest.mark.parametrize(("variables", "reason"), [
    ({}, "handed in no sockets: the variables LISTEN_PID and LISTEN_FDS are not set"),
    ({"LISTEN_PID": "1"}, "handed in no sockets"), ({"LISTEN_FDS": "1"}, "handed in no sockets"),
    ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, rf"to process 1, and this is {os.getpid()}"),
    ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}, "are wrong: LISTEN_PID='\\d+', LISTEN_FDS='0'"),
    ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "99999"}, "are wrong"),
    ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"}, "are wrong"),
    ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "\u0663"}, "are wrong"),
    ({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, "are wrong"),
])
def test_variables_that_are_not_for_this_process_are_an_error(variables, reason):
    """They stay as they are: perhaps they are a child's."""
    environ = dict(variables)
    with pytest.raises(systemd.NotGiven, match=reason):
        systemd.take_sockets(environ)
    assert environ == variables


def test_descriptor_that_cannot_be_accepted_from_is_an_error(hand_in, listeners, tmp_path):
    """The error says which one it is; all that were handed in are closed, and would not be inherited."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        file = stack.enter_context(open(tmp_path / "file", "w"))
        for wrong, reason in ((silent, "does not listen"), (datagrams, "is no stream socket"),
                              (file, "is not a socket: ")):
            with pytest.raises(systemd.NotGiven, match=f"descriptor 201 that systemd has handed in {reason}"):
                systemd.take_sockets(hand_in(listeners[0], wrong))
            with pytest.raises(OSError):
                os.fstat(FIRST)


def test_descriptor_that_is_not_open_is_an_error(hand_in, listeners):
    """The number says more than there is."""
    with pytest.raises(systemd.NotGiven, match="descriptor 201 .* is not a socket: Bad file descriptor"):
        systemd.take_sockets(hand_in(listeners[0]) | {"LISTEN_FDS": "2"})


@pytest.mark.parametrize("address", ["./notify", "@threaded_echo test"])
def test_systemd_is_told_at_a_path_or_an_abstract_name(address, monkeypatch, tmp_path):
    """The variable has an @ for the byte 0 of an abstract name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(GUARD)
        listener.bind(address.replace("@", "\0"))
        systemd.notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_systemd_that_cannot_be_told_is_logged(monkeypatch, tmp_path, caplog):
    """The server goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify("READY=1")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("systemd cannot be told READY=1: ")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("variables", "seconds"), [
    ({"WATCHDOG_USEC": "30000000"}, 15.0), ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None), ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "soon"}, None), ({}, None), ({"WATCHDOG_USEC": "30000000", "NOTIFY_SOCKET": ""}, None)])
def test_watchdog_is_told_at_half_of_its_limit(variables, seconds, monkeypatch):
    """Unless it is another process's, or there is nobody to tell."""
    for name, value in {"NOTIFY_SOCKET": "/nowhere", **variables}.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval() == seconds
