"""Manifest of a downloaded folder, used to verify that its files are unchanged.

The manifest is written last and has the size and SHA-256 of each file. A file is hashed again
unless its inode, size, mtime and ctime equal those recorded well after its last change. A ctime
cannot be set back. One younger than ``_SETTLED_NS`` when recorded proves nothing, because the clock
of the file system may not advance between two writes. Hashing takes a second or two per gigabyte,
comparing times none. Files that the manifest does not list belong to the user and are ignored.
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
    """One file of a download.

    ``seen`` is inode, mtime and ctime at the last verification, or None if they were too recent.
    """

    path: str
    size_bytes: int
    sha256: str
    seen: tuple[int, int, int] | None = None


class Manifest(msgspec.Struct, rename="camel", kw_only=True):
    """Files of a download; ``identity`` identifies its content, such as the hash of the archive."""

    identity: str | None
    files: list[FileRecord]


def write_manifest(folder: Path, *, identity: str | None) -> None:
    """Write the manifest of a folder that was just downloaded."""
    files = [
        FileRecord(
            path=path.relative_to(folder).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=hash_file(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    ]
    _save_manifest(folder, Manifest(identity=identity, files=files))


def is_intact(folder: Path, *, identity: str | None) -> bool:
    """Return True if the folder holds all files of this download, unchanged."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False  # written by an older version, or damaged
    if not manifest.files or (identity is not None and manifest.identity != identity):
        return False
    try:
        results = [_verify_file(folder, record) for record in manifest.files]
    except OSError:
        return False
    if not all(is_unchanged for is_unchanged, _ in results):
        return False
    if any(is_updated for _, is_updated in results):
        try:
            _save_manifest(folder, manifest)
        except OSError:
            return True  # a read-only folder is hashed each time
    return True


def has_content(path: Path, *, size_bytes: int, sha256: str) -> bool:
    """Return True if a file has this size and hash; False if the hash is empty."""
    return (
        bool(sha256)
        and path.is_file()
        and path.stat().st_size == size_bytes
        and hash_file(path) == sha256
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _verify_file(folder: Path, record: FileRecord) -> tuple[bool, bool]:
    """Return whether a file is unchanged, and whether ``record.seen`` was updated."""
    path = folder / record.path
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != record.size_bytes:
        return False, False
    seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    if record.seen == seen:
        return True, False
    now_ns = time.time_ns()
    if hash_file(path) != record.sha256:
        return False, False
    previous, record.seen = (
        record.seen,
        seen if 0 <= status.st_ctime_ns < now_ns - _SETTLED_NS else None,
    )
    return True, record.seen != previous


def _save_manifest(folder: Path, manifest: Manifest) -> None:
    staged = folder / f"{MANIFEST}.{os.getpid()}"
    with staged.open("wb") as file:
        file.write(msgspec.json.encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    staged.replace(folder / MANIFEST)
