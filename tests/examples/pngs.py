"""Reads an image, as far as the tests of the example need it."""
from __future__ import annotations

import struct
import zlib


def read_png(data: bytes) -> list[bytes]:
    """Check a grey image, and return its rows."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = [], 8
    while place < len(data):
        length, kind = struct.unpack_from("!I4s", data, place)
        body = data[place + 8:place + 8 + length]
        assert struct.unpack_from("!I", data, place + 8 + length)[0] == zlib.crc32(kind + body)
        chunks.append((kind, body))
        place += 12 + length
    assert chunks[0][0] == b"IHDR" and chunks[-1] == (b"IEND", b"")
    width, height, *rest = struct.unpack("!2I5B", chunks[0][1])
    assert rest == [8, 0, 0, 0, 0]
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    lines = [pixels[start:start + width + 1] for start in range(0, len(pixels), width + 1)]
    assert len(lines) == height and all(line[0] == 0 for line in lines)
    return [line[1:] for line in lines]
