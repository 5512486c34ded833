"""Folders that the attempts of this machine share: dataset versions, and weights of other runs.

Each file is verified by its hash before it gets its name. It is hard-linked from the server's blobs
if those are on the same disk, or from another shared folder, and fetched otherwise.
``complete.json`` is written last. Files that arrived before the connection or the process ended
are not fetched again.

A supervisor holds its folders (a shared flock) as long as it lives. A process that fills a folder
holds ``bring.lock``, so that two attempts fetch nothing twice. When the limit of a setting is
exceeded, unused folders are removed, least recently used first. Folders that living attempts use
are never removed, whatever the limit.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from runyard import removal, rundir

log = logging.getLogger(__name__)

FILL_LOCK = "bring.lock"


class BlobSource(Protocol):
    """The calls of the server that this module needs."""

    def fetch_blob(self, sha256: str, target: Path, /) -> None: ...


class SharedFolder:
    """One shared folder, as one attempt fills and holds it."""

    def __init__(self, source: BlobSource):
        self._source = source
        self._held: int | None = None
        self._proven = set[Path]()

    def hold(self, home: Path) -> None:
        """Keep the folder from removal while this process lives, and update its time of use."""
        while self._held is None:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if _has_path(descriptor, home):
                    self._held = descriptor
                    os.utime(descriptor)
                else:  # it was removed while we waited for the lock
                    os.close(descriptor)

    def release(self) -> None:
        """Allow the folder to be removed, as ending the process does."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def mark_proven(self, path: Path) -> None:
        """Record that a file is verified, so that it is not read again."""
        self._proven.add(path)

    def discard(self, path: Path) -> None:
        """Remove a file that must be fetched again."""
        self._proven.discard(path)
        path.unlink(missing_ok=True)

    def is_proven(self, path: Path) -> bool:
        return path in self._proven

    def place_file(
        self, target: Path, sha256: str, size_bytes: int, *, copies: Iterable[Path]
    ) -> None:
        """Provide a verified file: keep the existing one, link one of ``copies``, or fetch it.

        Raises:
            ConnectionError: the fetched bytes do not match the hash.
        """
        if target in self._proven or is_intact(target, sha256, size_bytes):
            self._proven.add(target)
            return
        staged = target.with_name(f".{target.name}")
        staged.unlink(missing_ok=True)  # never opened for writing: it may be a hard link to a blob
        if not _link_copy(copies, staged, sha256, size_bytes):
            self._source.fetch_blob(sha256, staged)
            if not is_intact(staged, sha256, size_bytes):
                raise ConnectionError(f"blob {sha256} arrived damaged")
            fsync_file(staged)
        target.unlink(missing_ok=True)
        os.replace(staged, target)
        self._proven.add(target)


def locate_blob(data_dir: Path, organization_id: str, sha256: str) -> Path:
    """Return the path of a blob of a server on this machine."""
    return data_dir / "blobs" / organization_id / sha256[:2] / sha256


def free_space(root: Path, needed_bytes: int, limit_bytes: int) -> None:
    """Remove unused folders, least recently used first, until ``needed_bytes`` are free."""
    with contextlib.suppress(OSError):
        removal.remove_detached(root)
    homes = sorted(
        (path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith(".")),
        key=_get_mtime_ns,
    )
    for home in homes:
        if sum(_list_file_sizes(root)) + needed_bytes <= limit_bytes:
            return
        remove_unused(home)


def is_intact(path: Path, sha256: str, size_bytes: int) -> bool:
    """Return whether a file exists with this length and hash."""
    try:
        return path.stat().st_size == size_bytes and rundir.sha256_of(path) == sha256
    except FileNotFoundError:
        return False


def _link_copy(copies: Iterable[Path], staged: Path, sha256: str, size_bytes: int) -> bool:
    """Hard-link one of the copies; return whether one could be linked and is intact."""
    for path in copies:
        # Absent, on another disk, or hard links are not supported
        with contextlib.suppress(OSError):
            os.link(path, staged)
            if is_intact(staged, sha256, size_bytes):
                return True
            staged.unlink()
    return False


def remove_unused(home: Path) -> None:
    """Remove a folder unless a process holds it."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_path(descriptor, home):
                renamed = home.with_name(f"{removal.REMOVING}{home.name}")
                os.replace(home, renamed)
                removal.remove_tree(renamed)
                log.info("removed %s/%s, which nothing uses", home.parent.parent.name, home.name)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _list_file_sizes(root: Path) -> Iterator[int]:
    """Yield the sizes of all files below; a file with several hard links counts once."""
    seen = set()
    for _, path in rundir.files_below(root):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                yield found.st_size


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait until it is free."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _has_path(descriptor: int, path: Path) -> bool:
    """Return whether an open folder is still the one at ``path``."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _get_mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def fsync_file(path: Path) -> None:
    """Make a file's content survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
