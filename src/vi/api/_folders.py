"""Atomic replacement of folders, and validation of paths that a server names."""

import os
import secrets
import shutil
from pathlib import Path, PurePosixPath

from vi.errors import ViDownloadError

_MAX_DEPTH = 64


def parse_relative_path(name: str, *, max_depth: int = _MAX_DEPTH) -> PurePosixPath | None:
    """Return a relative path without ``..``; None for any other name."""
    path = PurePosixPath(name)
    is_unsafe = any(part == ".." or any(letter in part for letter in "\\\0") for part in path.parts)
    return None if is_unsafe or path.is_absolute() or not 0 < len(path.parts) <= max_depth else path


def resolve_inside(folder: Path, *names: str) -> Path:
    """Return ``folder/name/...``, which is inside ``folder``. Each name may have several parts.

    Raises:
        ViDownloadError: A name is not a plain relative path, or a symbolic link leads outside.
    """
    if names and all(parse_relative_path(name) is not None for name in names):
        target = folder.joinpath(*names)
        real, root = Path(os.path.realpath(target)), Path(os.path.realpath(folder))
        if real != root and real.is_relative_to(root):
            return target
    raise ViDownloadError(
        f"the server sent the file name {'/'.join(names)!r}, expected: a path inside {folder}",
        suggestion="Nothing was stored. try: report it to the operator of the server",
    )


def staging_path(path: Path, label: str) -> Path:
    """Return a unique hidden path in the same folder."""
    return path.with_name(f".{path.name}.{label}-{os.getpid()}-{secrets.token_hex(4)}")


def replace_folder(staged: Path, folder: Path) -> None:
    """Rename a complete folder to its final name.

    An existing one is removed, or kept on failure.
    """
    if not folder.exists():
        staged.rename(folder)
        return
    old = staging_path(folder, "old")
    folder.rename(old)
    try:
        staged.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
