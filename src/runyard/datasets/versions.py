"""A dataset version: immutable content named by its hash, and its folder on a machine.

The manifest holds everything except the images' bytes: one JSON object per line, one line per
image, sorted by filename (by code points, which is also the order of their UTF-8). Its hash is the
version's name, so the same content always has the same name. Where the bytes are stored may change
and is not part of the manifest.

    manifest.jsonl    {"filename", "sha256", "size", "width", "height", "mime",
                       "records": [contents, ...], "split": "train", "validation" or "test"},
                      without "split" for an image of no split
    contents.jsonl    ["<content sha256>", "<pack sha256>", offset, size]: one line per image
    packs/<sha256>    many concatenated images, or a single image; only read at offsets
    complete.json     written last: the folder is complete
"""

import hashlib
import os
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from runyard.datasets.records import Contents
from runyard.datasets.splits import Split

MANIFEST, CONTENTS, PACKS = "manifest.jsonl", "contents.jsonl", "packs"
ID_LENGTH = 16
OPEN_PACKS = 64  # descriptors; a dataset of 50,000 images has several hundred packs


class VersionError(Exception):
    """A version's files are missing or invalid; the message names file, line and what is wrong."""


class VersionImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One image of a version.

    ``size`` is in bytes, ``width`` and ``height`` in pixels as displayed. ``split`` is omitted if
    it is None, so that versions without splits keep their bytes and ids.
    """

    filename: str
    sha256: str
    size: int
    width: int
    height: int
    mime: str
    records: list[Contents]
    split: Split | None = None


class ManifestWriter:
    """A writer of manifests, one item at a time.

    ``sha256`` and ``version`` are final after the last item.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._last = file, hashlib.sha256(), ""
        self.size_bytes = self.items = 0

    def add(self, item: VersionImage) -> None:
        """Append an image.

        Raises ValueError unless items come sorted by filename, each filename once.
        """
        if self.items and item.filename <= self._last:
            raise ValueError(
                f"{item.filename!r} comes after {self._last!r}; sort items by filename, each once"
            )
        line = msgspec.json.encode(item) + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._last, self.items, self.size_bytes = (
            item.filename,
            self.items + 1,
            self.size_bytes + len(line),
        )

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def version(self) -> str:
        return self.sha256[:ID_LENGTH]


def encode_contents_line(sha256: str, pack: str, offset: int, size: int) -> bytes:
    """Encode where one image's bytes are, as a line of ``contents.jsonl``.

    ``offset`` is from the pack's start.
    """
    return msgspec.json.encode((sha256, pack, offset, size)) + b"\n"


class PackSpan(msgspec.Struct, frozen=True, array_like=True):
    """A line of ``contents.jsonl``: the bytes of one image within a pack."""

    sha256: str
    pack: str
    offset: int
    size: int


class VersionFolder:
    """A version stored in a folder.

    Holds only indexes in memory; items and images are read on demand.

    Not thread-safe. A forked process may keep reading, since all reads use explicit offsets.
    """

    def __init__(self, folder: Path):
        """Open a version; raise VersionError if its manifest or contents cannot be read."""
        self.folder = folder
        self._manifest = _open(folder / MANIFEST)
        self._lines = _find_line_offsets(self._manifest)
        self._packs: OrderedDict[int, int] = OrderedDict()  # number of a pack: its descriptor
        self._names: list[str] = []
        self._spans: dict[
            bytes, tuple[int, int, int]
        ] = {}  # content hash: number of the pack, offset, size
        self._verified: set[bytes] = set()
        self._read_contents()

    def __len__(self) -> int:
        """Return the number of images in the version; two of them may have the same bytes."""
        return len(self._lines) - 1

    def item(self, number: int) -> VersionImage:
        """Return the item at this index of the manifest, from 0.

        Raises VersionError.
        """
        begin, end = self._lines[number], self._lines[number + 1]
        line = os.pread(self._manifest, end - begin, begin)
        try:
            return msgspec.json.decode(line, type=VersionImage)
        except msgspec.DecodeError as error:
            raise VersionError(f"{MANIFEST} line {number + 1} is not an item: {error}") from error

    def items(self) -> Iterator[VersionImage]:
        return map(self.item, range(len(self)))

    def read(self, sha256: str) -> bytes:
        """Return the bytes of the image with this content hash, verified when they are first read.

        Raises VersionError.
        """
        key = bytes.fromhex(sha256)
        span = self._spans.get(key)
        if span is None:
            raise VersionError(f"{CONTENTS} does not list image {sha256}")
        number, offset, size = span
        data = os.pread(self._pack(number), size, offset)
        if key not in self._verified:
            if hashlib.sha256(data).digest() != key:
                raise VersionError(
                    f"pack {self._names[number]} does not hold image {sha256} at {offset}"
                )
            self._verified.add(key)
        return data

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of its open files."""
        return [self._manifest, *self._packs.values()]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._packs.clear()

    def _pack(self, number: int) -> int:
        descriptor = self._packs.pop(number, None)
        if descriptor is None:
            descriptor = _open(self.folder / PACKS / self._names[number])
            if len(self._packs) >= OPEN_PACKS:
                os.close(self._packs.popitem(last=False)[1])
        self._packs[number] = descriptor
        return descriptor

    def _read_contents(self) -> None:
        numbers: dict[str, int] = {}
        for span in read_contents(self.folder / CONTENTS):
            number = numbers.setdefault(span.pack, len(numbers))
            self._spans[bytes.fromhex(span.sha256)] = (number, span.offset, span.size)
        self._names = list(numbers)


def read_contents(path: Path) -> Iterator[PackSpan]:
    """Read the lines of a ``contents.jsonl``.

    Raises VersionError for a line that cannot be read, OSError.
    """
    decoder = msgspec.json.Decoder(PackSpan)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                span = decoder.decode(line)
                if (
                    not (is_sha256(span.sha256) and is_sha256(span.pack))
                    or span.offset < 0
                    or span.size < 0
                ):
                    raise ValueError(
                        "a hash is 64 lower-case hex digits, offset and size are not negative"
                    )
            except (msgspec.DecodeError, ValueError) as error:
                raise VersionError(
                    f"{path.name} line {number} is not the location of an image: {error}"
                ) from error
            yield span


def read_manifest(path: Path) -> Iterator[VersionImage]:
    """Read the items of a manifest.

    Raises VersionError for a line that cannot be read, OSError.
    """
    decoder = msgspec.json.Decoder(VersionImage)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise VersionError(f"{path.name} line {number} is not an item: {error}") from error


def is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in lower-case hex, and so safe as a file name."""
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise VersionError(f"{path.name} is missing in {path.parent}") from error


def _find_line_offsets(descriptor: int) -> "array[int]":
    """Return where each line begins, and the end of the last."""
    offsets = array("Q", [0])
    with open(os.dup(descriptor), "rb") as file:
        for line in file:
            offsets.append(offsets[-1] + len(line))
    return offsets
