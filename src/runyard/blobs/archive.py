"""The tar of a checkpoint, generated from its blobs while it is served.

A checkpoint is stored as separate blobs, since the next one shares most of them, but it is
downloaded as one tar. A tar is only headers, contents and zeros at known offsets, so its length and
any byte range follow from the list of files. Owner, times and order are fixed, so the same files
always give the same bytes. Therefore an interrupted download can continue from another process of
the server, and the hash of the archive can be registered.

``tarfile`` generates the headers (plain ustar, with a pax header where a path is long or not
ASCII), so the bytes are those that Python itself would write.
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
    """One file of an archive: its path, and the blob with its content."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Segment:
    """Bytes of the archive from ``start`` to ``end``: given here, or from a blob."""

    start: int
    end: int
    given: bytes | None = None
    sha256: str = ""


class Archive:
    """A tar of ``files`` in the given order."""

    def __init__(self, files: Iterable[ArchiveFile]) -> None:
        self._segments = _build_segments(list(files))
        self._starts = [segment.start for segment in self._segments]

    @property
    def size_bytes(self) -> int:
        """The exact length of the archive."""
        return self._segments[-1].end

    def read(self, blobs: Blobs, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to, not including, ``end``.

        Raises:
            ValueError: the range is not inside the archive.
            BlobMissing, BlobDamaged: while iterating, so a server must close the connection then.
        """
        end = self.size_bytes if end is None else end
        if not 0 <= start <= end <= self.size_bytes:
            raise ValueError(
                f"bytes {start} to {end} are outside an archive of {self.size_bytes} bytes"
            )
        return self._read(blobs, start, end)

    def sha256(self, blobs: Blobs) -> str:
        """Return the hash of the whole archive; reads every blob and so detects a damaged one."""
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
                yield from _read_blob(
                    blobs, segment.sha256, start - segment.start, stop - segment.start
                )
            start, index = stop, index + 1


def _read_blob(blobs: Blobs, sha256: str, start: int, end: int) -> Iterator[bytes]:
    with blobs.open(sha256) as file:
        file.seek(start)
        while start < end:
            chunk = file.read(min(CHUNK_BYTES, end - start))
            if not chunk:
                raise EOFError(f"blob {sha256} ends at byte {start}, expected {end} bytes")
            yield chunk
            start += len(chunk)


def _build_segments(files: list[ArchiveFile]) -> list[_Segment]:
    segments: list[_Segment] = []
    position = 0

    def add(size_bytes: int, given: bytes | None = None, sha256: str = "") -> None:
        nonlocal position
        # An empty segment would have the same start as the next one, which breaks the bisection.
        if size_bytes:
            segments.append(_Segment(position, position + size_bytes, given, sha256))
            position += size_bytes

    for file in _check_files(files):
        header = _build_header(file)
        add(len(header), given=header)
        add(file.size_bytes, sha256=file.sha256)
        add(-file.size_bytes % tarfile.BLOCKSIZE, given=bytes(-file.size_bytes % tarfile.BLOCKSIZE))
    end = 2 * tarfile.BLOCKSIZE
    end += -(position + end) % tarfile.RECORDSIZE
    add(end, given=bytes(end))
    return segments


def _build_header(file: ArchiveFile) -> bytes:
    info = tarfile.TarInfo(file.path)
    info.size = file.size_bytes
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _check_files(files: list[ArchiveFile]) -> list[ArchiveFile]:
    seen: set[str] = set()
    for file in files:
        if not _is_plain_path(file.path):
            raise ValueError(
                f"{file.path!r} is not a valid path in an archive; expected a relative path "
                "without '.' or '..' parts"
            )
        if file.path in seen:
            raise ValueError(f"{file.path!r} occurs twice in one archive")
        if file.size_bytes < 0:
            raise ValueError(f"{file.path!r} cannot have {file.size_bytes} bytes")
        seen.add(file.path)
    return files


def _is_plain_path(path: str) -> bool:
    """Return whether a path stays inside the folder of extraction, on any system."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    has_odd_characters = any(ord(character) < 32 or character in "\\:" for character in path)
    return not has_odd_characters and all(part not in ("", ".", "..") for part in path.split("/"))
