"""Packs: many files in one blob, so that 50,000 small images take a few hundred durable writes
instead of 50,000.

    b"RYPACK1\\n"            8 bytes
    length of the index     8 bytes, little-endian
    index                   JSON, [[path, size], ...]
    the files' bytes        one after another, in the order of the index

A pack holds at most ``PACK_BYTES`` of content; a larger file gets its own pack. Paths satisfy
``is_safe``.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec

MAGIC = b"RYPACK1\n"
PACK_BYTES = 16 << 20
MAX_INDEX_BYTES = 8 << 20
MAX_PATH_BYTES = 1024

_File = TypeVar("_File")


class PackEntry(NamedTuple):
    """One file of a pack; ``offset`` counts from the start of the pack."""

    path: str
    offset: int
    size_bytes: int


class PackInvalid(ValueError):
    """The bytes are not a pack; the message says why."""


def build_pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Build the pack of these files.

    Raises ValueError for a path that is not safe.
    """
    listed = list(files)
    for path, _ in listed:
        if not is_safe(path):
            raise ValueError(f"{path!r} is not a plain relative path")
    index = msgspec.json.encode([[path, len(data)] for path, data in listed])
    return b"".join([MAGIC, struct.pack("<Q", len(index)), index, *(data for _, data in listed)])


def read_index(file: BinaryIO, size_bytes: int) -> list[PackEntry]:
    """Read the entries of a pack of that length.

    The file is then positioned at the first content byte.

    Raises PackInvalid unless the index accounts for every byte of the pack and names only safe
    paths.
    """
    head = file.read(16)
    if len(head) < 16 or head[:8] != MAGIC:
        raise PackInvalid(f"it does not begin with {MAGIC!r} and the length of its index")
    (length,) = struct.unpack("<Q", head[8:])
    if length > min(MAX_INDEX_BYTES, size_bytes - 16):
        raise PackInvalid(f"its index of {length} bytes is longer than allowed, or than the pack")
    try:
        rows = msgspec.json.decode(file.read(length), type=list[tuple[str, int]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise PackInvalid(f"its index cannot be read: {error}") from error
    entries, offset = [], 16 + length
    for path, size in rows:
        if size < 0:
            raise PackInvalid(f"the size of {path!r} is {size}")
        entries.append(PackEntry(path, offset, size))
        offset += size
    if offset != size_bytes:
        raise PackInvalid(f"its files end at byte {offset} and the pack at byte {size_bytes}")
    return entries


def plan_packs(
    files: Iterable[tuple[_File, int]], limit_bytes: int = PACK_BYTES
) -> Iterator[list[_File]]:
    """Group files, each given with its size, into packs, in order."""
    group: list[_File] = []
    held = 0
    for file, size_bytes in files:
        if group and held + size_bytes > limit_bytes:
            yield group
            group, held = [], 0
        group.append(file)
        held += size_bytes
    if group:
        yield group


def is_safe(path: str) -> bool:
    """Return whether this is a plain relative POSIX path: no ``.`` or ``..``, no empty part, only
    printable.
    """
    if (
        not path
        or "\\" in path
        or not path.isprintable()
        or len(path.encode(errors="replace")) > MAX_PATH_BYTES
    ):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))
