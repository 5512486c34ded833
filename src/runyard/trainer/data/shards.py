"""A shard: encoded samples in one file, written once and then only memory-mapped.

    per sample   its arrays, each aligned to 8 bytes, then a record (msgpack) with their offsets
    index        per sample: offset of its record, its length, tokens of the prompt, tokens of the
                 answer, and its state: whole, shrunk, broken or refused (int64)
    tables       the floats of 8-bit pixels, 256 for each channel (float32)
    trailer      magic, number of samples, offset of the index, entries of the tables

Image tensors are stored as ``pixels.PixelCodec`` packs them, which restores exactly the same ones.
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

from runyard.trainer.data.encode import EncodedSample
from runyard.trainer.data.pixels import LEVELS, PackedArray, PixelCodec

MAGIC = b"RYENC\x00\x03\n"
TRAILER = struct.Struct("<8sQQQ")
Array = np.ndarray[Any, Any]
WHOLE, SHRUNK, BROKEN, REFUSED = range(4)  # states of a sample; the last two have no data
INDEX_COLUMNS = 5


class ArraySpan(msgspec.Struct, array_like=True, frozen=True):
    """An array in the file: its place, dtype and shape, and what they restore.

    ``restored`` has dtype and shape of a ``PackedArray``, its block and its repeats.
    """

    offset: int
    kind: str
    shape: tuple[int, ...]
    restored: tuple[str, tuple[int, ...], int, int] | None = None


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

    Keeps one sample in memory. ``codec`` packs images that are not yet packed.
    """

    def __init__(self, file: IO[bytes], *, with_images: bool, codec: PixelCodec | None = None):
        file.seek(0)
        file.truncate()
        self._file, self._with_images = file, with_images
        self._codec = codec or PixelCodec()
        self._index: list[tuple[int, int, int, int, int]] = []
        self._at = 0
        self._last: dict[str, tuple[PackedArray, ArraySpan]] = {}

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
        """Write index, tables and trailer, fsync, and return the size of the file."""
        index = np.asarray(self._index, np.int64).reshape(-1, INDEX_COLUMNS)
        begin = self._at
        self._write(index)
        self._write(self._codec.tables)
        self._file.write(TRAILER.pack(MAGIC, len(index), begin, self._codec.tables.size))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._at + TRAILER.size

    def _write_image(self, name: str, array: Array | PackedArray) -> ArraySpan:
        """Write an image tensor, unless the previous sample has the same one."""
        packed = array if isinstance(array, PackedArray) else self._codec.pack(array)
        before = self._last.get(name)
        if before is not None and before[0].is_same(packed):
            return before[1]
        restored = (packed.kind, packed.shape, packed.block, packed.repeats)
        span = self._write(packed.data, restored)
        self._last[name] = (packed, span)
        return span

    def _write(
        self, array: Array, restored: tuple[str, tuple[int, ...], int, int] | None = None
    ) -> ArraySpan:
        data = np.ascontiguousarray(array)
        span = ArraySpan(self._at, data.dtype.str, array.shape, restored)
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
        if magic != MAGIC or end != self.size_bytes or entries % LEVELS:
            raise ShardDamaged("its trailer does not match its size")
        index = np.frombuffer(self._map, np.int64, count * INDEX_COLUMNS, begin).reshape(
            -1, INDEX_COLUMNS
        )
        self.tables = np.frombuffer(self._map, np.float32, entries, values).reshape(-1, LEVELS)
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

    @property
    def has_images(self) -> bool:
        """Whether images were stored, if any sample has one."""
        whole = np.flatnonzero(self.states < BROKEN)
        return not len(whole) or self._read_record(int(whole[0])).images is not None

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

    def read_images(self, number: int) -> dict[str, PackedArray] | None:
        """Return the processed image of a sample; None if it was not stored."""
        spans = self._read_record(number).images
        return (
            None
            if spans is None
            else {name: self._read_packed(span) for name, span in spans.items()}
        )

    def _read_record(self, number: int) -> SampleLocation:
        offset, length = (int(value) for value in self._records[number])
        return self._decoder.decode(memoryview(self._map)[offset : offset + length])

    def _read_packed(self, span: ArraySpan) -> PackedArray:
        array = self._read_array(span)
        kind, shape, block, repeats = span.restored or (span.kind, span.shape, 0, 1)
        return PackedArray(array, kind, shape, block, repeats)

    def _read_array(self, span: ArraySpan) -> Array:
        count = int(np.prod(span.shape, dtype=np.int64))
        return np.frombuffer(self._map, np.dtype(span.kind), count, span.offset).reshape(span.shape)


def open_shard_file(path: Path) -> int | None:
    """Return a descriptor of the file; None if it does not exist."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
