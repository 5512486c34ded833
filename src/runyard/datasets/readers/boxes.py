"""What the formats of detection have in common: names and boxes, which become phrases of a caption made of names."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from runyard.datasets.findings import Finding
from runyard.datasets.readers import Row, Spot
from runyard.datasets.records import AssetRef, Box, Record, grounding_of
from runyard.datasets.sources import Source


class Labelled(NamedTuple):
    """One named box and where it stands in its file."""

    name: str
    box: Box
    spot: Spot


def size_of(source: Source, name: str, file: str, claimed: tuple[int, int] | None = None) -> tuple[int, int]:
    """What to divide pixels by: the size that the file claims, else the picture's own.

    1 x 1 for a picture that is not there: its row is told as such, and its boxes are never looked at.
    """
    if claimed and claimed[0] > 0 and claimed[1] > 0:
        return claimed
    facts = source.image(name, beside=file)
    return (facts.width, facts.height) if facts else (1, 1)


def as_share(box: Box, size: tuple[int, int]) -> Box:
    """A box of pixels as shares of the picture."""
    width, height = size
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def row_of(
    source: Source,
    name: str,
    labelled: Sequence[Labelled],
    *,
    file: str,
    line: int | None = None,
    field: str | None = None,
    frame: tuple[int, int] | None = None,
    unit: Literal["share", "pixel"] = "share",
    defects: Sequence[Finding] = (),
) -> Row:
    """The row that says of one picture what is where. The id is the picture's path."""
    facts = source.image(name, beside=file)
    spots: dict[str, list[Spot]] = {}
    for one in labelled:
        spots.setdefault(one.name, []).append(one.spot)
    record = Record(
        id=facts.path if facts else name,
        asset=AssetRef(filename=name, width=0, height=0),
        contents=grounding_of([(one.name, one.box) for one in labelled]),
    )
    return Row(record, file, line, field, frame, unit, list(spots.values()), defects)


def number_of(text: str) -> float | None:
    """The number a text stands for, finite or not; None for none. Digits of other scripts and ``_`` are refused."""
    if not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None
    except OverflowError:
        return math.inf
