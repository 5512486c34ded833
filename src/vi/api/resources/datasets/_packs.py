"""Packs: many small files in one upload, named by the hash of its bytes.

    b"RYPACK1\\n"          8 bytes
    length of the index   8 bytes, little-endian
    index                 JSON, [[path, size], ...]
    the files' bytes      one after another

The hash lets the server verify a pack and skip one that it already has. A pack has at most 16 MiB
of content and is built in memory. A larger file is a pack of its own, which is read twice: for the
hash and while it is sent.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from vi.api.resources.datasets._walk import LocalFile
from vi.errors import ViUploadError

PACK_BYTES = 16 << 20
_MAX_FILES = 50_000  # keeps the index of a pack of empty files short
_CHUNK_BYTES = 1 << 18
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pack:
    """Content of one upload; a ``Body`` of ``vi._http``."""

    sha256: str
    size_bytes: int
    _header_and_content: tuple[bytes | bytearray, ...]
    _large_file: LocalFile | None = None

    def chunks(self) -> Iterator[bytes]:
        for piece in self._header_and_content:
            view = memoryview(piece)
            for start in range(0, len(view), _CHUNK_BYTES):
                yield bytes(view[start : start + _CHUNK_BYTES])
        if self._large_file is not None:
            yield from _read_chunks(self._large_file)


def group_files(
    files: Iterable[LocalFile], *, limit_bytes: int = PACK_BYTES
) -> Iterator[list[LocalFile]]:
    """Yield the files of each pack, in order; the same files always give the same packs."""
    group: list[LocalFile] = []
    group_bytes = 0
    for file in files:
        if group and (group_bytes + file.size_bytes > limit_bytes or len(group) == _MAX_FILES):
            yield group
            group, group_bytes = [], 0
        group.append(file)
        group_bytes += file.size_bytes
    if group:
        yield group


def build_pack(files: Sequence[LocalFile]) -> Pack:
    """Read the files and build their pack.

    Raises:
        ViUploadError: A file cannot be read, or its size has changed.
    """
    if len(files) == 1 and files[0].size_bytes > PACK_BYTES:
        return _build_large_pack(files[0])
    content, sizes = bytearray(), []
    for file in files:
        before = len(content)
        content += _read_file(file)
        sizes.append([file.path, len(content) - before])
    head = _encode_header(sizes)
    digest = hashlib.sha256(head)
    digest.update(content)
    return Pack(digest.hexdigest(), len(head) + len(content), (head, content))


def _build_large_pack(file: LocalFile) -> Pack:
    head = _encode_header([[file.path, file.size_bytes]])
    digest = hashlib.sha256(head)
    for chunk in _read_chunks(file):
        digest.update(chunk)
    return Pack(digest.hexdigest(), len(head) + file.size_bytes, (head,), file)


def _encode_header(sizes: list[list[object]]) -> bytes:
    index = msgspec.json.encode(sizes)
    return b"RYPACK1\n" + struct.pack("<Q", len(index)) + index


def _read_file(file: LocalFile) -> bytes:
    try:
        with open(file.local_path, "rb", buffering=0) as opened:
            data = opened.read(file.size_bytes + 1)
    except OSError as error:
        raise _read_error(file, error) from error
    if data is None or len(data) != file.size_bytes:
        raise _size_changed_error(file)
    return data


def _read_chunks(file: LocalFile) -> Iterator[bytes]:
    left_bytes = file.size_bytes
    try:
        with open(file.local_path, "rb", buffering=0) as opened:
            while left_bytes and (chunk := opened.read(min(_READ_BYTES, left_bytes))):
                left_bytes -= len(chunk)
                yield chunk
            if left_bytes or os.fstat(opened.fileno()).st_size != file.size_bytes:
                raise _size_changed_error(file)
    except OSError as error:
        raise _read_error(file, error) from error


def _read_error(file: LocalFile, error: OSError) -> ViUploadError:
    return ViUploadError(
        f"{file.local_path} cannot be read: {error.strerror or error}",
        suggestion="try: check that it exists and is readable, then import again",
        cause=error,
    )


def _size_changed_error(file: LocalFile) -> ViUploadError:
    return ViUploadError(
        f"the size of {file.local_path} changed during the import, expected: {file.size_bytes} "
        "bytes",
        suggestion="try: wait until nothing writes to it, then import again",
    )
