"""Unpack the archive of a checkpoint into a folder that appears whole.

The archive comes from a network, so nothing in it is trusted: regular files and folders only, plain relative names, no
name twice, a bounded number of them, and no more bytes than the archive has. tarfile reads the headers; every file is
made here, new, with ordinary rights.
"""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vi.api._copies import MANIFEST
from vi.api._folders import beside, plain_path, put_in_place
from vi.errors import ViDownloadError

_MOST_MEMBERS = 100_000
_DEEPEST = 32
_CHUNK_BYTES = 1 << 20


def unpack(archive: Path, folder: Path, *, finish: Callable[[Path], None] = lambda staged: None) -> None:
    """Unpack beside ``folder``, put the result in its place, and remove the archive.

    ``finish`` gets the folder when it is filled, before it has its name.

    Raises:
        ViDownloadError: the archive holds something it must not; ``folder`` is untouched.
    """
    staged = beside(folder, "new")
    staged.mkdir(parents=True)
    try:
        _extract(archive, staged)
        finish(staged)
        put_in_place(staged, folder)
    except tarfile.TarError as error:
        raise _bad(f"it cannot be read ({error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        archive.unlink(missing_ok=True)


def _extract(archive: Path, folder: Path) -> None:
    left_bytes = archive.stat().st_size
    with tarfile.open(archive, "r:") as tar:
        for count, member in enumerate(tar, start=1):
            if count > _MOST_MEMBERS:
                raise _bad(f"it has more than {_MOST_MEMBERS} members")
            target = folder / _safe_name(member)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            left_bytes -= member.size
            if left_bytes < 0:
                raise _bad(f"{member.name!r} claims more bytes than the archive has")
            _write_member(tar, member, target)


def _safe_name(member: tarfile.TarInfo) -> PurePosixPath:
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise _bad(f"{member.name!r} is neither a regular file nor a folder")
    if member.isdir() and not PurePosixPath(member.name).parts:
        return PurePosixPath()  # the folder itself
    name = plain_path(member.name, deepest=_DEEPEST)
    if name is None or ":" in member.name or MANIFEST in name.parts:
        raise _bad(f"{member.name!r} is no name for a file in it")
    return name


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise _bad(f"{member.name!r} has no content")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = target.open("xb")
    except FileExistsError as error:
        raise _bad(f"{member.name!r} is in it twice") from error
    with source, file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if file.tell() != member.size:
            raise _bad(f"{member.name!r} is cut short")
        file.flush()
        os.fsync(file.fileno())


def _bad(what: str) -> ViDownloadError:
    return ViDownloadError(
        f"the archive of the model was refused: {what}",
        suggestion="Nothing of it was kept. Ask whoever runs the server.",
    )
