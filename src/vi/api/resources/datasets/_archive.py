"""Unpack the zip of an export into a folder that appears whole, and write files whole.

The archive comes from a network, so nothing in it is trusted: plain relative names, regular files only, no name twice,
a bounded number of them, and no more bytes than their entries announce, which are bounded, too.
"""

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from vi.api._folders import beside, plain_path, put_in_place
from vi.errors import ViDownloadError

_MOST_MEMBERS = 5_000_000
_DEEPEST = 64
_MOST_GROWTH = 200  # text compresses well, pictures hardly
_CHUNK_BYTES = 1 << 20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack beside ``folder``, put the result in its place, and remove the archive.

    Raises:
        ViDownloadError: the archive holds something it must not; ``folder`` is untouched.
    """
    staged = beside(folder, "new")
    staged.mkdir(parents=True)
    try:
        _extract(archive, staged)
        put_in_place(staged, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise _bad(f"it cannot be read ({error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        archive.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    staged = beside(path, "new")
    try:
        staged.write_bytes(data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _extract(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        if len(members) > _MOST_MEMBERS:
            raise _bad(f"it has more than {_MOST_MEMBERS} members")
        if sum(member.file_size for member in members) > archive.stat().st_size * _MOST_GROWTH + (1 << 20):
            raise _bad("it grows beyond all bounds")
        for member in members:
            target = folder / _safe_name(member)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                _write_member(opened, member, target)


def _safe_name(member: zipfile.ZipInfo) -> PurePosixPath:
    name = plain_path(member.filename, deepest=_DEEPEST)
    kind = member.external_attr >> 28  # what the entry is on systems with links, 0 where it does not say
    if kind not in (0, 4, 8):
        raise _bad(f"{member.filename!r} is neither a regular file nor a folder")
    if name is None:
        raise _bad(f"{member.filename!r} is no name for a file in it")
    return name


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = target.open("xb")
    except FileExistsError as error:
        raise _bad(f"{member.filename!r} is in it twice") from error
    with file, opened.open(member) as source:  # stops at the announced length, and proves the CRC-32
        shutil.copyfileobj(source, file, _CHUNK_BYTES)


def _bad(what: str) -> ViDownloadError:
    return ViDownloadError(
        f"the archive of the dataset was refused: {what}",
        suggestion="Nothing of it was kept. Ask whoever runs the server.",
    )
