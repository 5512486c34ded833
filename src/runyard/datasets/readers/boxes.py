"""The common parts of detection formats: named boxes, which become phrases of a caption made of the
names.
"""

import math
import struct
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from runyard.datasets.findings import Finding
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.records import AssetRef, Box, Record, make_grounding
from runyard.datasets.sources import Source
from runyard.datasets.splits import Split

MAX_RUNS_CHARACTERS = 32 << 20
_FIRST = 48  # the character of the bits 000000


class LabeledBox(NamedTuple):
    """One named box and its location in the file."""

    name: str
    box: Box
    location: BoxLocation


def find_image_size(
    source: Source, name: str, file: str, claimed: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the size to divide pixels by: the size given in the file, else the image's own.

    For a missing image this is 1 x 1: its row is reported as such, and its boxes are never checked.
    """
    if claimed and claimed[0] > 0 and claimed[1] > 0:
        return claimed
    facts = source.find_image(name, relative_to=file)
    return (facts.width, facts.height) if facts else (1, 1)


def to_fractions(box: Box, size: tuple[int, int]) -> Box:
    """Convert a box in pixels to fractions of the image."""
    width, height = size
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def build_row(
    source: Source,
    name: str,
    labeled_boxes: Sequence[LabeledBox],
    *,
    file: str,
    line: int | None = None,
    field: str | None = None,
    frame: tuple[int, int] | None = None,
    unit: Literal["fraction", "pixel"] = "fraction",
    findings: Sequence[Finding] = (),
    split: Split | None = None,
    is_unit_chosen: bool = False,
) -> Row:
    """Build the row with the named boxes of one image. Its id is the image's path."""
    facts = source.find_image(name, relative_to=file)
    box_locations: dict[str, list[BoxLocation]] = {}
    for labeled in labeled_boxes:
        box_locations.setdefault(labeled.name, []).append(labeled.location)
    record = Record(
        id=facts.path if facts else name,
        asset=AssetRef(filename=name, width=0, height=0),
        contents=make_grounding([(labeled.name, labeled.box) for labeled in labeled_boxes]),
        split=split,
    )
    locations = list(box_locations.values())
    return Row(record, file, line, field, frame, unit, locations, findings, is_unit_chosen)


def parse_number(text: str) -> float | None:
    """Parse a number, finite or not.

    Return None for anything else, such as ``_`` or digits of other scripts.
    """
    if not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def to_number(value: Any) -> float | None:
    """Convert a number of a JSON file, which may be written as a text; None for anything else."""
    if isinstance(value, str):
        return parse_number(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Convert an image's size as given by a file: 400, 400.0, "400" and "400.0" are the same.

    Return None if either is missing or not a positive whole number.
    """
    sides = [to_number(width), to_number(height)]
    if not all(side is not None and 0 < side < 1e9 and side.is_integer() for side in sides):
        return None
    return int(sides[0] or 0), int(sides[1] or 0)


def bound_points(xs: Sequence[Any], ys: Sequence[Any]) -> tuple[float, float, float, float] | None:
    """Return the bounding box of points as x, y, width, height.

    Return None for fewer than three points, and for anything but numbers.
    """
    if len(xs) != len(ys) or len(xs) < 3:
        return None
    numbers = [to_number(value) for value in (*xs, *ys)]
    good = [number for number in numbers if number is not None]
    if len(good) != len(numbers):
        return None
    left, top = min(good[: len(xs)]), min(good[len(xs) :])
    return left, top, max(good[: len(xs)]) - left, max(good[len(xs) :]) - top


def bound_mask(mask: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Return the box round a COCO mask as x, y, width, height in pixels.

    A mask in run-length encoding is a list of run lengths of zeros and ones in turn, beginning with
    zeros, down the columns of an image of ``size`` (height, width). It is a list of numbers, or a
    text: six bits per character, of which five are data and one says that the number continues;
    from the fourth run on, a number is the difference to the run before the last one.

    Return None if it is not a mask, or has no pixels.
    """
    counts, size = mask.get("counts"), mask.get("size")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = size
    if type(height) is not int or type(width) is not int or min(height, width) <= 0:
        return None
    if isinstance(counts, str):
        if len(counts) > MAX_RUNS_CHARACTERS:
            return None
        runs: Iterator[Any] = _decode_runs(counts)
    elif isinstance(counts, list):
        runs = iter(counts)
    else:
        return None
    return _bound_runs(runs, height, width)


def _bound_runs(
    runs: Iterator[Any], height: int, width: int
) -> tuple[float, float, float, float] | None:
    left, top, right, bottom = width, height, 0, 0
    position = 0
    for number, run in enumerate(runs):
        if type(run) is not int or run < 0 or position + run > height * width:
            return None
        if number % 2 and run:
            first, last = position, position + run - 1
            left, right = min(left, first // height), max(right, last // height + 1)
            if first // height == last // height:
                top, bottom = min(top, first % height), max(bottom, last % height + 1)
            else:  # it continues in the next column
                top, bottom = 0, height
        position += run
    return None if right == 0 else (left, top, right - left, bottom - top)


def _decode_runs(text: str) -> Iterator[int | None]:
    """Yield the run lengths of a text; None where it is malformed."""
    before = last = 0  # the two previous runs
    value = shift = number = 0
    for character in text:
        bits = ord(character) - _FIRST
        if not 0 <= bits < 64 or shift > 60:
            yield None
            return
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        if number > 2:
            value += before
        yield value
        before, last = last, value
        value = shift = 0
        number += 1
    if shift:
        yield None


class RowSpool:
    """Parts of rows, kept until the rows are complete: in memory, or on disk if there are many.

    Parts may be added in any order of rows, and are read when all have been added. A row is a
    number from 0; a part is bytes. In memory are the last position of each row and the first MiBs.
    """

    _MEMORY_BYTES = 8 << 20
    _HEADER = struct.Struct("<qI")  # the position of the row's part before this one, length

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=self._MEMORY_BYTES)  # noqa: SIM115
        self._end = 0
        self._last = array("q")

    def __enter__(self) -> "RowSpool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._last)

    def add(self, row: int, part: bytes) -> None:
        if row >= len(self._last):
            self._last.extend([-1] * (row + 1 - len(self._last)))
        self._file.write(self._HEADER.pack(self._last[row], len(part)) + part)
        self._last[row] = self._end
        self._end += self._HEADER.size + len(part)

    def has(self, row: int) -> bool:
        """Return whether the row has any part."""
        return row < len(self._last) and self._last[row] >= 0

    def read(self, row: int) -> list[bytes]:
        """Return the parts of a row in the order in which they were added."""
        parts, position = [], self._last[row] if row < len(self._last) else -1
        while position >= 0:
            self._file.seek(position)
            position, length = self._HEADER.unpack(self._file.read(self._HEADER.size))
            parts.append(self._file.read(length))
        return parts[::-1]
