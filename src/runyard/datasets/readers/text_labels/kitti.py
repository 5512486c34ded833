"""The KITTI reader: one text file per image and one object per line, with its box in pixels.

    type truncated occluded alpha left top right bottom height width length x y z rotation [score]

Only the type and the four numbers of the box are used. ``DontCare`` marks a region without labels,
which is left out. A label file in ``label_2`` belongs to an image in ``image_2``.
"""

from collections.abc import Iterator

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import LabeledBox, parse_number
from runyard.datasets.readers.text_labels.pixel_rows import (
    IgnoredRegion,
    decode_words,
    read_pixel_rows,
)
from runyard.datasets.readers.text_labels.text_kinds import find_text_kinds
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

IGNORED_TYPE = "dontcare"
SIDES = ("left", "top", "right", "bottom")


class KittiReader:
    """The reader of objects in road scenes; see ``base.Reader``."""

    name = "Kitti"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return find_text_kinds(source).list_files("kitti")

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        yield from read_pixel_rows(source, files, report, _parse_line)


def _parse_line(path: str, number: int, line: bytes) -> LabeledBox | IgnoredRegion | Finding | None:
    words = decode_words(path, number, line)
    if isinstance(words, Finding):
        return words
    if not words:
        return None
    if len(words) not in (15, 16):
        cause = f"the line has {len(words)} columns; expected 15, or 16 with a score"
        return make_finding(
            "RowInvalid", file=path, line=number, cause=cause, value=" ".join(words)
        )
    sides: list[float] = []
    for column, word in zip(SIDES, words[4:8], strict=True):
        side = parse_number(word)
        if side is None:
            return make_finding(
                "FieldInvalid",
                file=path,
                line=number,
                field=column,
                cause="not a number",
                value=word,
            )
        sides.append(side)
    if words[0].lower() == IGNORED_TYPE:
        return IgnoredRegion(number)
    left, top, right, bottom = sides
    return LabeledBox(
        words[0], (left, top, right, bottom), BoxLocation(number, "left top right bottom")
    )
