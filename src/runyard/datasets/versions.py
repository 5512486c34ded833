"""A version of a dataset: what it was at one moment, named by its content, and the folder a machine keeps it in.

The manifest says everything but the pictures' bytes: one JSON object a line, one line a picture, sorted by filename
(by code points, which is also the order of their UTF-8). Its hash is the version's name, so the same content has the
same name wherever and whenever it is written. Where the bytes lie may change and is no part of it.

    manifest.jsonl    {"filename", "sha256", "size", "width", "height", "mime", "records": [contents, ...]}
    contents.jsonl    ["<content sha256>", "<pack sha256>", offset, size]: one line a distinct picture
    packs/<sha256>    many pictures one after another, or one bare picture; never parsed, only read at offsets
    complete.json     written last: the folder is whole
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

MANIFEST, CONTENTS, PACKS = "manifest.jsonl", "contents.jsonl", "packs"
ID_LENGTH = 16
OPEN_PACKS = 64  # descriptors; a dataset of 50,000 pictures has several hundred packs


class VersionError(Exception):
    """A version's files do not hold what they should; the message names file, line and what is wrong."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One picture of a version. ``size`` in bytes, ``width`` and ``height`` in pixels as shown."""

    filename: str
    sha256: str
    size: int
    width: int
    height: int
    mime: str
    records: list[Contents]


class ManifestWriter:
    """Writes items as a manifest, one at a time, and says its hash and so the version's name in the end."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._last = file, hashlib.sha256(), ""
        self.size_bytes = self.items = 0

    def add(self, item: Item) -> None:
        """Append a picture. Raises ValueError unless items come sorted by filename, each filename once."""
        if self.items and item.filename <= self._last:
            raise ValueError(f"{item.filename!r} comes after {self._last!r}; sort items by filename, each once")
        line = msgspec.json.encode(item) + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._last, self.items, self.size_bytes = item.filename, self.items + 1, self.size_bytes + len(line)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def version(self) -> str:
        return self.sha256[:ID_LENGTH]


def contents_line(sha256: str, pack: str, offset: int, size: int) -> bytes:
    """Where one picture's bytes lie, as a line of ``contents.jsonl``. ``offset`` counts from the pack's first byte."""
    return msgspec.json.encode((sha256, pack, offset, size)) + b"\n"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A line of ``contents.jsonl``."""

    sha256: str
    pack: str
    offset: int
    size: int


class VersionFolder:
    """A version that lies in a folder. Holds indexes only; items and pictures are read when asked for.

    Not thread-safe. A fork may go on reading, as nothing here has a position.
    """

    def __init__(self, folder: Path):
        """Raises VersionError when manifest or contents cannot be read."""
        self.folder = folder
        self._manifest = _opened(folder / MANIFEST)
        self._lines = _line_offsets(self._manifest)
        self._packs: OrderedDict[int, int] = OrderedDict()  # number of a pack: its descriptor
        self._names: list[str] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}  # content hash: number of the pack, offset, size
        self._proven: set[bytes] = set()
        self._read_contents()

    def __len__(self) -> int:
        """How many pictures the version names; two names may have the same bytes."""
        return len(self._lines) - 1

    def item(self, number: int) -> Item:
        """The picture at this place of the manifest, from 0. Raises VersionError."""
        begin, end = self._lines[number], self._lines[number + 1]
        line = os.pread(self._manifest, end - begin, begin)
        try:
            return msgspec.json.decode(line, type=Item)
        except msgspec.DecodeError as error:
            raise VersionError(f"{MANIFEST} line {number + 1} is no item: {error}") from error

    def items(self) -> Iterator[Item]:
        return map(self.item, range(len(self)))

    def read(self, sha256: str) -> bytes:
        """The bytes of the picture with this content hash, compared with it when they are read for the first time.

        Raises VersionError.
        """
        key = bytes.fromhex(sha256)
        place = self._places.get(key)
        if place is None:
            raise VersionError(f"{CONTENTS} does not say where picture {sha256} lies")
        number, offset, size = place
        data = os.pread(self._pack(number), size, offset)
        if key not in self._proven:
            if hashlib.sha256(data).digest() != key:
                raise VersionError(f"pack {self._names[number]} does not hold picture {sha256} at {offset}")
            self._proven.add(key)
        return data

    def close(self) -> None:
        for descriptor in (self._manifest, *self._packs.values()):
            os.close(descriptor)
        self._packs.clear()

    def _pack(self, number: int) -> int:
        descriptor = self._packs.pop(number, None)
        if descriptor is None:
            descriptor = _opened(self.folder / PACKS / self._names[number])
            if len(self._packs) >= OPEN_PACKS:
                os.close(self._packs.popitem(last=False)[1])
        self._packs[number] = descriptor
        return descriptor

    def _read_contents(self) -> None:
        numbers: dict[str, int] = {}
        for place in read_contents(self.folder / CONTENTS):
            number = numbers.setdefault(place.pack, len(numbers))
            self._places[bytes.fromhex(place.sha256)] = (number, place.offset, place.size)
        self._names = list(numbers)


def read_contents(path: Path) -> Iterator[Place]:
    """The lines of a ``contents.jsonl``. Raises VersionError for one that cannot be read, OSError."""
    decoder = msgspec.json.Decoder(Place)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                place = decoder.decode(line)
                if not (is_hash(place.sha256) and is_hash(place.pack)) or place.offset < 0 or place.size < 0:
                    raise ValueError("a hash is 64 lower-case hex digits, offset and size are not negative")
            except (msgspec.DecodeError, ValueError) as error:
                raise VersionError(f"{path.name} line {number} says no place of a picture: {error}") from error
            yield place


def read_manifest(path: Path) -> Iterator[Item]:
    """The items of a manifest. Raises VersionError for a line that cannot be read, OSError."""
    decoder = msgspec.json.Decoder(Item)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise VersionError(f"{path.name} line {number} is no item: {error}") from error


def is_hash(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hex, and so may become a file's name."""
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise VersionError(f"{path.name} is missing in {path.parent}") from error


def _line_offsets(descriptor: int) -> "array[int]":
    """Where each line begins, and the end of the last."""
    offsets = array("Q", [0])
    with open(os.dup(descriptor), "rb") as file:
        for line in file:
            offsets.append(offsets[-1] + len(line))
    return offsets
