"""Proof that a folder on this machine is still what was downloaded: a manifest inside of it, written last.

The manifest has the size and SHA-256 of each file. Files are hashed again whenever they could have changed: always,
unless inode, size, mtime and ctime are those that were recorded well after the file's last change. A ctime cannot be
set back, and one that is younger than ``_SETTLED_NS`` when it is recorded proves nothing, since the file system's clock
may not have moved between two writes. Hashing takes a second or two for each gigabyte; comparing times takes none.
Files that the manifest does not name are the user's: they neither prove nor disprove anything.
"""

import hashlib
import os
import stat
import time
from pathlib import Path

import msgspec

MANIFEST = ".manifest.json"
_SETTLED_NS = 2_000_000_000
_CHUNK_BYTES = 1 << 20


class FileRecord(msgspec.Struct, rename="camel", kw_only=True):
    """One file of a copy. ``seen`` is inode, mtime and ctime when its hash was last proven, if they prove anything."""

    path: str
    size_bytes: int
    sha256: str
    seen: tuple[int, int, int] | None = None


class Manifest(msgspec.Struct, rename="camel", kw_only=True):
    """What a copy consists of; ``identity`` names what was downloaded, such as the hash of the archive."""

    identity: str | None
    files: list[FileRecord]


def write_manifest(folder: Path, *, identity: str | None) -> None:
    """Record every file of a folder that was just filled."""
    files = [
        FileRecord(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    ]
    _store(folder, Manifest(identity=identity, files=files))


def is_intact(folder: Path, *, identity: str | None) -> bool:
    """Return whether a folder still holds every byte that was downloaded, and of the same download."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False  # of an older version, or damaged
    if not manifest.files or (identity is not None and manifest.identity != identity):
        return False
    try:
        learned = [_prove(folder, record) for record in manifest.files]
    except OSError:
        return False
    if not all(is_right for is_right, _ in learned):
        return False
    if any(is_new for _, is_new in learned):
        try:
            _store(folder, manifest)
        except OSError:
            return True  # a folder that cannot be written is hashed each time
    return True


def is_file_of(path: Path, *, size_bytes: int, sha256: str) -> bool:
    """Return whether a file has this size and hash; without a hash to compare with, nothing is proven."""
    return bool(sha256) and path.is_file() and path.stat().st_size == size_bytes and sha256_of(path) == sha256


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _prove(folder: Path, record: FileRecord) -> tuple[bool, bool]:
    """Whether a file is as recorded, and whether ``record.seen`` was changed."""
    path = folder / record.path
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.size_bytes:
        return False, False
    seen = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
    if record.seen == seen:
        return True, False
    now_ns = time.time_ns()
    if sha256_of(path) != record.sha256:
        return False, False
    before, record.seen = record.seen, seen if 0 <= found.st_ctime_ns < now_ns - _SETTLED_NS else None
    return True, record.seen != before


def _store(folder: Path, manifest: Manifest) -> None:
    staged = folder / f"{MANIFEST}.{os.getpid()}"
    with staged.open("wb") as file:
        file.write(msgspec.json.encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    staged.replace(folder / MANIFEST)
