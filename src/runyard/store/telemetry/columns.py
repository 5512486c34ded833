"""Numbers of many points as bytes: columns of 8-byte numbers, transposed and compressed.

The bytes of a column are sorted by their place in the number, since the high bytes of neighbors are
alike. Numbers that grow evenly (steps, times) are stored as differences, which are alike too. So a
point needs about 8 bytes for a value and 2 for all that its values have in common.
"""

import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import sub
from typing import TypeAlias

FORMAT = b"\x01"
LEVEL = 1  # of zlib: higher ones take twice as long for a few percent
WIDTH = 8

# Text, since an array type takes no parameters while the program runs.
Numbers: TypeAlias = "array[int] | array[float]"


def pack_columns(columns: Iterable[Numbers]) -> bytes:
    """Return columns of 8-byte numbers as bytes."""
    return FORMAT + zlib.compress(b"".join(map(_transpose, columns)), LEVEL)


def unpack_columns(data: bytes, kinds: str, size: int) -> list[Numbers]:
    """Return the columns in ``data``; ``kinds`` has the type code of each, as in ``array``."""
    if data[:1] != FORMAT:
        raise ValueError(f"packed numbers of an unknown format: {data[:1]!r}")
    raw = zlib.decompress(memoryview(data)[1:])
    length = size * WIDTH
    columns: list[Numbers] = []
    for number, kind in enumerate(kinds):
        bytes_of = bytearray(length)
        begin = number * length
        for place in range(WIDTH):
            at = begin + place * size
            bytes_of[place::WIDTH] = raw[at : at + size]
        columns.append(from_little_endian(kind, bytes_of))
    return columns


def to_differences(numbers: Sequence[int]) -> "array[int]":
    """Return the first number, and the difference of each other one to the one before."""
    return array("q", [*numbers[:1], *map(sub, numbers[1:], numbers)])


def from_differences(differences: Iterable[int]) -> list[int]:
    return list(accumulate(differences))


def to_little_endian(numbers: Numbers) -> bytes:
    """Return the bytes of an array, the lowest first."""
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()


def from_little_endian(kind: str, data: bytes | bytearray) -> Numbers:
    """Return the array whose bytes these are."""
    numbers = array(kind)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _transpose(numbers: Numbers) -> bytes:
    data = to_little_endian(numbers)
    return b"".join([data[place::WIDTH] for place in range(WIDTH)])
