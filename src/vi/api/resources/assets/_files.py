"""Selection of the files that an upload session sends one by one."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vi._http.requests import Body, FileBody
from vi.api._arguments import parse_local_path
from vi.api.resources.datasets._files import find_files
from vi.errors import ViInvalidParameterError

IMAGE_TYPES = {
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jfif": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class BytesBody:
    """In-memory ``Body`` of ``vi._http``."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """File to upload, and its name in the dataset."""

    name: str
    body: Body
    size_bytes: int

    @property
    def mime(self) -> str:
        return IMAGE_TYPES.get(Path(self.name).suffix.lower(), "application/octet-stream")


def collect_files(
    paths: Paths | None, held: Sequence[tuple[str, bytes]] | None, *, endings: Collection[str]
) -> list[OutgoingFile]:
    """Return the files to upload, named by their paths relative to the given folders.

    Of a folder, only files with one of the endings are included.

    Raises:
        ViInvalidParameterError: There is no file, or two files have the same name.
    """
    found = [OutgoingFile(name, BytesBody(bytes(data)), len(data)) for name, data in held or ()]
    for path in [paths] if isinstance(paths, str | Path) else paths or ():
        is_folder = parse_local_path(path, name="paths").is_dir()
        for file in find_files(path).files:
            if not is_folder or Path(file.path).suffix.lower() in endings:
                found.append(
                    OutgoingFile(file.path, FileBody(Path(file.local_path)), file.size_bytes)
                )
    if not found:
        raise ViInvalidParameterError(
            "there is no file to upload",
            suggestion=f"try: a folder with files ending in {', '.join(sorted(endings))}",
        )
    names = [file.name for file in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ViInvalidParameterError(
            f"two files have the name {twice!r}, expected: unique names",
            suggestion="try: rename one of them",
        )
    return found
