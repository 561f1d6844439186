"""Certificates made by the openssl command: an authority's, and what it signs."""
from __future__ import annotations

import subprocess
from pathlib import Path

from ..tools import GUARD


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=GUARD)


class Authority:
    """Signs certificates with new keys, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                 "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                 "-keyout", self._key, "-out", self.certificate)

    def sign(self, name: str, subject: str | None = None) -> tuple[Path, Path]:
        """Make a certificate for 127.0.0.1; return its file and its key's, ``name`` with ``.pem`` and ``.key``."""
        certificate, key, request = (self._folder / f"{name}{end}" for end in (".pem", ".key", ".csr"))
        extensions = self._folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
                              "keyUsage=digitalSignature\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                 "-subj", f"/CN={subject or name}", "-keyout", key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", "2",
                 "-extfile", extensions, "-out", certificate)
        return certificate, key
