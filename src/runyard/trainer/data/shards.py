"""A shard: encoded samples in one file, written once and then only memory-mapped.

    per sample   its arrays, each aligned to 8 bytes, then a record (msgpack) with their offsets
    index        per sample: offset of its record, its length, tokens of the prompt, tokens of the
                 answer, and its state: whole, shrunk, broken or refused (int64)
    values       the table of floats that pixels index into (float32)
    trailer      magic, number of samples, offset of the index, entries of the table

Pixels are stored as in ``encode.PixelTable``: a processor that starts from 8-bit images produces a
few hundred distinct floats, so an index of one or two bytes restores exactly the same float.
Samples of one image share its pixels. A sample whose image is broken, or which is too long, has a
record with the reason and no tokens.
"""

import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from runyard.trainer.data.encode import MAX_TABLE_VALUES, EncodedSample

MAGIC = b"RYENC\x00\x02\n"
TRAILER = struct.Struct("<8sQQQ")
Array = np.ndarray[Any, Any]
WHOLE, SHRUNK, BROKEN, REFUSED = range(4)  # states of a sample; the last two have no data
INDEX_COLUMNS = 5


class ArraySpan(msgspec.Struct, array_like=True, frozen=True):
    """An array in the file.

    Table indices have another ``kind`` (dtype) than the array they encode.
    """

    offset: int
    kind: str
    shape: tuple[int, ...]
    is_indices: bool = False


class SampleLocation(msgspec.Struct, array_like=True, frozen=True):
    """The location of one sample; ``missing`` says why it has no data.

    Without ``images`` the images are processed again on each use. ``answer_spans`` are those of
    ``EncodedSample``.
    """

    prompt: ArraySpan | None
    answer: ArraySpan | None
    token_fields: dict[str, ArraySpan]
    images: dict[str, ArraySpan] | None
    missing: str | None
    answer_spans: tuple[tuple[int, int], ...] = ()


class ShardDamaged(Exception):
    """A file is not a complete shard as ``ShardWriter`` writes it."""


class ShardWriter:
    """Writes samples to an open file, which it truncates.

    Keeps one sample and the value table in memory.
    """

    def __init__(self, file: IO[bytes], *, with_images: bool):
        file.seek(0)
        file.truncate()
        self._file, self._with_images = file, with_images
        self._index: list[tuple[int, int, int, int, int]] = []
        self._values = _ValueTable()
        self._at = 0
        self._last: dict[str, tuple[Array, ArraySpan]] = {}

    def add(self, item: EncodedSample) -> None:
        images = (
            {name: self._write_image(name, array) for name, array in item.images.items()}
            if self._with_images
            else None
        )
        fields = {name: self._write(array) for name, array in item.token_fields.items()}
        record = SampleLocation(
            self._write(item.prompt),
            self._write(item.answer),
            fields,
            images,
            None,
            item.answer_spans,
        )
        self._end_sample(
            record, len(item.prompt), len(item.answer), SHRUNK if item.is_shrunk else WHOLE
        )

    def add_missing(self, why: str, state: int) -> None:
        """Add a sample without data; ``state`` is ``BROKEN`` or ``REFUSED``."""
        self._end_sample(SampleLocation(None, None, {}, None, why), 0, 0, state)

    def finish(self) -> int:
        """Write index, values and trailer, fsync, and return the size of the file."""
        index, values = (
            np.asarray(self._index, np.int64).reshape(-1, INDEX_COLUMNS),
            self._values.to_array(),
        )
        begin = self._at
        self._write(index)
        self._write(values)
        self._file.write(TRAILER.pack(MAGIC, len(index), begin, len(values)))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._at + TRAILER.size

    def _write_image(self, name: str, array: Array) -> ArraySpan:
        """Write pixels, unless the previous sample has the same image."""
        before = self._last.get(name)
        if (
            before is not None
            and before[0].dtype == array.dtype
            and np.array_equal(before[0], array)
        ):
            return before[1]
        codes = self._values.encode(array) if array.dtype == np.float32 and array.size else None
        span = self._write(array) if codes is None else self._write(codes, is_indices=True)
        self._last[name] = (array, span)
        return span

    def _write(self, array: Array, *, is_indices: bool = False) -> ArraySpan:
        data = np.ascontiguousarray(array)
        span = ArraySpan(self._at, data.dtype.str, array.shape, is_indices)
        padding = -data.nbytes % 8
        self._file.write(data.data if data.nbytes else b"")
        self._file.write(bytes(padding))
        self._at += data.nbytes + padding
        return span

    def _end_sample(self, record: SampleLocation, prompt: int, answer: int, state: int) -> None:
        data = msgspec.msgpack.encode(record)
        padding = -len(data) % 8
        self._file.write(data + bytes(padding))
        self._index.append((self._at, len(data), prompt, answer, state))
        self._at += len(data) + padding


class _ValueTable:
    """The distinct floats so far, each with a code in order of first occurrence.

    Floats are compared as bits, so that negative zeros and NaNs are restored exactly. A code is
    looked up in a hash table without collision handling; floats whose slot is taken by another are
    found by binary search.
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint32)  # by code
        self._sorted = np.zeros(0, np.uint32)
        self._sorted_codes = np.zeros(0, np.uint16)  # of the sorted bits
        self._slots = np.zeros(1 << 16, np.uint16)

    def encode(self, array: Array) -> Array | None:
        """Return the codes of these floats, adding new ones.

        None if the table would exceed ``MAX_TABLE_VALUES``.
        """
        bits = np.ascontiguousarray(array).view(np.uint32).reshape(-1)
        if not len(self._bits) and not self._add(np.unique(bits)):
            return None
        slots = (bits * np.uint32(0x9E3779B1)) >> np.uint32(16)
        codes = self._slots[slots]
        elsewhere = np.flatnonzero(self._bits[codes] != bits)
        if len(elsewhere):
            missing = bits[elsewhere]
            if not self._add(np.setdiff1d(missing, self._sorted)):
                return None
            codes[elsewhere] = self._sorted_codes[np.searchsorted(self._sorted, missing)]
        kind = np.uint8 if len(self._bits) <= 256 else np.uint16
        found: Array = codes.astype(kind).reshape(array.shape)
        return found

    def _add(self, new: Array) -> bool:
        if len(self._bits) + len(new) > MAX_TABLE_VALUES:
            return False
        if len(new):
            begin = len(self._bits)
            self._bits = np.concatenate([self._bits, new])
            order = np.argsort(self._bits, kind="stable")
            self._sorted, self._sorted_codes = self._bits[order], order.astype(np.uint16)
            slots = (new * np.uint32(0x9E3779B1)) >> np.uint32(16)
            self._slots[slots] = np.arange(begin, len(self._bits)).astype(np.uint16)
        return True

    def to_array(self) -> Array:
        return self._bits.view(np.float32)


class Shard:
    """A memory-mapped shard.

    Its arrays are views that stay valid while it is open, even if the file is removed.
    """

    def __init__(self, descriptor: int):
        """Take ownership of an open file descriptor. Raises ShardDamaged."""
        self.descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size
        if self.size_bytes < TRAILER.size:
            raise ShardDamaged("it is too short")
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        magic, count, begin, entries = TRAILER.unpack_from(
            self._map, self.size_bytes - TRAILER.size
        )
        values = begin + count * INDEX_COLUMNS * 8
        end = values + (entries * 4 + 7) // 8 * 8 + TRAILER.size
        if magic != MAGIC or end != self.size_bytes:
            raise ShardDamaged("its trailer does not match its size")
        index = np.frombuffer(self._map, np.int64, count * INDEX_COLUMNS, begin).reshape(
            -1, INDEX_COLUMNS
        )
        self._values = np.frombuffer(self._map, np.float32, entries, values)
        self._records = index[:, :2]
        self.prompt_lengths, self.answer_lengths, self.states = (
            index[:, 2],
            index[:, 3],
            index[:, 4],
        )
        self._decoder = msgspec.msgpack.Decoder(SampleLocation)

    def close(self) -> None:
        """Release the lock, so that the file may be evicted; mapped data stays readable."""
        # The map's duplicate descriptor would keep the lock.
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)

    def __len__(self) -> int:
        return len(self._records)

    def read_missing_reason(self, number: int) -> str | None:
        """Return why a sample has no data; None if it has."""
        return self._read_record(number).missing

    def read_row(self, number: int) -> EncodedSample:
        """Return the tokens of a sample."""
        record = self._read_record(number)
        # Samples without data are left out.
        assert record.prompt is not None and record.answer is not None  # noqa: S101
        fields = {name: self._read_array(span) for name, span in record.token_fields.items()}
        return EncodedSample(
            self._read_array(record.prompt),
            self._read_array(record.answer),
            fields,
            {},
            answer_spans=record.answer_spans,
        )

    def read_images(self, number: int) -> dict[str, Array] | None:
        """Return the processed image of a sample; None if it was not stored."""
        spans = self._read_record(number).images
        return (
            None
            if spans is None
            else {name: self._read_array(span) for name, span in spans.items()}
        )

    def _read_record(self, number: int) -> SampleLocation:
        offset, length = (int(value) for value in self._records[number])
        return self._decoder.decode(memoryview(self._map)[offset : offset + length])

    def _read_array(self, span: ArraySpan) -> Array:
        count = int(np.prod(span.shape, dtype=np.int64))
        array = np.frombuffer(self._map, np.dtype(span.kind), count, span.offset).reshape(
            span.shape
        )
        return self._values[array] if span.is_indices else array


def open_shard_file(path: Path) -> int | None:
    """Return a descriptor of the file; None if it does not exist."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
