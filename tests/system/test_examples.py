"""The examples as whole programs, each with a client that people have: nc, redis-cli, curl, openssl s_client."""
from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from threaded_echo.examples import tls_echo

from ..tools import GUARD
from .programs import module, next_line, program, tell
from .test_primes import ended, listening


def needs(command: str, package: str) -> pytest.MarkDecorator:
    """Skip a test if a command is not installed."""
    return pytest.mark.skipif(shutil.which(command) is None, reason=f"{package} is not installed")


def call(*command: str, **keywords: str | Path) -> str:
    """Run a command, which must end well, and return what it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=GUARD, **keywords).stdout


@needs("nc", "netcat-openbsd")
def test_netcat_and_the_client_of_instruments_use_the_device() -> None:
    """What one sets, the other sees."""
    with listening(*module("threaded_echo.examples.device")) as (process, port):
        with program("nc", "-N", "127.0.0.1", str(port)) as client:
            tell(client, "*IDN?")
            assert next_line(client) == "threaded_echo,PSU-30,1,1.0"
            tell(client, "VOLT 1000")
            tell(client, "SYST:ERR?")
            assert next_line(client) == '-222,"Data out of range"'
            printed = call(*module("threaded_echo.examples.instrument", "127.0.0.1", str(port), "--volts", "7"))
            assert re.fullmatch(r"threaded_echo,PSU-30,1,1\.0\n(7\.00|6\.99)\d V\n", printed)
            assert client.communicate("VOLT?\n", GUARD)[0] == "7.0000\n"
        assert ended(process) == []


SESSION = {"GET greeting": "hello there", "INCR count": "1", "incr count": "2", "EXISTS greeting nothing": "1",
           "KEYS c*": "count", "PING": "PONG", "FLY": "ERR unknown command 'fly'\n", "DEL greeting count": "2",
           'SET "a b" "\\x00c"': "OK", 'GET "a b"': "\0c", "EXISTS greeting": "0"}
"""What is typed, and what is printed."""


@needs("redis-cli", "redis-tools")
def test_redis_cli_keeps_values() -> None:
    """With its commands as arguments, and one after the other from its input."""
    with listening(*module("threaded_echo.examples.key_value")) as (process, port):
        client = ("redis-cli", "-h", "127.0.0.1", "-p", str(port))
        assert call(*client, "SET", "greeting", "hello there") == "OK\n"
        with program(*client) as session:
            printed, _ = session.communicate("".join(f"{line}\n" for line in SESSION), GUARD)
        assert printed == "".join(f"{answer}\n" for answer in SESSION.values())
        assert ended(process) == []


@needs("curl", "curl")
def test_curl_gets_a_file_while_the_slow_page_is_computed(tmp_path: Path) -> None:
    """The page comes, too, from a worker process."""
    (tmp_path / "file.txt").write_text("what is in the file\n")
    command = module("threaded_echo.examples.file_server", "--directory", str(tmp_path), "--workers", "1")
    curl = ("curl", "-sS", "--fail", "--noproxy", "*")
    with listening(*command) as (process, port):
        with program(*curl, f"http://127.0.0.1:{port}/slow") as slow:
            assert call(*curl, f"http://127.0.0.1:{port}/file.txt") == "what is in the file\n"
            assert slow.communicate(timeout=GUARD)[0] == "There are 664,579 primes below 10,000,000.\n"
        assert ended(process) == []


@needs("openssl", "openssl")
def test_s_client_is_known_by_its_certificate(tmp_path: Path) -> None:
    """The commands of the documentation make the certificates; without one a client is refused."""
    assert tls_echo.__doc__ is not None
    recipe = re.search(r"::\n\n((?:    .*\n)+)", tls_echo.__doc__)
    assert recipe
    subprocess.run(["sh", "-e", "-c", textwrap.dedent(recipe[1])], check=True, capture_output=True, cwd=tmp_path)
    names = {name: str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key", "alice.pem", "alice.key")}
    command = module("threaded_echo.examples.tls_echo", "--cert", names["server.pem"], "--key", names["server.key"],
                     "--ca", names["ca.pem"])
    with listening(*command) as (process, port):
        client = ("openssl", "s_client", "-quiet", "-verify_return_error", "-connect", f"127.0.0.1:{port}", "-CAfile",
                  names["ca.pem"])
        with program(*client, "-cert", names["alice.pem"], "-key", names["alice.key"]) as alice:
            tell(alice, "hello")
            while (line := next_line(alice)) != "alice: hello":
                assert line, "it has ended"  # what the client says of the server's certificate
        with program(*client) as stranger:
            said, _ = stranger.communicate("hello\n", GUARD)
            assert "certificate required" in said and "hello" not in said
        assert ended(process) == []
