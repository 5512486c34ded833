"""Which files of a folder go into an import: regular ones, by their relative paths, in a stable order.

Nothing that lies outside of the folder is ever sent. A link is taken only if it leads to a file inside; what is left
out is told as a finding, so that nobody misses it silently. Files that systems leave behind, and everything whose name
begins with a dot, are no data.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vi.api._arguments import local_path
from vi.api.resources.datasets.responses import Finding
from vi.errors import ViInvalidParameterError

_LITTER = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})
_LONGEST_PATH_BYTES = 1024


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to send: ``path`` is its name in the dataset, ``place`` where it lies here."""

    path: str
    place: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """What is to be sent, sorted by path, and what was left out and why."""

    files: list[LocalFile]
    left_out: list[Finding]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def find_files(path: str | Path) -> LocalFiles:
    """The files of a folder, or the one file that is named.

    Raises:
        ViInvalidParameterError: there is nothing there, or nothing to send.
    """
    top = local_path(path, name="path")
    if top.is_file():
        return LocalFiles([LocalFile(top.name, str(top), top.stat().st_size)], [])
    if not top.is_dir():
        what = "neither a file nor a folder" if top.exists() else "not there"
        raise ViInvalidParameterError(f"path is {str(path)!r}, which is {what}", suggestion="Name a folder or a file.")
    left_out: list[Finding] = []
    root = top.resolve()
    try:
        files = sorted(_walk(root, str(root), "", left_out), key=lambda file: file.path)
    except OSError as error:
        raise ViInvalidParameterError(
            f"{error.filename} cannot be read: {error.strerror}", suggestion="Check the rights there.", cause=error
        ) from error
    if not files:
        raise ViInvalidParameterError(
            f"{str(path)!r} has no file to import",
            suggestion="Files whose names begin with a dot, and links that lead out of the folder, are not taken.",
            details={"leftOut": [f"{found.file}: {found.cause}" for found in left_out]},
        )
    return LocalFiles(files, left_out)


def _walk(root: Path, folder: str, below: str, left_out: list[Finding]) -> Iterator[LocalFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = below + entry.name
            if entry.name.startswith(".") or entry.name in _LITTER:
                continue
            why = _why_not(root, entry, path)
            if why is not None:
                left_out.append(_left_out(path, why))
            elif entry.is_dir():
                yield from _walk(root, entry.path, f"{path}/", left_out)
            else:
                yield LocalFile(path, entry.path, entry.stat().st_size)


def _why_not(root: Path, entry: "os.DirEntry[str]", path: str) -> str | None:
    if not path.isprintable() or "\\" in path:
        return "its name is no plain text, or has a backslash in it"
    if len(path.encode()) > _LONGEST_PATH_BYTES:
        return f"its name is longer than {_LONGEST_PATH_BYTES} bytes"
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if not target.is_relative_to(root):
            return "it is a link that leads out of the folder"
        return None if target.is_file() else "it is a link to a folder, or to nothing"
    return None if entry.is_file() or entry.is_dir() else "it is neither a file nor a folder"


def _left_out(path: str, why: str) -> Finding:
    return Finding(
        file=path.encode(errors="backslashreplace").decode(),
        code="NameUnsafe",
        action="FileRejected",
        cause=why,
        cure="give the file a plain relative name inside the folder, or copy it there",
    )
