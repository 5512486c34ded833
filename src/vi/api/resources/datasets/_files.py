"""Selection of the files of a folder for an import: regular files by relative path, in a stable
order.

Files outside the folder are never sent. A symbolic link is followed only if its target is a file
inside. Other skipped files are reported as findings. Files that operating systems create, and names
that begin with a dot, are ignored.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vi.api._arguments import parse_local_path
from vi.api.resources.datasets.responses import Finding
from vi.errors import ViInvalidParameterError

_IGNORED_NAMES = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})
_MAX_PATH_BYTES = 1024


@dataclass(frozen=True, slots=True)
class LocalFile:
    """File to import: ``path`` is its name in the dataset, ``local_path`` its path on disk."""

    path: str
    local_path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files to import, sorted by path, and a finding for each skipped file."""

    files: list[LocalFile]
    skipped: list[Finding]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def find_files(path: str | Path) -> LocalFiles:
    """Return the files of a folder, or a single file.

    Raises:
        ViInvalidParameterError: The path does not exist, cannot be read, or has no file to import.
    """
    top = parse_local_path(path, name="path")
    if top.is_file():
        return LocalFiles([LocalFile(top.name, str(top), top.stat().st_size)], [])
    if not top.is_dir():
        what = "is neither a file nor a folder" if top.exists() else "does not exist"
        raise ViInvalidParameterError(
            f"path is {str(path)!r}, which {what}", suggestion="try: a folder or a file"
        )
    skipped: list[Finding] = []
    root = top.resolve()
    try:
        files = sorted(_walk(root, str(root), "", skipped), key=lambda file: file.path)
    except OSError as error:
        raise ViInvalidParameterError(
            f"{error.filename} cannot be read: {error.strerror}",
            suggestion="try: check its permissions",
            cause=error,
        ) from error
    if not files:
        raise ViInvalidParameterError(
            f"{str(path)!r} has no file to import",
            suggestion="Names that begin with a dot, and links that lead outside the folder, are "
            "skipped.",
            details={"leftOut": [f"{found.file}: {found.cause}" for found in skipped]},
        )
    return LocalFiles(files, skipped)


def _walk(root: Path, folder: str, below: str, skipped: list[Finding]) -> Iterator[LocalFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = below + entry.name
            if entry.name.startswith(".") or entry.name in _IGNORED_NAMES:
                continue
            why = _find_rejection(root, entry, path)
            if why is not None:
                skipped.append(_build_finding(path, why))
            elif entry.is_dir():
                yield from _walk(root, entry.path, f"{path}/", skipped)
            else:
                yield LocalFile(path, entry.path, entry.stat().st_size)


def _find_rejection(root: Path, entry: "os.DirEntry[str]", path: str) -> str | None:
    if not path.isprintable() or "\\" in path:
        return "its name contains a backslash or unprintable characters"
    if len(path.encode()) > _MAX_PATH_BYTES:
        return f"its name is longer than {_MAX_PATH_BYTES} bytes"
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if not target.is_relative_to(root):
            return "it is a link that leads outside the folder"
        return None if target.is_file() else "it is a link to a folder or to a missing file"
    return None if entry.is_file() or entry.is_dir() else "it is neither a file nor a folder"


def _build_finding(path: str, why: str) -> Finding:
    return Finding(
        file=path.encode(errors="backslashreplace").decode(),
        code="NameUnsafe",
        action="FileRejected",
        cause=why,
        cure="rename the file to a plain relative name inside the folder, or copy it there",
    )
