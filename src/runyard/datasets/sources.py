"""The files of an import, wherever they lie: a folder of this machine, or packs that were sent.

Paths are relative, POSIX, without ``..``; they are display text and dictionary keys, never opened as given by a caller
without a check. Readers ask a source for files by path and for pictures by the name that a row gives.
"""

import io
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from runyard.datasets import images
from runyard.datasets.findings import KINDS, Action, Say, finding
from runyard.datasets.packs import PackInvalid, is_safe, read_index


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of one picture after it was inspected. Width and height are as shown, in pixels.

    ``orientation`` is the EXIF one, 1 to 8: what has to be done to the stored pixels before they are shown.
    """

    path: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    mime: str
    is_turned: bool = False  # its EXIF orientation swaps width and height
    frames: int = 1
    orientation: int = 1


class Source(Protocol):
    """Files, and the pictures among them.

    ``image`` finds a picture by the name a row gives: relative to the folder of ``beside`` (the annotation file), which
    comes first because ``shelf/a.xml`` means ``shelf/a.png`` where there is an ``a.png``, too; else by its exact path;
    else by base name, if only one picture has it. None when there is none, or when it was refused.
    """

    def paths(self) -> Sequence[str]:
        """Every file, pictures included, sorted."""
        ...

    def size_bytes(self, path: str) -> int: ...

    def open(self, path: str) -> BinaryIO:
        """A seekable file to read."""
        ...

    def is_picture(self, path: str) -> bool:
        """Whether this file was inspected as a picture, and taken or refused."""
        ...

    def image(self, name: str, *, beside: str = "") -> ImageFacts | None: ...

    def is_ambiguous(self, name: str, *, beside: str = "") -> bool:
        """Whether ``image`` found nothing because several pictures have this base name."""
        ...

    def why_not(self, name: str, *, beside: str = "") -> str:
        """Why ``image`` found nothing, as a cause for people."""
        ...

    def add_image(self, path: str, data: bytes, *, found_in: str, line: int | None = None) -> ImageFacts | None:
        """Take a picture that a container (Parquet, tar) carries; None when it is refused, which has been told."""
        ...


class Place(NamedTuple):
    """Where bytes lie: in which blob, from which byte on."""

    blob: str
    offset: int


# Called with each picture that is taken: facts, crc32c, bytes, and where they lie (None: nowhere yet, keep them).
Accepted = Callable[[ImageFacts, int, bytes, Place | None], None]


def ignore_accepted(facts: ImageFacts, crc32c: int, data: bytes, place: Place | None) -> None:
    """For those who only check."""


class Pictures:
    """Inspects pictures as they come, and finds them by the names that rows give."""

    def __init__(self, say: Say, accepted: Accepted = ignore_accepted) -> None:
        self._say = say
        self._accepted = accepted
        self._by_path: dict[str, ImageFacts] = {}
        self._by_base: dict[str, ImageFacts | list[ImageFacts]] = {}
        self._by_content: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._refused_by_base: dict[str, str] = {}
        self._by_stem: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._by_path)

    def __iter__(self) -> Iterator[ImageFacts]:
        return iter(self._by_path.values())

    def has(self, path: str) -> bool:
        """Whether a file of this very path was taken or refused."""
        return _composed(path) in self._by_path or path in self._refused

    def know(self, facts: ImageFacts) -> None:
        """Count a picture in that need not be taken: the dataset has it already."""
        self._index(facts)
        self._by_content.setdefault(facts.sha256, facts.path)

    def take(
        self,
        path: str,
        data: bytes,
        place: Place | None = None,
        *,
        found_in: str | None = None,
        line: int | None = None,
    ) -> ImageFacts | None:
        """Inspect a picture and tell what is wrong with it; None when it cannot be used."""
        found = images.inspect(path, data)
        is_usable = True
        for code, cause, value in found.defects:
            is_error = KINDS[code].severity == "error"
            is_usable = is_usable and not is_error
            self._tell(code, path, cause, value, found_in, line, is_refused=is_error)
        if not is_usable:
            self._refused[path] = next(d.code for d in found.defects if KINDS[d.code].severity == "error")
            self._refused_by_base[posixpath.basename(path)] = path
            return None
        turned = found.orientation >= 5
        facts = ImageFacts(
            path=path,
            sha256=images.sha256(data),
            size_bytes=len(data),
            width=found.height if turned else found.width,
            height=found.width if turned else found.height,
            mime=found.mime,
            is_turned=turned,
            frames=found.frames,
            orientation=found.orientation,
        )
        first = self._by_content.setdefault(facts.sha256, path)
        if first != path:
            self._tell("ImageDuplicate", path, f"it has the same bytes as {first!r}", None, found_in, line)
        self._index(facts)
        self._accepted(facts, images.crc32c(data), data, place)
        return facts

    def find(self, name: str, beside: str) -> ImageFacts | list[ImageFacts] | None:
        """The picture of that name, all that it could be, or None."""
        name = cleaned(name)
        folder = posixpath.dirname(beside)
        facts = self._by_path.get(posixpath.normpath(posixpath.join(folder, name))) if folder else None
        facts = facts or self._by_path.get(name) or self._by_path.get(posixpath.normpath(name))
        if facts is not None:
            return facts
        found = self._by_base.get(posixpath.basename(name))
        if not isinstance(found, list):
            return found
        fitting = _longest_tail(name, found)
        return fitting[0] if len(fitting) == 1 else fitting

    def why_not(self, name: str, beside: str) -> str:
        """Why there is no picture of that name."""
        name = cleaned(name)
        for path in (name, posixpath.normpath(posixpath.join(posixpath.dirname(beside), name))):
            if path in self._refused:
                return f"the picture {path!r} was refused: {self._refused[path]}"
        base = posixpath.basename(name)
        if refused := self._refused_by_base.get(base):
            return f"the picture {refused!r} was refused: {self._refused[refused]}"
        if near := self._by_stem.get(_stem(base)):
            return f"there is no picture of this name; {near!r} is the nearest"
        return "there is no picture of this name"

    def _index(self, facts: ImageFacts) -> None:
        self._by_path[_composed(facts.path)] = facts
        self._by_stem[_stem(facts.path)] = facts.path
        base = posixpath.basename(_composed(facts.path))
        before = self._by_base.setdefault(base, facts)
        if before is facts:
            return
        others = before if isinstance(before, list) else [before]
        self._by_base[base] = [*(other for other in others if other.path != facts.path), facts]

    def _tell(
        self,
        code: str,
        path: str,
        cause: str,
        value: object,
        found_in: str | None,
        line: int | None,
        *,
        is_refused: bool = False,
    ) -> None:
        action: Action | None = "FileRejected" if is_refused and found_in is None else None
        file, field = (path, None) if found_in is None else (found_in, path)
        self._say(finding(code, file=file, line=line, field=field, cause=cause, value=value, action=action))


class _Files:
    """What a source of either kind does with pictures."""

    def __init__(self, say: Say, accepted: Accepted = ignore_accepted) -> None:
        self.pictures = Pictures(say, accepted)
        self._say = say
        self._bytes_read = self._bytes_to_read = 0

    def expect(self, paths: Sequence[str]) -> None:
        """From now on ``share_read`` is of these files."""
        self._bytes_read, self._bytes_to_read = 0, sum(self.size_bytes(path) for path in paths)

    def share_read(self) -> float:
        """How much of the expected files has been read, 0 to 1."""
        return min(1.0, self._bytes_read / self._bytes_to_read) if self._bytes_to_read else 0.0

    def size_bytes(self, path: str) -> int:
        raise NotImplementedError

    def count_read(self, size_bytes: int) -> None:
        self._bytes_read += size_bytes

    def is_picture(self, path: str) -> bool:
        return self.pictures.has(path)

    def image(self, name: str, *, beside: str = "") -> ImageFacts | None:
        found = self.pictures.find(name, beside)
        return None if isinstance(found, list) else found

    def is_ambiguous(self, name: str, *, beside: str = "") -> bool:
        return isinstance(self.pictures.find(name, beside), list)

    def why_not(self, name: str, *, beside: str = "") -> str:
        found = self.pictures.find(name, beside)
        if isinstance(found, list):
            return f"{len(found)} pictures have this name, such as {found[0].path!r} and {found[1].path!r}"
        return self.pictures.why_not(name, beside)

    def add_image(self, path: str, data: bytes, *, found_in: str, line: int | None = None) -> ImageFacts | None:
        path = cleaned(path)
        if not is_safe(path):
            self._say(
                finding(
                    "NameUnsafe", file=found_in, line=line, value=path, cause="the picture's name is no relative path"
                )
            )
            return None
        before = self.pictures.find(path, "")
        if isinstance(before, ImageFacts) and before.path == path:
            if before.sha256 == images.sha256(data):
                return before
            self._say(
                finding(
                    "ImageAmbiguous",
                    file=found_in,
                    line=line,
                    value=path,
                    cause="another picture of this name came before",
                )
            )
            return None
        return self.pictures.take(path, data, found_in=found_in, line=line)


class FolderSource(_Files):
    """A folder of this machine. Links that lead out of it, and links to folders, are told and left alone."""

    def __init__(self, folder: Path, say: Say, accepted: Accepted = ignore_accepted) -> None:
        super().__init__(say, accepted)
        self.folder = folder.resolve(strict=True)
        self._real: dict[str, str] = {}
        self._paths: list[str] = []

    def find_files(self) -> int:
        """List the files; returns how many there are."""
        for path, place in self._walk(str(self.folder), ""):
            self._real[path] = place
        self._paths = sorted(self._real)
        return len(self._paths)

    def inspect(self) -> Iterator[int]:
        """Inspect every picture; yields the size in bytes of each file once it is done."""
        for path in self._paths:
            try:
                yield self._look_at(path)
            except OSError as error:
                self._say(finding("FileUnreadable", file=path, cause=f"{error.strerror}", action="FileRejected"))
                yield 0

    def paths(self) -> Sequence[str]:
        return self._paths

    def size_bytes(self, path: str) -> int:
        return os.stat(self._real[path]).st_size  # noqa: PTH116 - a path object for each of 50,000 files takes longer

    def open(self, path: str) -> BinaryIO:
        file = open(self._real[path], "rb", buffering=0)  # noqa: SIM115 - closed by the reader
        part = _Part(file, 0, os.fstat(file.fileno()).st_size, self.count_read)
        return io.BufferedReader(part, buffer_size=1 << 16)

    def _look_at(self, path: str) -> int:
        with open(self._real[path], "rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            head = file.read(16)
            if is_picture(path, head):
                self.pictures.take(path, head + _rest(file, size_bytes))
        return size_bytes

    def _walk(self, folder: str, below: str) -> Iterator[tuple[str, str]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{below}{entry.name}"
                if entry.is_symlink():
                    yield from self._link(entry, path)
                elif not is_safe(path):
                    self._refuse(path, "this name is no plain text")
                elif entry.is_dir(follow_symlinks=False):
                    yield from self._walk(entry.path, f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.path
                else:
                    self._refuse(path, "it is neither a file nor a folder")

    def _link(self, entry: "os.DirEntry[str]", path: str) -> Iterator[tuple[str, str]]:
        real = Path(os.path.realpath(entry.path))
        if not real.is_relative_to(self.folder):
            self._refuse(path, "it is a link that leads out of the folder")
        elif not real.is_file():
            self._refuse(path, "it is a link to a folder, or to nothing")
        elif is_safe(path):
            yield path, str(real)

    def _refuse(self, path: str, cause: str) -> None:
        path = path.encode(errors="backslashreplace").decode()
        self._say(finding("NameUnsafe", file=path, value=path, cause=cause, action="FileRejected"))


class Blobs(Protocol):
    """Where packs lie; ``runyard.blobs`` has it."""

    def open(self, sha256: str) -> BinaryIO: ...


class PackSource(_Files):
    """Packs, and single files, that lie in a store of blobs."""

    def __init__(self, blobs: Blobs, say: Say, accepted: Accepted = ignore_accepted) -> None:
        super().__init__(say, accepted)
        self._blobs = blobs
        self._where: dict[str, tuple[Place, int]] = {}
        self._sorted: list[str] | None = None

    def take_pack(self, sha256: str, size_bytes: int) -> Iterator[int]:
        """Take a pack in and inspect its pictures; yields the size in bytes of each file once it is done."""
        with self._blobs.open(sha256) as file:
            try:
                entries = read_index(file, size_bytes)
            except PackInvalid as error:
                name = f"pack {sha256[:12]}"
                self._say(
                    finding("FileUnreadable", file=name, cause=f"this is no pack: {error}", action="FileRejected")
                )
                return
            for path, offset, size in entries:
                self._take(file, path, Place(sha256, offset), size)
                yield size

    def take_file(self, sha256: str, size_bytes: int, path: str) -> Iterator[int]:
        """Take a blob in that is one file; yields its size in bytes."""
        with self._blobs.open(sha256) as file:
            self._take(file, path, Place(sha256, 0), size_bytes)
        yield size_bytes

    def paths(self) -> Sequence[str]:
        if self._sorted is None:
            self._sorted = sorted(self._where)
        return self._sorted

    def size_bytes(self, path: str) -> int:
        return self._where[path][1]

    def open(self, path: str) -> BinaryIO:
        (blob, offset), size_bytes = self._where[path]
        part = _Part(self._blobs.open(blob), offset, size_bytes, self.count_read)
        return io.BufferedReader(part, buffer_size=1 << 16)

    def _take(self, file: BinaryIO, path: str, place: Place, size_bytes: int) -> None:
        if not is_safe(path):
            self._say(
                finding("NameUnsafe", file=path, value=path, cause="no plain relative path", action="FileRejected")
            )
            return
        if path in self._where:
            before = self._where[path]
            if before != (place, size_bytes):
                cause = "a file of this name came before it"
                self._say(finding("FileIgnored", file=path, cause=cause, cure="give each file a name of its own"))
            return
        self._where[path] = (place, size_bytes)
        self._sorted = None
        file.seek(place.offset)
        head = file.read(min(16, size_bytes))
        if is_picture(path, head):
            self.pictures.take(path, head + _rest(file, size_bytes), place)


class _Part(io.RawIOBase):
    """A part of a file, as a file, that tells how much of it is read."""

    def __init__(
        self, file: BinaryIO | io.FileIO, offset: int, size_bytes: int, on_read: Callable[[int], None]
    ) -> None:
        self._file, self._offset, self._size_bytes, self._at = file, offset, size_bytes, 0
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size_bytes - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(wanted) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        self._on_read(len(data))
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_picture(path: str, head: bytes) -> bool:
    """Whether a file is a picture to be inspected; what systems leave beside files is not, whatever its ending."""
    return images.is_picture(path, head) and not is_litter(path)


def is_litter(path: str) -> bool:
    """Whether a file was left by an operating system and not by people."""
    base = posixpath.basename(path)
    return base.startswith("._") or base in (".DS_Store", "Thumbs.db", "desktop.ini") or path.startswith("__MACOSX/")


def cleaned(name: str) -> str:
    """A name as rows give it, as a path here: forward slashes, no leading ``./``, composed characters."""
    if "\\" in name:
        name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return _composed(name)


def _composed(name: str) -> str:
    """Some systems take letters and their accents apart in names of files; rows seldom do."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0].casefold()


def _longest_tail(name: str, candidates: list[ImageFacts]) -> list[ImageFacts]:
    """Those candidates that share most of the folders which the name ends with; all of them if none is shared."""
    parts = name.split("/")
    for start in range(len(parts) - 1):
        tail = "/" + "/".join(parts[start:])
        if fitting := [facts for facts in candidates if f"/{facts.path}".endswith(tail)]:
            return fitting
    return candidates


def _rest(file: BinaryIO | io.FileIO, size_bytes: int) -> bytes:
    """What follows the first 16 bytes; of a file that is too large as much as shows that it is."""
    return file.read(max(0, min(size_bytes, images.MOST_BYTES + 1) - 16)) or b""
