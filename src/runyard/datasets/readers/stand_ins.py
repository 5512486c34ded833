"""The image that stands for a row of text only, as every record belongs to an image.

It is gray, never shown to a model, and has the same bytes everywhere, so it is stored once.
"""

import hashlib
import struct
import zlib
from pathlib import PurePosixPath

SIDE, GRAY = 16, 0xC0


def make_stand_in() -> bytes:
    """Return the image as a PNG, uncompressed, since compressors differ in their bytes."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)  # 8 bits of gray
    rows = (b"\0" + bytes([GRAY]) * SIDE) * SIDE
    # One stored block of deflate.
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_make_chunk(*chunk) for chunk in chunks)


def name_stand_in(file: str, number: int) -> str:
    """Return the image's name: after the file of the row, and the row's number in it."""
    return str(PurePosixPath(file).with_suffix("") / f"text-{number:06d}.png")


def _make_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


STAND_IN_SHA256 = hashlib.sha256(make_stand_in()).hexdigest()
