"""Files for the sessions that take them one by one: which they are, and where what comes back goes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vi._http.requests import Body, FileBody
from vi.api._arguments import local_path
from vi.api.resources.datasets._files import find_files
from vi.errors import ViInvalidParameterError

PICTURES = {
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
class Held:
    """Bytes that are in memory already; a ``Body`` of ``vi._http``."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file to send, and its name in the dataset."""

    name: str
    body: Body
    size_bytes: int

    @property
    def mime(self) -> str:
        return PICTURES.get(Path(self.name).suffix.lower(), "application/octet-stream")


def outgoing(
    paths: Paths | None, held: Sequence[tuple[str, bytes]] | None, *, endings: Collection[str]
) -> list[Outgoing]:
    """What is to be sent: files by path, and of folders those with one of the endings, under their relative paths.

    Raises:
        ViInvalidParameterError: there is nothing to send, or two files have the same name.
    """
    found = [Outgoing(name, Held(bytes(data)), len(data)) for name, data in held or ()]
    for path in [paths] if isinstance(paths, str | Path) else paths or ():
        is_folder = local_path(path, name="paths").is_dir()
        for file in find_files(path).files:
            if not is_folder or Path(file.path).suffix.lower() in endings:
                found.append(Outgoing(file.path, FileBody(Path(file.place)), file.size_bytes))
    if not found:
        raise ViInvalidParameterError(
            "there is no file to send", suggestion=f"In folders these are looked for: {', '.join(sorted(endings))}."
        )
    names = [file.name for file in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ViInvalidParameterError(f"two files are called {twice!r}", suggestion="Names are unique in a dataset.")
    return found
