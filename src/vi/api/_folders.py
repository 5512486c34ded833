"""Folders that appear whole: filled beside their place, then put into it; and paths made from names of a server."""

import os
import secrets
import shutil
from pathlib import Path, PurePosixPath

from vi.errors import ViDownloadError

_DEEPEST = 64


def plain_path(name: str, *, deepest: int = _DEEPEST) -> PurePosixPath | None:
    """Return a relative path without ``..``, as a server may name a file; None for anything else."""
    path = PurePosixPath(name)
    is_odd = any(part == ".." or any(letter in part for letter in "\\\0") for part in path.parts)
    return None if is_odd or path.is_absolute() or not 0 < len(path.parts) <= deepest else path


def path_below(folder: Path, *names: str) -> Path:
    """Return ``folder/name/...``, proven to be strictly inside ``folder``. Each name may have several parts.

    Raises:
        ViDownloadError: a name is not a plain relative path, or a symbolic link leads out of the folder.
    """
    if names and all(plain_path(name) is not None for name in names):
        target = folder.joinpath(*names)
        real, root = Path(os.path.realpath(target)), Path(os.path.realpath(folder))
        if real != root and real.is_relative_to(root):
            return target
    raise ViDownloadError(
        f"the server names a file {'/'.join(names)!r}, which would not be inside {folder}",
        suggestion="Nothing of it was stored. Ask whoever runs the server.",
    )


def beside(path: Path, word: str) -> Path:
    """A hidden name in the same folder that nothing else has."""
    return path.with_name(f".{path.name}.{word}-{os.getpid()}-{secrets.token_hex(4)}")


def put_in_place(staged: Path, folder: Path) -> None:
    """Give a whole folder its name. What has that name is removed, and stays if the new one cannot have it."""
    if not folder.exists():
        staged.rename(folder)
        return
    old = beside(folder, "old")
    folder.rename(old)
    try:
        staged.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
