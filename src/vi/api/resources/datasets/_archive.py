"""Safe unpacking of the zip of an export into a folder that appears atomically, and atomic writes.

The archive comes from a network and is not trusted. It may contain only regular files and folders
with plain relative names, no name twice, and a bounded number of members and bytes.
"""

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from vi.api._folders import parse_relative_path, replace_folder, staging_path
from vi.errors import ViDownloadError

_MAX_MEMBERS = 5_000_000
_MAX_DEPTH = 64
_MAX_EXPANSION = 200  # text compresses well, images hardly
_CHUNK_BYTES = 1 << 20


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack next to ``folder``, rename the result to it, and delete the archive.

    Raises:
        ViDownloadError: The archive is invalid; ``folder`` is unchanged.
    """
    staged = staging_path(folder, "new")
    staged.mkdir(parents=True)
    try:
        _extract(archive, staged)
        replace_folder(staged, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise _archive_error(f"it cannot be read ({error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        archive.unlink(missing_ok=True)


def write_file_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears only when it is complete."""
    staged = staging_path(path, "new")
    try:
        staged.write_bytes(data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _extract(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        if len(members) > _MAX_MEMBERS:
            raise _archive_error(f"it has more than {_MAX_MEMBERS} members")
        if sum(member.file_size for member in members) > archive.stat().st_size * _MAX_EXPANSION + (
            1 << 20
        ):
            raise _archive_error(f"it expands to more than {_MAX_EXPANSION} times its size")
        for member in members:
            target = folder / _parse_member_name(member)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                _write_member(opened, member, target)


def _parse_member_name(member: zipfile.ZipInfo) -> PurePosixPath:
    name = parse_relative_path(member.filename, max_depth=_MAX_DEPTH)
    kind = member.external_attr >> 28  # Unix file type: 8 regular, 4 folder, 0 unknown
    if kind not in (0, 4, 8):
        raise _archive_error(f"{member.filename!r} is neither a regular file nor a folder")
    if name is None:
        raise _archive_error(f"{member.filename!r} is not a plain relative name")
    return name


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = target.open("xb")
    except FileExistsError as error:
        raise _archive_error(f"{member.filename!r} is in it twice") from error
    with file, opened.open(member) as source:  # stops at the announced size and checks the CRC-32
        shutil.copyfileobj(source, file, _CHUNK_BYTES)


def _archive_error(what: str) -> ViDownloadError:
    return ViDownloadError(
        f"the archive of the dataset is invalid: {what}",
        suggestion="Nothing was stored. try: report it to the operator of the server",
    )
