"""Selection of the files for an import, in a stable order; ``_walk`` has the rules."""

from dataclasses import dataclass
from pathlib import Path

from vi.api._arguments import parse_local_path
from vi.api.resources.datasets._walk import LeftOutFile, LocalFile, list_files
from vi.api.resources.datasets.responses import Finding
from vi.errors import ViInvalidParameterError


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files to import, sorted by path, and a finding for each file left out."""

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
    if not (top.is_file() or top.is_dir()):
        what = "is neither a file nor a folder" if top.exists() else "does not exist"
        raise ViInvalidParameterError(
            f"path is {str(path)!r}, which {what}", suggestion="try: a folder or a file"
        )
    try:
        files, left_out = list_files(top)
    except OSError as error:
        raise ViInvalidParameterError(
            f"{error.filename} cannot be read: {error.strerror}",
            suggestion="try: check its permissions",
            cause=error,
        ) from error
    if not files:
        raise _build_empty_error(path, left_out)
    return LocalFiles(files, [_build_finding(file) for file in left_out])


def _build_empty_error(path: str | Path, left_out: list[LeftOutFile]) -> ViInvalidParameterError:
    if left_out:
        first = left_out[0]
        suggestion = f"{first.path!r} is left out: {first.cause}. try: {first.fix}"
    else:
        suggestion = "try: a folder with images and annotations, or an archive of one"
    return ViInvalidParameterError(
        f"{str(path)!r} has no file to import",
        suggestion=suggestion,
        details={"leftOut": [f"{file.path}: {file.cause}" for file in left_out]},
    )


def _build_finding(file: LeftOutFile) -> Finding:
    is_error = file.code == "NameUnsafe"
    return Finding(
        file=file.path,
        code=file.code,
        severity="error" if is_error else "warning",
        action="FileRejected",
        cause=file.cause,
        cure=file.fix,
    )
