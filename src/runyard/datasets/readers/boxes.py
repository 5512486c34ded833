"""The common parts of detection formats: named boxes, which become phrases of a caption made of the
names.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from runyard.datasets.findings import Finding
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.records import AssetRef, Box, Record, make_grounding
from runyard.datasets.sources import Source
from runyard.datasets.splits import Split


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
    return Row(record, file, line, field, frame, unit, list(box_locations.values()), findings)


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
