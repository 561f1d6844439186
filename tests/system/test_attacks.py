"""Attacks and faults: in each of them another client is served all the while, and the stop stays bounded."""
from __future__ import annotations

import itertools
import socket
import ssl
import sys

import pytest

from threaded_echo import LineHandler, ThreadedTCPServer

from ..tools import GUARD, LOOPBACK, receive
from .attacks import ATTACKS, CERTIFICATE, under_attack

# A host of its own: where one host's share is limited, the attacker's is used up. Elsewhere there is only one.
OTHER_HOST = "127.0.0.9" if sys.platform == "linux" else LOOPBACK[0]


class Service(LineHandler):
    """Replies with the line, or fails."""

    def process(self, line):
        """Fail if that is asked for."""
        if line == b"fail":
            raise LookupError("as asked for")
        if line == b"compute":
            return b"%d" % self.offload(len, bytes(1_000_000))
        return line


def other_client(server, tls):
    """Connect from another host than the attacker's; where the server has no room at first, again and again."""
    for _ in itertools.count():
        client = socket.create_connection(server.server_address, GUARD, (OTHER_HOST, 0))
        try:
            if tls:
                context = ssl.create_default_context(cafile=CERTIFICATE)
                context.check_hostname = False
                client = context.wrap_socket(client)
            talk(client, b"hello")
            return client
        except (OSError, AssertionError):  # no thread, no room
            client.close()


def talk(client, message):
    """Make one round trip."""
    client.sendall(message + b"\n")
    assert receive(client, len(message) + 1) == message + b"\n"


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_harms_no_other_client_and_the_stop_is_clean(name):
    """One client is served before and during the attack, another one comes in the middle of it."""
    attack = ATTACKS[name]
    options = dict(attack.options)
    if attack.tls:
        options["ssl_context"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        options["ssl_context"].load_cert_chain(CERTIFICATE)
    server = ThreadedTCPServer(LOOPBACK, Service, drain_timeout=0.5, force_timeout=GUARD, **options).start()
    try:
        with other_client(server, attack.tls) as client, under_attack(name, server) as enough:
            for number in itertools.count():
                talk(client, b"%d" % number)
                if enough.wait(0.001):  # and leave the processor to the attack, and to a worker of low priority
                    break
            with other_client(server, attack.tls) as late:
                talk(late, b"late")
            report = server.stop()
    finally:
        server.stop(0)
    assert report.clean, report
    stats = server.stats()
    assert stats.accepted == stats.finished + stats.refused
    assert stats.live == stats.threads_busy == stats.threads_idle == 0
