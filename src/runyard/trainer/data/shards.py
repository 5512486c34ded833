"""Encoded samples in a file: written once, one sample after the other, and then only mapped.

    per sample   its arrays, each on a boundary of 8 bytes, then a record (msgpack) that says where they lie
    index        per sample: where its record lies, its length, tokens of the prompt, tokens of the answer, and whether
                 it is whole, shrunk, broken or refused (int64)
    values       the table of floats that pixels are indices into (float32)
    trailer      magic, samples, where the index begins, entries of the table

Pixels are kept as in ``encode.PixelTable``: a processor that starts from 8-bit pictures gives few hundred different
floats, so an index of one or two bytes gives back the very same float. Samples of one picture share its pixels. A
sample whose picture is broken, or which is too long, has a record that says why, and no tokens.
"""

import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from runyard.trainer.data.encode import LARGEST_TABLE, Encoded

MAGIC = b"RYENC\x00\x02\n"
TRAILER = struct.Struct("<8sQQQ")
Array = np.ndarray[Any, Any]
WHOLE, SHRUNK, BROKEN, REFUSED = range(4)  # what became of a sample: the last two cannot be had
COLUMNS = 5  # of the index


class Span(msgspec.Struct, array_like=True, frozen=True):
    """An array of the file. Indices into the table have another ``kind`` than the array they stand for."""

    offset: int
    kind: str
    shape: tuple[int, ...]
    is_indices: bool = False


class Record(msgspec.Struct, array_like=True, frozen=True):
    """Where one sample lies; ``missing`` says why there is none. Without ``images`` they are made anew when drawn."""

    prompt: Span | None
    answer: Span | None
    token_fields: dict[str, Span]
    images: dict[str, Span] | None
    missing: str | None


class ShardDamaged(Exception):
    """A file is not what ``ShardWriter`` writes."""


class ShardWriter:
    """Writes samples to an open file, which it begins anew. Holds one sample and the table of values."""

    def __init__(self, file: IO[bytes], *, with_images: bool):
        file.seek(0)
        file.truncate()
        self._file, self._with_images = file, with_images
        self._index: list[tuple[int, int, int, int, int]] = []
        self._values = _Values()
        self._at = 0
        self._last: dict[str, tuple[Array, Span]] = {}

    def add(self, item: Encoded) -> None:
        images = {name: self._image(name, array) for name, array in item.images.items()} if self._with_images else None
        fields = {name: self._write(array) for name, array in item.token_fields.items()}
        record = Record(self._write(item.prompt), self._write(item.answer), fields, images, None)
        self._end(record, len(item.prompt), len(item.answer), SHRUNK if item.is_shrunk else WHOLE)

    def add_missing(self, why: str, state: int) -> None:
        """A sample that cannot be had: ``BROKEN`` or ``REFUSED``."""
        self._end(Record(None, None, {}, None, why), 0, 0, state)

    def finish(self) -> int:
        """Write what stands behind the samples, fsync, and say how long the file is."""
        index, values = np.asarray(self._index, np.int64).reshape(-1, COLUMNS), self._values.in_order()
        begin = self._at
        self._write(index)
        self._write(values)
        self._file.write(TRAILER.pack(MAGIC, len(index), begin, len(values)))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._at + TRAILER.size

    def _image(self, name: str, array: Array) -> Span:
        """Pixels, unless the sample before has the same: several questions about one picture follow each other."""
        before = self._last.get(name)
        if before is not None and before[0].dtype == array.dtype and np.array_equal(before[0], array):
            return before[1]
        codes = self._values.codes_of(array) if array.dtype == np.float32 and array.size else None
        span = self._write(array) if codes is None else self._write(codes, is_indices=True)
        self._last[name] = (array, span)
        return span

    def _write(self, array: Array, *, is_indices: bool = False) -> Span:
        data = np.ascontiguousarray(array)
        span = Span(self._at, data.dtype.str, array.shape, is_indices)
        padding = -data.nbytes % 8
        self._file.write(data.data if data.nbytes else b"")
        self._file.write(bytes(padding))
        self._at += data.nbytes + padding
        return span

    def _end(self, record: Record, prompt: int, answer: int, state: int) -> None:
        data = msgspec.msgpack.encode(record)
        padding = -len(data) % 8
        self._file.write(data + bytes(padding))
        self._index.append((self._at, len(data), prompt, answer, state))
        self._at += len(data) + padding


class _Values:
    """The floats met so far, each with the number it got when it was met first.

    Floats are compared as bits, so that a negative zero or a NaN comes back as it was. A number is looked up where a
    hash of the bits points to; what is not there, because another float has the place, is searched for.
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint32)  # by number
        self._sorted = np.zeros(0, np.uint32)
        self._numbers = np.zeros(0, np.uint16)  # of the sorted ones
        self._places = np.zeros(1 << 16, np.uint16)

    def codes_of(self, array: Array) -> Array | None:
        """Numbers for these floats, new ones added; None when there would be more than ``LARGEST_TABLE``."""
        bits = np.ascontiguousarray(array).view(np.uint32).reshape(-1)
        if not len(self._bits) and not self._add(np.unique(bits)):
            return None
        places = (bits * np.uint32(0x9E3779B1)) >> np.uint32(16)
        codes = self._places[places]
        elsewhere = np.flatnonzero(self._bits[codes] != bits)
        if len(elsewhere):
            wanted = bits[elsewhere]
            if not self._add(np.setdiff1d(wanted, self._sorted)):
                return None
            codes[elsewhere] = self._numbers[np.searchsorted(self._sorted, wanted)]
        kind = np.uint8 if len(self._bits) <= 256 else np.uint16
        found: Array = codes.astype(kind).reshape(array.shape)
        return found

    def _add(self, new: Array) -> bool:
        if len(self._bits) + len(new) > LARGEST_TABLE:
            return False
        if len(new):
            begin = len(self._bits)
            self._bits = np.concatenate([self._bits, new])
            order = np.argsort(self._bits, kind="stable")
            self._sorted, self._numbers = self._bits[order], order.astype(np.uint16)
            places = (new * np.uint32(0x9E3779B1)) >> np.uint32(16)
            self._places[places] = np.arange(begin, len(self._bits)).astype(np.uint16)
        return True

    def in_order(self) -> Array:
        return self._bits.view(np.float32)


class Shard:
    """A mapped file. Its arrays are views that stay valid as long as it is open, also when the file is removed."""

    def __init__(self, descriptor: int):
        """Takes an open file over. Raises ShardDamaged."""
        self.descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size
        if self.size_bytes < TRAILER.size:
            raise ShardDamaged("it is too short")
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        magic, count, begin, entries = TRAILER.unpack_from(self._map, self.size_bytes - TRAILER.size)
        values = begin + count * COLUMNS * 8
        end = values + (entries * 4 + 7) // 8 * 8 + TRAILER.size
        if magic != MAGIC or end != self.size_bytes:
            raise ShardDamaged("its end is not that of a whole file")
        index = np.frombuffer(self._map, np.int64, count * COLUMNS, begin).reshape(-1, COLUMNS)
        self._values = np.frombuffer(self._map, np.float32, entries, values)
        self._records = index[:, :2]
        self.prompt_lengths, self.answer_lengths, self.states = index[:, 2], index[:, 3], index[:, 4]
        self._decoder = msgspec.msgpack.Decoder(Record)

    def close(self) -> None:
        """Give the lock up and the file over to removal; what was mapped stays readable."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # the map has a descriptor of its own, which keeps the lock
        os.close(self.descriptor)

    def __len__(self) -> int:
        return len(self._records)

    def missing(self, number: int) -> str | None:
        """Why there is no such sample."""
        return self._record(number).missing

    def row(self, number: int) -> Encoded:
        """The tokens of a sample."""
        record = self._record(number)
        assert record.prompt is not None and record.answer is not None  # noqa: S101 - those are left out
        fields = {name: self._array(span) for name, span in record.token_fields.items()}
        return Encoded(self._array(record.prompt), self._array(record.answer), fields, {})

    def images(self, number: int) -> dict[str, Array] | None:
        """What the processor made of its picture; None when that was not kept."""
        spans = self._record(number).images
        return None if spans is None else {name: self._array(span) for name, span in spans.items()}

    def _record(self, number: int) -> Record:
        offset, length = (int(value) for value in self._records[number])
        return self._decoder.decode(memoryview(self._map)[offset : offset + length])

    def _array(self, span: Span) -> Array:
        count = int(np.prod(span.shape, dtype=np.int64))
        array = np.frombuffer(self._map, np.dtype(span.kind), count, span.offset).reshape(span.shape)
        return self._values[array] if span.is_indices else array


def open_shard(path: Path) -> int | None:
    """A descriptor of a file that is there; None when it is not."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
