"""The DOTA reader: one text file per image and one rotated box per line, in pixels.

    imagesource:GoogleEarth
    gsd:0.146
    x1 y1 x2 y2 x3 y3 x4 y4 name difficulty

The first two lines are optional. The box round the four corners is used. A label file in
``labelTxt`` belongs to an image in ``images``.
"""

from collections.abc import Iterator

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import LabeledBox, parse_number
from runyard.datasets.readers.text_labels.class_lists import find_class_lists
from runyard.datasets.readers.text_labels.pixel_rows import decode_words, read_pixel_rows
from runyard.datasets.readers.text_labels.text_kinds import DOTA_HEADERS, find_text_kinds
from runyard.datasets.readers.text_labels.words import parse_whole
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")


class DotaReader:
    """The reader of rotated boxes with names; see ``base.Reader``."""

    name = "Dota"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        labels = find_text_kinds(source).list_files("dota")
        lists = [found.file for found in find_class_lists(source).files] if labels else []
        return sorted({*labels, *lists})

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        yield from read_pixel_rows(source, files, report, _parse_line)


def _parse_line(path: str, number: int, line: bytes) -> LabeledBox | Finding | None:
    words = decode_words(path, number, line)
    if isinstance(words, Finding):
        return words
    if not words or words[0].lower().startswith(DOTA_HEADERS):
        return None
    if len(words) < 9:
        cause = f"the line has {len(words)} columns; expected 8 numbers, a name and a difficulty"
        return make_finding(
            "RowInvalid", file=path, line=number, cause=cause, value=" ".join(words)
        )
    corners: list[float] = []
    for column, word in zip(CORNERS, words[:8], strict=True):
        corner = parse_number(word)
        if corner is None:
            return make_finding(
                "FieldInvalid",
                file=path,
                line=number,
                field=column,
                cause="not a number",
                value=word,
            )
        corners.append(corner)
    has_difficulty = len(words) > 9 and parse_whole(words[-1]) is not None
    name = " ".join(words[8:-1] if has_difficulty else words[8:])
    xs, ys = corners[0::2], corners[1::2]
    box = min(xs), min(ys), max(xs), max(ys)
    return LabeledBox(name, box, BoxLocation(number, "x1 y1 x2 y2 x3 y3 x4 y4"))
