"""Which addresses are one host."""
from __future__ import annotations

import pytest

from threaded_echo.transport.hosts import host_of


@pytest.mark.parametrize(("address", "host"), [
    (("127.0.0.2", 4000), "127.0.0.2"),
    (("::ffff:127.0.0.2", 4000, 0, 0), "127.0.0.2"),
    (("::ffff:7f00:2", 4000, 0, 0), "127.0.0.2"),
    (("2001:db8:1:2:3:4:5:6", 4000, 0, 0), "2001:db8:1:2::/64"),
    (("2001:db8:1:2::9", 4001, 0, 0), "2001:db8:1:2::/64"),
    (("2001:db8:1:3::9", 4001, 0, 0), "2001:db8:1:3::/64"),
    (("fe80::1%eth0", 4000, 0, 2), "fe80::/64"),
    (("::1", 4000, 0, 0), "::/64"),
    (("not:an:address", 1), "not:an:address"),
    ("", None), ("/run/client", None), (b"\0name", None), (None, None), ((), None),
    ((5, 6), 5), ((b"bytes", 6), b"bytes"),
])
def test_host_of_an_address(address, host):
    """IPv4 in both forms, the network of an IPv6 address, or none."""
    assert host_of(address) == host
