"""Packs: many small files in one upload, named by the hash of its bytes, so that each is sent once and proven whole.

    b"RYPACK1\\n"          8 bytes
    length of the index   8 bytes, little-endian
    index                 JSON, [[path, size], ...]
    the files' bytes      one after another

A pack has at most 16 MiB of content and is made in memory; a larger file is a pack of its own and is read twice, once
for the hash and once while it is sent.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from vi.api.resources.datasets._files import LocalFile
from vi.errors import ViUploadError

PACK_BYTES = 16 << 20
_MOST_FILES = 50_000  # keeps the index of a pack of empty files short
_CHUNK_BYTES = 1 << 18
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pack:
    """One upload; a ``Body`` of ``vi._http``."""

    sha256: str
    size_bytes: int
    _held: tuple[bytes | bytearray, ...]
    _rest: LocalFile | None = None

    def chunks(self) -> Iterator[bytes]:
        for piece in self._held:
            view = memoryview(piece)
            for start in range(0, len(view), _CHUNK_BYTES):
                yield bytes(view[start : start + _CHUNK_BYTES])
        if self._rest is not None:
            yield from _read(self._rest)


def planned(files: Iterable[LocalFile], *, limit_bytes: int = PACK_BYTES) -> Iterator[list[LocalFile]]:
    """Which files go into a pack together, in their order: the same files always make the same packs."""
    group: list[LocalFile] = []
    held_bytes = 0
    for file in files:
        if group and (held_bytes + file.size_bytes > limit_bytes or len(group) == _MOST_FILES):
            yield group
            group, held_bytes = [], 0
        group.append(file)
        held_bytes += file.size_bytes
    if group:
        yield group


def packed(files: Sequence[LocalFile]) -> Pack:
    """Read the files and make their pack.

    Raises:
        ViUploadError: a file cannot be read, or is being written to.
    """
    if len(files) == 1 and files[0].size_bytes > PACK_BYTES:
        return _of_one(files[0])
    content, sizes = bytearray(), []
    for file in files:
        before = len(content)
        content += _whole(file)
        sizes.append([file.path, len(content) - before])
    head = _head(sizes)
    digest = hashlib.sha256(head)
    digest.update(content)
    return Pack(digest.hexdigest(), len(head) + len(content), (head, content))


def _of_one(file: LocalFile) -> Pack:
    head = _head([[file.path, file.size_bytes]])
    digest = hashlib.sha256(head)
    for chunk in _read(file):
        digest.update(chunk)
    return Pack(digest.hexdigest(), len(head) + file.size_bytes, (head,), file)


def _head(sizes: list[list[object]]) -> bytes:
    index = msgspec.json.encode(sizes)
    return b"RYPACK1\n" + struct.pack("<Q", len(index)) + index


def _whole(file: LocalFile) -> bytes:
    try:
        with open(file.place, "rb", buffering=0) as opened:
            data = opened.read(file.size_bytes + 1)
    except OSError as error:
        raise _unreadable(file, error) from error
    if data is None or len(data) != file.size_bytes:
        raise _changed(file)
    return data


def _read(file: LocalFile) -> Iterator[bytes]:
    left_bytes = file.size_bytes
    try:
        with open(file.place, "rb", buffering=0) as opened:
            while left_bytes and (chunk := opened.read(min(_READ_BYTES, left_bytes))):
                left_bytes -= len(chunk)
                yield chunk
            if left_bytes or os.fstat(opened.fileno()).st_size != file.size_bytes:
                raise _changed(file)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: LocalFile, error: OSError) -> ViUploadError:
    return ViUploadError(
        f"{file.place} cannot be read: {error.strerror or error}",
        suggestion="Check that it is still there and that you may read it; then import again.",
        cause=error,
    )


def _changed(file: LocalFile) -> ViUploadError:
    return ViUploadError(
        f"{file.place} is no longer as long as it was, {file.size_bytes} bytes",
        suggestion="Something writes to it. Let that end, then import again.",
    )
