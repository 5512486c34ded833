"""Blobs in a folder: ``<root>/<first two digits>/<hash>``, with checksums in ``<hash>.crc``.

A blob appears atomically: it is written to ``incoming``, compared with its announced length and
hash, fsynced, renamed, and its folder fsynced; without the last step a power failure could undo the
rename. Two uploads of the same hash write separate files, and the later rename replaces equal
bytes.

Disks flip bits. Hashing a whole blob for every range of a download would be slow, so each blob has
a CRC-32 for every 64 KiB. A reader checks whole blocks before it returns a byte: a flipped bit is
reported, never served, at the cost of about a millisecond per MiB. The checksums are a cache of
what the hash proves. When they are missing or do not match, the whole blob is hashed; if the hash
matches, the checksums were wrong and are rebuilt.
"""

import hashlib
import io
import logging
import os
import re
import shutil
import struct
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runyard.blobs.errors import BlobDamaged, BlobHeld, BlobMismatch, BlobMissing, InvalidBlobName
from runyard.blobs.holds import Hold, Holds

BLOCK_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class FolderBlobs:
    """The embedded store; ``runyard.blobs.protocol.Blobs`` documents the methods."""

    def __init__(self, root: Path, *, holds: Holds | None = None) -> None:
        self.root = root
        self._incoming = root / "incoming"
        self._holds = holds or Holds()

    def put(self, stream: BinaryIO, *, sha256: str, size_bytes: int) -> None:
        with self.receive(sha256=sha256, size_bytes=size_bytes) as upload:
            while chunk := stream.read(BLOCK_BYTES):
                upload.write(chunk)

    @contextmanager
    def receive(self, *, sha256: str, size_bytes: int) -> Iterator["FolderUpload"]:
        path = self._path(sha256)
        _make_folder(self._incoming)
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        incoming = Path(name)
        try:
            with open(descriptor, "wb") as file:
                upload = FolderUpload(file, sha256=sha256, size_bytes=size_bytes)
                yield upload
                upload.check()
                file.flush()
                os.fsync(file.fileno())
            _make_folder(path.parent)
            # Checksums first: a blob without them would be hashed when it is opened.
            self._write_checksums(path, upload.checksums.pack())
            os.replace(incoming, path)
            _fsync_folder(path.parent)
        finally:
            incoming.unlink(missing_ok=True)

    def has(self, sha256: str) -> bool:
        return self._path(sha256).is_file()

    def size_bytes(self, sha256: str) -> int:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error

    def open(self, sha256: str) -> BinaryIO:
        path = self._path(sha256)
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the reader
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error
        try:
            raw = _CheckedFile(
                file,
                sha256=sha256,
                checksums=self._read_checksums(path, file),
                rebuild=lambda: self._rebuild_checksums(path, file),
            )
        except BaseException:
            file.close()
            raise
        return io.BufferedReader(raw, buffer_size=BLOCK_BYTES)

    def verify(self, sha256: str) -> bool:
        try:
            with open(self._path(sha256), "rb", buffering=0) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error

    def hold(self, hashes: Iterable[str]) -> Hold:
        """Hold these blobs, also those not yet stored, until the hold is released."""
        return self._holds.acquire(self._path(sha256) for sha256 in hashes)

    def is_held(self, sha256: str) -> bool:
        return self._holds.has(self._path(sha256))

    def delete(self, sha256: str) -> None:
        path = self._path(sha256)
        if self._holds.has(path):
            raise BlobHeld(sha256)
        # The blob first: checksums without a blob are harmless, a blob without checksums still
        # counts as stored.
        path.unlink(missing_ok=True)
        _checksums_path(path).unlink(missing_ok=True)
        if path.parent.is_dir():
            _fsync_folder(path.parent)

    def hashes(self) -> Iterator[str]:
        for shard in self.root.glob("[0-9a-f][0-9a-f]"):
            for path in shard.iterdir():
                if _is_hash(path.name):
                    yield path.name

    def clear_incoming(self) -> None:
        """Remove the remains of uploads that a crash interrupted.

        Only for the owner, before it serves.
        """
        shutil.rmtree(self._incoming, ignore_errors=True)

    def _path(self, sha256: str) -> Path:
        if not _is_hash(sha256):
            raise InvalidBlobName(sha256)
        return self.root / sha256[:2] / sha256

    def _write_checksums(self, path: Path, packed: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with open(descriptor, "wb") as file:
                file.write(packed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, _checksums_path(path))
        finally:
            Path(name).unlink(missing_ok=True)

    def _read_checksums(self, path: Path, file: io.FileIO) -> "array[int]":
        """Read the checksums of a blob; rebuild them when they do not match its length."""
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            packed = _checksums_path(path).read_bytes()
        except FileNotFoundError:
            packed = b""
        if len(packed) != 4 * _block_count(size_bytes) + 8 or packed[-8:] != struct.pack(
            "<Q", size_bytes
        ):
            return self._rebuild_checksums(path, file)
        return _unpack_checksums(packed)

    def _rebuild_checksums(self, path: Path, file: io.FileIO) -> "array[int]":
        """Hash the blob and rebuild its checksums; raise BlobDamaged if the hash does not match."""
        digest, checksums = hashlib.sha256(), _Checksums()
        file.seek(0)
        while chunk := file.read(BLOCK_BYTES):
            digest.update(chunk)
            checksums.update(chunk)
        if digest.hexdigest() != path.name:
            log.error(
                "blob %s has changed on disk and is not served",
                path.name,
                extra={"sha256": path.name},
            )
            raise BlobDamaged(path.name)
        log.warning(
            "the checksums of blob %s were missing or wrong, and were rebuilt",
            path.name,
            extra={"sha256": path.name},
        )
        packed = checksums.pack()
        _make_folder(self._incoming)
        self._write_checksums(path, packed)
        return _unpack_checksums(packed)


class FolderUpload:
    """A blob being written: counts, hashes and checksums its bytes."""

    def __init__(self, file: io.BufferedWriter, *, sha256: str, size_bytes: int) -> None:
        self.checksums = _Checksums()
        self._file = file
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.checksums.update(chunk)
        if self.checksums.size_bytes > self._size_bytes:
            raise self._mismatch(None)
        self._file.write(chunk)

    def check(self) -> None:
        """Raise BlobMismatch unless exactly the announced bytes were written."""
        got = self._digest.hexdigest()
        if got != self._sha256 or self.checksums.size_bytes != self._size_bytes:
            raise self._mismatch(got)

    def _mismatch(self, got_sha256: str | None) -> BlobMismatch:
        return BlobMismatch(
            sha256=self._sha256,
            size_bytes=self._size_bytes,
            got_sha256=got_sha256,
            got_size_bytes=self.checksums.size_bytes,
        )


class _Checksums:
    """CRC-32 of every block of a stream that arrives in chunks of any length."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._finished: list[int] = []
        self._current = 0

    def update(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            left = BLOCK_BYTES - self.size_bytes % BLOCK_BYTES
            piece = view[:left]
            self._current = zlib.crc32(piece, self._current)
            self.size_bytes += len(piece)
            if len(piece) == left:
                self._finished.append(self._current)
                self._current = 0
            view = view[left:]

    def pack(self) -> bytes:
        """Return four bytes per block, then the blob's length in eight bytes."""
        crcs = self._finished + ([self._current] if self.size_bytes % BLOCK_BYTES else [])
        return struct.pack(f"<{len(crcs)}IQ", *crcs, self.size_bytes)


class _CheckedFile(io.RawIOBase):
    """A reader of whole blocks, each compared with its checksum before any of it is returned."""

    def __init__(
        self,
        file: io.FileIO,
        *,
        sha256: str,
        checksums: "array[int]",
        rebuild: Callable[[], "array[int]"],
    ) -> None:
        self._file = file
        self._sha256 = sha256
        self._checksums = checksums
        self._rebuild = rebuild
        self._size_bytes = os.fstat(file.fileno()).st_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._size_bytes:
            return 0
        number, start = divmod(self._position, BLOCK_BYTES)
        piece = self._read_block(number)[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read_block(self, number: int) -> bytes:
        block = os.pread(self._file.fileno(), BLOCK_BYTES, number * BLOCK_BYTES)
        if zlib.crc32(block) != self._checksums[number]:
            self._checksums = self._rebuild()  # raises unless only the checksum was wrong
            if zlib.crc32(block) != self._checksums[number]:
                raise BlobDamaged(self._sha256)
        return block


def _checksums_path(path: Path) -> Path:
    return path.with_name(path.name + ".crc")


def _unpack_checksums(packed: bytes) -> "array[int]":
    """Return the checksums.

    An array, since a blob of 10 GiB has 160,000 and every range reads them.
    """
    crcs = array("I", packed[:-8])
    if sys.byteorder == "big":
        crcs.byteswap()
    return crcs


def _block_count(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES)


def _is_hash(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[0-9a-f]{64}", name, re.ASCII) is not None


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
