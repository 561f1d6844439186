"""Sends lines back over TLS, to clients that have a certificate, under the name that is in it.

An authority of one's own signs the certificates; its key stays with whoever may let clients in::

    openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=my authority" -keyout ca.key -out ca.pem \\
        -addext keyUsage=critical,keyCertSign,cRLSign
    for name in server alice; do
        openssl req -x509 -newkey rsa:2048 -nodes -days 90 -subj "/CN=$name" -keyout $name.key -out $name.pem \\
            -extensions usr_cert -CA ca.pem -CAkey ca.key
    done

Run ``python3 -m threaded_echo.examples.tls_echo --cert server.pem --key server.key --ca ca.pem``, then ``openssl
s_client -quiet -connect 127.0.0.1:8443 -CAfile ca.pem -cert alice.pem -key alice.key``. SIGHUP loads a renewed
certificate.
"""
from __future__ import annotations

import argparse
import logging
import ssl
from collections.abc import Sequence

from threaded_echo import LineHandler, ThreadedTCPServer

logger = logging.getLogger(__name__)


class NamedEchoHandler(LineHandler):
    """Sends each line back with the client's name."""

    def setup(self) -> None:
        """Find the name, which the authority vouches for."""
        super().setup()
        tls = self.client.tls
        if tls is None or not tls.certificate:
            raise ValueError("this handler needs a context that requires certificates")
        subject = {name: value for part in tls.certificate["subject"] for name, value in part}
        self.name: bytes = subject.get("commonName", "nobody").encode()
        logger.info("client %d is %r, by %s", self.client.number, subject, tls.version)

    def process(self, line: bytes) -> bytes:
        """Return the line."""
        return b"%s: %s" % (self.name, line)


def make_context(authority: str) -> ssl.SSLContext:
    """Make a context for clients whose certificate the authority has signed; others are refused in the handshake."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SystemExit if it cannot."""
    parser = argparse.ArgumentParser(prog="tls_echo", description="Send lines back to clients that have a certificate.")
    parser.add_argument("--port", type=int, default=8443, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--cert", required=True, help="the server's certificate, in PEM")
    parser.add_argument("--key", required=True, help="its key")
    parser.add_argument("--ca", required=True, help="the certificate of the authority that signs the clients'")
    options = parser.parse_args(arguments)
    try:
        with ThreadedTCPServer(("127.0.0.1", options.port), NamedEchoHandler,
                               ssl_context=make_context(options.ca)) as server:
            server.reload_tls(options.cert, options.key)  # the first time; SIGHUP does it again
            print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
            server.run()
    except (OSError, OverflowError) as error:
        raise SystemExit(f"tls_echo: cannot serve: {error}") from None


if __name__ == "__main__":
    main()
