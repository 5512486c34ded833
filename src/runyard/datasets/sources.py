"""The files of an import: a folder of this machine, or packs in a blob store.

Paths are relative, POSIX, without ``..``. They are display text and dictionary keys, and are never
opened without a check. Readers ask a source for files by path, and for images by the name that a
row gives.
"""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from runyard.datasets import images
from runyard.datasets.findings import KINDS, Action, ReportFinding, make_finding
from runyard.datasets.naming.image_names import ImageFacts, ImageNames, Resolution, normalize_name
from runyard.datasets.packs import PackInvalid, is_safe, read_index
from vi.api.resources.datasets._walk import is_hidden as is_hidden
from vi.api.resources.datasets._walk import is_system_file as is_system_file
from vi.api.resources.datasets._walk import list_files


class Source(Protocol):
    """Files, and the images among them."""

    def paths(self) -> Sequence[str]:
        """Return every file, images included, sorted."""
        ...

    def size_bytes(self, path: str) -> int: ...

    def open(self, path: str) -> BinaryIO:
        """Open a seekable file for reading."""
        ...

    def is_image(self, path: str) -> bool:
        """Return whether this file was inspected as an image, accepted or rejected."""
        ...

    def resolve_image(self, name: str, *, relative_to: str = "") -> Resolution:
        """Resolve the name that a row of the file ``relative_to`` gives; see ``image_names``."""
        ...

    def find_image(self, name: str, *, relative_to: str = "") -> ImageFacts | None:
        """Return the image that a row of the file ``relative_to`` names.

        Return None if it is missing, rejected or ambiguous.
        """
        ...

    def add_image(
        self, path: str, data: bytes, *, found_in: str, line: int | None = None
    ) -> ImageFacts | None:
        """Add an image that a container (Parquet, tar) carries.

        Return None if it is rejected, which is reported.
        """
        ...


class BlobSpan(NamedTuple):
    """A range of bytes within a blob."""

    blob: str
    offset: int
    size_bytes: int


# Called with each accepted image: facts, crc32c, bytes, and where they are stored (None: nowhere
# yet, so keep them).
OnImage = Callable[[ImageFacts, int, bytes, BlobSpan | None], None]


def ignore_image(facts: ImageFacts, crc32c: int, data: bytes, span: BlobSpan | None) -> None:
    """Do nothing: for callers that only check."""


class ImageIndex:
    """The images of a source, inspected as they are added."""

    def __init__(self, report: ReportFinding, on_image: OnImage = ignore_image) -> None:
        self.names = ImageNames()
        self._report = report
        self._on_image = on_image
        self._by_content: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ImageFacts]:
        return iter(self.names)

    def add_known(self, facts: ImageFacts) -> None:
        """Add an image that the dataset already has, without inspecting it."""
        self.names.add(facts)
        self._by_content.setdefault(facts.sha256, facts.path)

    def add(
        self,
        path: str,
        data: bytes,
        span: BlobSpan | None = None,
        *,
        found_in: str | None = None,
        line: int | None = None,
    ) -> ImageFacts | None:
        """Inspect an image, report its findings and index it; return None if it cannot be used."""
        found = images.inspect(path, data)
        is_usable = True
        for code, cause, value in found.findings:
            is_error = KINDS[code].severity == "error"
            is_usable = is_usable and not is_error
            self._report_image(code, path, cause, value, found_in, line, is_rejected=is_error)
        if not is_usable:
            errors = [found for found in found.findings if KINDS[found.code].severity == "error"]
            self.names.add_rejected(path, errors[0].code)
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
            self._report_image(
                "ImageDuplicate", path, f"it has the same bytes as {first!r}", None, found_in, line
            )
        self.names.add(facts)
        self._on_image(facts, images.crc32c(data), data, span)
        return facts

    def _report_image(
        self,
        code: str,
        path: str,
        cause: str,
        value: object,
        found_in: str | None,
        line: int | None,
        *,
        is_rejected: bool = False,
    ) -> None:
        action: Action | None = "FileRejected" if is_rejected and found_in is None else None
        file, field = (path, None) if found_in is None else (found_in, path)
        self._report(
            make_finding(
                code, file=file, line=line, field=field, cause=cause, value=value, action=action
            )
        )


class _ImageSource(ABC):
    """The handling of images that both kinds of sources share."""

    def __init__(self, report: ReportFinding, on_image: OnImage = ignore_image) -> None:
        self.images = ImageIndex(report, on_image)
        self._report = report
        self._bytes_read = self._bytes_to_read = 0

    def expect(self, paths: Sequence[str]) -> None:
        """Start to measure ``fraction_read`` over these files."""
        self._bytes_read, self._bytes_to_read = 0, sum(self.size_bytes(path) for path in paths)

    def fraction_read(self) -> float:
        """Return the fraction of the expected files that has been read, 0 to 1."""
        return min(1.0, self._bytes_read / self._bytes_to_read) if self._bytes_to_read else 0.0

    @abstractmethod
    def size_bytes(self, path: str) -> int: ...

    def count_read(self, size_bytes: int) -> None:
        self._bytes_read += size_bytes

    def is_image(self, path: str) -> bool:
        return self.images.names.has(path)

    def resolve_image(self, name: str, *, relative_to: str = "") -> Resolution:
        return self.images.names.resolve(name, relative_to)

    def find_image(self, name: str, *, relative_to: str = "") -> ImageFacts | None:
        return self.images.names.resolve(name, relative_to).image

    def add_image(
        self, path: str, data: bytes, *, found_in: str, line: int | None = None
    ) -> ImageFacts | None:
        path = normalize_name(path)
        if not is_safe(path):
            self._report(
                make_finding(
                    "NameUnsafe",
                    file=found_in,
                    line=line,
                    value=path,
                    cause="the image's name is not a relative path",
                )
            )
            return None
        before = self.images.names.get(path)
        if before is not None:
            if before.sha256 == images.sha256(data):
                return before
            self._report(
                make_finding(
                    "ImageAmbiguous",
                    file=found_in,
                    line=line,
                    value=path,
                    cause="an earlier image has this name",
                )
            )
            return None
        return self.images.add(path, data, found_in=found_in, line=line)


class FolderSource(_ImageSource):
    """A folder or a single file of this machine.

    The files are those that an import of the same path would send.
    """

    def __init__(
        self, folder: Path, report: ReportFinding, on_image: OnImage = ignore_image
    ) -> None:
        super().__init__(report, on_image)
        self._top = folder
        self._real: dict[str, str] = {}
        self._paths: list[str] = []

    def find_files(self) -> int:
        """List the files; return how many there are."""
        files, left_out = list_files(self._top)
        for file in left_out:
            self._report(
                make_finding(
                    file.code,
                    file=file.path,
                    cause=file.cause,
                    fix=file.fix,
                    action="FileRejected",
                )
            )
        self._real = {file.path: file.local_path for file in files}
        self._paths = list(self._real)
        return len(self._paths)

    def inspect(self) -> Iterator[int]:
        """Inspect every image; yield the size in bytes of each file once it is done."""
        for path in self._paths:
            try:
                yield self._inspect_file(path)
            except OSError as error:
                self._report(
                    make_finding(
                        "FileUnreadable",
                        file=path,
                        cause=f"{error.strerror}",
                        action="FileRejected",
                    )
                )
                yield 0

    def paths(self) -> Sequence[str]:
        return self._paths

    def size_bytes(self, path: str) -> int:
        # A path object for each of 50,000 files takes longer.
        return os.stat(self._real[path]).st_size  # noqa: PTH116

    def open(self, path: str) -> BinaryIO:
        file = open(self._real[path], "rb", buffering=0)  # noqa: SIM115 - closed by the reader
        part = _FileSlice(file, 0, os.fstat(file.fileno()).st_size, self.count_read)
        return io.BufferedReader(part, buffer_size=1 << 16)

    def _inspect_file(self, path: str) -> int:
        with open(self._real[path], "rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            head = file.read(16)
            if is_image(path, head):
                self.images.add(path, _read_image(file, 0, size_bytes))
        return size_bytes


class PackStore(Protocol):
    """The blob store that holds packs; see ``runyard.blobs``."""

    def open(self, sha256: str) -> BinaryIO: ...


class PackSource(_ImageSource):
    """Packs and single files in a blob store."""

    def __init__(
        self, blobs: PackStore, report: ReportFinding, on_image: OnImage = ignore_image
    ) -> None:
        super().__init__(report, on_image)
        self._blobs = blobs
        self._spans: dict[str, BlobSpan] = {}
        self._sorted: list[str] | None = None

    def add_pack(self, sha256: str, size_bytes: int) -> Iterator[int]:
        """Add a pack and inspect its images.

        Yield the size in bytes of each file once it is done.
        """
        with self._blobs.open(sha256) as file:
            try:
                entries = read_index(file, size_bytes)
            except PackInvalid as error:
                name = f"pack {sha256[:12]}"
                self._report(
                    make_finding(
                        "FileUnreadable",
                        file=name,
                        cause=f"not a valid pack: {error}",
                        action="FileRejected",
                    )
                )
                return
            for path, offset, size in entries:
                self._add(file, path, BlobSpan(sha256, offset, size))
                yield size

    def add_file(self, sha256: str, size_bytes: int, path: str) -> Iterator[int]:
        """Add a blob that is one file; yield its size in bytes."""
        with self._blobs.open(sha256) as file:
            self._add(file, path, BlobSpan(sha256, 0, size_bytes))
        yield size_bytes

    def paths(self) -> Sequence[str]:
        if self._sorted is None:
            self._sorted = sorted(self._spans)
        return self._sorted

    def size_bytes(self, path: str) -> int:
        return self._spans[path].size_bytes

    def open(self, path: str) -> BinaryIO:
        blob, offset, size_bytes = self._spans[path]
        part = _FileSlice(self._blobs.open(blob), offset, size_bytes, self.count_read)
        return io.BufferedReader(part, buffer_size=1 << 16)

    def _add(self, file: BinaryIO, path: str, span: BlobSpan) -> None:
        if not is_safe(path):
            self._report(
                make_finding(
                    "NameUnsafe",
                    file=path,
                    value=path,
                    cause="not a plain relative path",
                    action="FileRejected",
                )
            )
            return
        if path in self._spans:
            if self._spans[path] != span:
                cause = "an earlier file has this name"
                self._report(
                    make_finding(
                        "FileIgnored", file=path, cause=cause, fix="give each file its own name"
                    )
                )
            return
        self._spans[path] = span
        self._sorted = None
        file.seek(span.offset)
        head = file.read(min(16, span.size_bytes))
        if is_image(path, head):
            self.images.add(path, _read_image(file, span.offset, span.size_bytes), span)


class _FileSlice(io.RawIOBase):
    """A slice of a file, as a file, that counts the bytes read."""

    def __init__(
        self,
        file: BinaryIO | io.FileIO,
        offset: int,
        size_bytes: int,
        on_read: Callable[[int], None],
    ) -> None:
        self._file, self._offset, self._size_bytes, self._at = file, offset, size_bytes, 0
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        )
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length_bytes = max(0, min(len(buffer), self._size_bytes - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(length_bytes) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        self._on_read(len(data))
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_image(path: str, head: bytes) -> bool:
    """Return whether a file is an image to inspect; files left by an operating system are not."""
    return images.is_image(path, head) and not is_system_file(path)


def _read_image(file: BinaryIO | io.FileIO, offset: int, size_bytes: int) -> bytes:
    """Read an image at once, since adding its parts would copy it.

    Of a file that is too large, read only enough to prove it.
    """
    file.seek(offset)
    return file.read(min(size_bytes, images.MAX_BYTES + 1)) or b""
