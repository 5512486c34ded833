"""Folders below the data folder that every attempt on this machine shares: dataset versions, weights of other runs.

Each file is proven by its hash before it gets its name: hard-linked from the server's blobs where those are on the same
disk, or from another such folder, else fetched. ``complete.json`` comes last. What has arrived when the connection is
cut, or when the process is killed, is not fetched again.

Every supervisor holds its folders (flock, shared) as long as it lives, and whoever fills one holds ``bring.lock``: two
attempts at once fetch nothing twice. Folders that nobody holds are removed, least recently used first, when more would
be kept than a setting allows; what living attempts use is never removed, whatever the limit.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from runyard import rundir

log = logging.getLogger(__name__)

BRING_LOCK = "bring.lock"
REMOVING = ".removing-"


class Source(Protocol):
    """The server, as far as this module needs it."""

    def fetch(self, sha256: str, target: Path, /) -> None: ...


class SharedFolder:
    """One such folder, as one attempt fills and holds it."""

    def __init__(self, source: Source):
        self._source = source
        self._held: int | None = None
        self._proven = set[Path]()

    def hold(self, home: Path) -> None:
        """Keep the folder from being removed as long as this process lives, and note that it was used."""
        while self._held is None:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if _is_at(descriptor, home):
                    self._held = descriptor
                    os.utime(descriptor)
                else:  # removed while we waited
                    os.close(descriptor)

    def release(self) -> None:
        """Let the folder be removed; ending the process does the same."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def prove(self, path: Path) -> None:
        """Note that a file is what it should be, so that it is not read again."""
        self._proven.add(path)

    def doubt(self, path: Path) -> None:
        """Forget a file that is about to be fetched again."""
        self._proven.discard(path)
        path.unlink(missing_ok=True)

    def is_proven(self, path: Path) -> bool:
        return path in self._proven

    def place(self, target: Path, sha256: str, size_bytes: int, *, copies: Iterable[Path]) -> None:
        """Have a file under its name, proven: the one that is there, a link to one of ``copies``, or fetched."""
        if target in self._proven or is_whole(target, sha256, size_bytes):
            self._proven.add(target)
            return
        staged = target.with_name(f".{target.name}")
        staged.unlink(missing_ok=True)  # never written into: it may be a link to a blob
        if not _linked(copies, staged, sha256, size_bytes):
            self._source.fetch(sha256, staged)
            if not is_whole(staged, sha256, size_bytes):
                raise ConnectionError(f"blob {sha256} arrived damaged")
            fsync(staged)
        target.unlink(missing_ok=True)
        os.replace(staged, target)
        self._proven.add(target)


def blob_path(data_dir: Path, organization_id: str, sha256: str) -> Path:
    """Return where the server keeps a blob, if it is on this machine."""
    return data_dir / "blobs" / organization_id / sha256[:2] / sha256


def make_room(root: Path, needed_bytes: int, limit_bytes: int) -> None:
    """Remove folders that nobody holds, least recently used first, until so much more fits or none is left."""
    for torn in root.glob(f"*/{REMOVING}*"):
        shutil.rmtree(torn, ignore_errors=True)
    homes = sorted(
        (path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith(".")), key=_mtime_ns
    )
    for home in homes:
        if sum(_inodes(root)) + needed_bytes <= limit_bytes:
            return
        _remove(home)


def is_whole(path: Path, sha256: str, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes and rundir.sha256_of(path) == sha256
    except FileNotFoundError:
        return False


def _linked(copies: Iterable[Path], staged: Path, sha256: str, size_bytes: int) -> bool:
    """Whether one of the copies could be hard-linked, and is what it should be."""
    for path in copies:
        with contextlib.suppress(OSError):  # not there, another disk, or a system that allows no such link
            os.link(path, staged)
            if is_whole(staged, sha256, size_bytes):
                return True
            staged.unlink()
    return False


def _remove(home: Path) -> None:
    """Remove a folder unless somebody holds it."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, home):
                aside = home.with_name(f"{REMOVING}{home.name}")
                os.replace(home, aside)
                shutil.rmtree(aside)
                log.info("Removed %s/%s, which nobody uses, to make room", home.parent.parent.name, home.name)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _inodes(root: Path) -> Iterator[int]:
    """Sizes of all files below, each counted once however many folders link it."""
    seen = set()
    for _, path in rundir.files_below(root):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                yield found.st_size


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open folder still has its name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
