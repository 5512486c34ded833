"""Safe unpacking of the tar archive of a checkpoint into a folder that appears atomically.

The archive comes from a network and is not trusted. It may contain only regular files and folders
with plain relative names, no name twice, a bounded number of members, and no more bytes than the
archive has. tarfile reads only the headers; every file is created here, with default permissions.
"""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vi.api._folders import parse_relative_path, replace_folder, staging_path
from vi.api._manifest import MANIFEST
from vi.errors import ViDownloadError

_MAX_MEMBERS = 100_000
_MAX_DEPTH = 32
_CHUNK_BYTES = 1 << 20


def unpack_tar(
    archive: Path, folder: Path, *, finish: Callable[[Path], None] = lambda staged: None
) -> None:
    """Unpack next to ``folder``, rename the result to it, and delete the archive.

    ``finish`` is called with the unpacked folder before it is renamed.

    Raises:
        ViDownloadError: The archive is invalid; ``folder`` is unchanged.
    """
    staged = staging_path(folder, "new")
    staged.mkdir(parents=True)
    try:
        _extract(archive, staged)
        finish(staged)
        replace_folder(staged, folder)
    except tarfile.TarError as error:
        raise _archive_error(f"it cannot be read ({error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        archive.unlink(missing_ok=True)


def _extract(archive: Path, folder: Path) -> None:
    left_bytes = archive.stat().st_size
    with tarfile.open(archive, "r:") as tar:
        for count, member in enumerate(tar, start=1):
            if count > _MAX_MEMBERS:
                raise _archive_error(f"it has more than {_MAX_MEMBERS} members")
            target = folder / _parse_member_name(member)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            left_bytes -= member.size
            if left_bytes < 0:
                raise _archive_error(f"{member.name!r} claims more bytes than the archive has")
            _write_member(tar, member, target)


def _parse_member_name(member: tarfile.TarInfo) -> PurePosixPath:
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise _archive_error(f"{member.name!r} is neither a regular file nor a folder")
    if member.isdir() and not PurePosixPath(member.name).parts:
        return PurePosixPath()  # the root folder
    name = parse_relative_path(member.name, max_depth=_MAX_DEPTH)
    if name is None or ":" in member.name or MANIFEST in name.parts:
        raise _archive_error(f"{member.name!r} is not a plain relative name")
    return name


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise _archive_error(f"{member.name!r} has no content")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = target.open("xb")
    except FileExistsError as error:
        raise _archive_error(f"{member.name!r} is in it twice") from error
    with source, file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if file.tell() != member.size:
            raise _archive_error(f"{member.name!r} is truncated")
        file.flush()
        os.fsync(file.fileno())


def _archive_error(what: str) -> ViDownloadError:
    return ViDownloadError(
        f"the archive of the model is invalid: {what}",
        suggestion="Nothing was stored. try: report it to the operator of the server",
    )
