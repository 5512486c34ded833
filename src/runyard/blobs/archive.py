"""The tar of a checkpoint, served from its blobs without ever being built.

A checkpoint is stored as separate blobs, since the next one shares most of them, yet it is downloaded as one tar. A tar
is only headers, contents and zeros at known offsets, so length and any byte range follow from the list of files. Owner,
times and order are fixed: the same files always make the same bytes, so a cut download can go on against another
process of the server, and the archive's hash is worth registering.

The headers come from ``tarfile`` itself (plain ustar, with a pax header where a path is long or not ASCII), so what
Python writes and what we serve are the same bytes.
"""

import hashlib
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runyard.blobs.protocol import Blobs

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class ArchiveFile:
    """One file of an archive: where it goes, and which blob holds it."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Segment:
    """Bytes of the archive from ``start`` to ``end``: given here, or those of a blob."""

    start: int
    end: int
    given: bytes | None = None
    sha256: str = ""


class Archive:
    """A tar of ``files`` in the given order."""

    def __init__(self, files: Iterable[ArchiveFile]) -> None:
        self._segments = _segments(list(files))
        self._starts = [segment.start for segment in self._segments]

    @property
    def size_bytes(self) -> int:
        """Exact length of the archive."""
        return self._segments[-1].end

    def read(self, blobs: Blobs, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to, not including, ``end``.

        Raises:
            ValueError: the range does not lie inside the archive.
            BlobMissing, BlobDamaged: while iterating, so a server must close the connection then.
        """
        end = self.size_bytes if end is None else end
        if not 0 <= start <= end <= self.size_bytes:
            raise ValueError(f"bytes {start} to {end} do not lie in an archive of {self.size_bytes} bytes")
        return self._read(blobs, start, end)

    def sha256(self, blobs: Blobs) -> str:
        """Hash of the whole archive; reads every blob once and so finds a damaged one."""
        digest = hashlib.sha256()
        for chunk in self.read(blobs):
            digest.update(chunk)
        return digest.hexdigest()

    def _read(self, blobs: Blobs, start: int, end: int) -> Iterator[bytes]:
        index = bisect_right(self._starts, start) - 1
        while start < end:
            segment = self._segments[index]
            stop = min(end, segment.end)
            if segment.given is not None:
                yield segment.given[start - segment.start : stop - segment.start]
            else:
                yield from _read_blob(blobs, segment.sha256, start - segment.start, stop - segment.start)
            start, index = stop, index + 1


def _read_blob(blobs: Blobs, sha256: str, start: int, end: int) -> Iterator[bytes]:
    with blobs.open(sha256) as file:
        file.seek(start)
        while start < end:
            chunk = file.read(min(CHUNK_BYTES, end - start))
            if not chunk:
                raise EOFError(f"blob {sha256} ends at byte {start}, yet its archive counts on {end}")
            yield chunk
            start += len(chunk)


def _segments(files: list[ArchiveFile]) -> list[_Segment]:
    segments: list[_Segment] = []
    position = 0

    def add(size_bytes: int, given: bytes | None = None, sha256: str = "") -> None:
        nonlocal position
        if size_bytes:  # an empty segment would share its start with the next one and confuse the search
            segments.append(_Segment(position, position + size_bytes, given, sha256))
            position += size_bytes

    for file in _checked(files):
        header = _header(file)
        add(len(header), given=header)
        add(file.size_bytes, sha256=file.sha256)
        add(-file.size_bytes % tarfile.BLOCKSIZE, given=bytes(-file.size_bytes % tarfile.BLOCKSIZE))
    end = 2 * tarfile.BLOCKSIZE
    end += -(position + end) % tarfile.RECORDSIZE
    add(end, given=bytes(end))
    return segments


def _header(file: ArchiveFile) -> bytes:
    info = tarfile.TarInfo(file.path)
    info.size = file.size_bytes
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _checked(files: list[ArchiveFile]) -> list[ArchiveFile]:
    seen: set[str] = set()
    for file in files:
        if not _is_plain_path(file.path):
            raise ValueError(f"{file.path!r} cannot go into an archive; give a relative path without '.' or '..' parts")
        if file.path in seen:
            raise ValueError(f"{file.path!r} stands twice in one archive")
        if file.size_bytes < 0:
            raise ValueError(f"{file.path!r} cannot have {file.size_bytes} bytes")
        seen.add(file.path)
    return files


def _is_plain_path(path: str) -> bool:
    """Whether a path stays below the folder an archive is unpacked into, on any system, and can be written down."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    has_odd_characters = any(ord(character) < 32 or character in "\\:" for character in path)
    return not has_odd_characters and all(part not in ("", ".", "..") for part in path.split("/"))
