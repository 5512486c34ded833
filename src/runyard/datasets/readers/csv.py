"""The CSV reader: one box per line, with the image's name, in two forms.

    filename,xmin,ymin,xmax,ymax,class         four corners
    filename,x,y,width,height,class            upper left corner and size

Columns are found by name, in any order and case; other columns are allowed. With four corners,
``width`` and ``height`` are those of the image. Numbers are pixels, or fractions if no number of
the file exceeds 1 and one has a point. Lines of one image may be anywhere, so boxes are kept as
plain numbers until the file has been read.
"""

import csv
import io
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import (
    LabeledBox,
    build_row,
    find_image_size,
    parse_number,
    to_fractions,
)
from runyard.datasets.readers.lines import read_head
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source
from runyard.datasets.splits import COLUMNS as SPLIT_COLUMNS
from runyard.datasets.splits import Split, parse_split

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"
FOUR_CORNERS = ("xmin", "ymin", "xmax", "ymax")
CORNER_AND_SIZE = ("x", "y", "width", "height")
IMAGE_COLUMNS = ("filename", "file_name", "file", "image", "image_path", "path")
CLASS_COLUMNS = ("class", "label", "class_name", "label_name", "category", "name")


class _CsvReader:
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def __init__(self, name: str, columns: tuple[str, ...]) -> None:
        self.name = name
        self._columns = columns

    def detect(self, source: Source) -> list[str]:
        return [
            path
            for path in source.paths()
            if path.lower().endswith(ENDINGS)
            and self._matches(_parse_header(read_head(source, path)))
        ]

    def read(
        self, source: Source, files: list[str], task: DatasetType, report: ReportFinding
    ) -> Iterator[Row]:
        for path in files:
            boxes = _Boxes(source, path, self._columns)
            with source.open(path) as file:
                boxes.read(file, report)
            yield from boxes.rows()

    def _matches(self, header: list[str]) -> bool:
        if self._columns == CORNER_AND_SIZE and set(FOUR_CORNERS) <= set(header):
            return False
        return set(self._columns) <= set(header) and any(name in header for name in IMAGE_COLUMNS)


class CsvFourCornerReader(_CsvReader):
    """``filename,xmin,ymin,xmax,ymax,class``; see ``base.Reader``."""

    def __init__(self) -> None:
        super().__init__("CsvFourCorner", FOUR_CORNERS)


class CsvWidthHeightReader(_CsvReader):
    """``filename,x,y,width,height,class``; see ``base.Reader``."""

    def __init__(self) -> None:
        super().__init__("CsvWidthHeight", CORNER_AND_SIZE)


@dataclass
class _ImageBoxes:
    """The boxes of one image: class, line and four numbers per box."""

    line: int
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    findings: list[Finding] = field(default_factory=list)
    frame: tuple[int, int] | None = None


class _Boxes:
    """The boxes of one file."""

    def __init__(self, source: Source, path: str, columns: tuple[str, ...]) -> None:
        self._source, self._path, self._columns = source, path, columns
        self._images: dict[tuple[str, Split | None], _ImageBoxes] = {}
        self._classes: dict[str, int] = {}
        self._max_number, self._has_fractions = 0.0, False

    def read(self, file: BinaryIO, report: ReportFinding) -> None:
        """Read the lines; report what cannot be read, or keep the finding with its image."""
        delimiter = _guess_delimiter(read_head(self._source, self._path))
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, delimiter=delimiter, skipinitialspace=True)
        line = 1
        try:
            header = [name.strip().lower() for name in next(rows, [])]
            if not set(header) >= set(self._columns) or set(header).isdisjoint(IMAGE_COLUMNS):
                # The first KiB matched, but quotes or line ends make a different header of it.
                cause = f"the first line names {', '.join(header)[:80] or 'no columns'}"
                report(
                    make_finding(
                        "FieldMissing", file=self._path, line=1, cause=cause, action="FileRejected"
                    )
                )
                return
            columns_at = _find_columns(header, self._columns)
            line = rows.line_num + 1
            for cells in rows:
                if cells:
                    self._add_line(cells, line, header, columns_at, report)
                line = rows.line_num + 1
        except UnicodeDecodeError as error:
            cause = f"not UTF-8 at or soon after this line: {error.reason}"
            report(
                make_finding(
                    "EncodingWrong", file=self._path, line=line, cause=cause, action="FileRejected"
                )
            )
            self._images.clear()
        except csv.Error as error:
            report(
                make_finding(
                    "FileUnreadable",
                    file=self._path,
                    line=line,
                    cause=str(error),
                    action="FileRejected",
                )
            )
            self._images.clear()

    def rows(self) -> Iterator[Row]:
        is_fraction = self._max_number <= 1.0 and self._has_fractions
        names = list(self._classes)
        for (name, split), image in self._images.items():
            size = (
                (1, 1)
                if is_fraction
                else find_image_size(self._source, name, self._path, image.frame)
            )
            numbers = image.numbers
            labeled_boxes = []
            for at in range(0, len(numbers), 6):
                a, b, c, d = numbers[at + 2 : at + 6]
                box = (a, b, c, d) if self._columns == FOUR_CORNERS else (a, b, a + c, b + d)
                location = BoxLocation(int(numbers[at + 1]), ",".join(self._columns))
                labeled_boxes.append(
                    LabeledBox(names[int(numbers[at])], to_fractions(box, size), location)
                )
            yield build_row(
                self._source,
                name,
                labeled_boxes,
                file=self._path,
                line=image.line,
                frame=image.frame,
                unit="fraction" if is_fraction else "pixel",
                findings=image.findings,
                split=split,
            )

    def _add_line(
        self,
        cells: list[str],
        line: int,
        header: list[str],
        columns_at: dict[str, int],
        report: ReportFinding,
    ) -> None:
        def make_line_finding(
            code: str, field: str | None, cause: str, value: object = None
        ) -> Finding:
            return make_finding(
                code, file=self._path, line=line, field=field, cause=cause, value=value
            )

        if len(cells) <= columns_at["filename"] or not (
            name := cells[columns_at["filename"]].strip()
        ):
            report(
                make_line_finding(
                    "FieldMissing",
                    header[columns_at["filename"]],
                    "the line does not name an image",
                    ",".join(cells),
                )
            )
            return
        # An image in two splits becomes two rows, so that the conflict is noticed.
        key = name, _find_cell_split(cells, columns_at)
        image = self._images.setdefault(key, _ImageBoxes(line))
        if len(cells) != len(header):
            cause = f"the line has {len(cells)} cells, but the header has {len(header)}"
            image.findings.append(make_line_finding("RowInvalid", None, cause, ",".join(cells)))
            return
        numbers = []
        for column in self._columns:
            text = cells[columns_at[column]].strip()
            number = parse_number(text)
            if number is None:
                code, cause = (
                    ("FieldInvalid", "not a number")
                    if text
                    else ("FieldMissing", "the cell is empty")
                )
                image.findings.append(make_line_finding(code, column, cause, text or None))
                return
            numbers.append(number)
            self._has_fractions = self._has_fractions or "." in text or "e" in text
        image.frame = image.frame or self._parse_frame(cells, columns_at)
        finite = [abs(number) for number in numbers if math.isfinite(number)]
        self._max_number = max(self._max_number, *finite, 0.0)
        label = cells[columns_at["class"]].strip() if "class" in columns_at else "object"
        image.numbers.extend((self._classes.setdefault(label, len(self._classes)), line, *numbers))

    def _parse_frame(self, cells: list[str], columns_at: dict[str, int]) -> tuple[int, int] | None:
        """Return the image's size from its columns; only the four-corner form has them."""
        if self._columns != FOUR_CORNERS or "width" not in columns_at or "height" not in columns_at:
            return None
        width, height = (
            parse_number(cells[columns_at[name]].strip()) or 0 for name in ("width", "height")
        )
        return (int(width), int(height)) if 0 < width < math.inf and 0 < height < math.inf else None


def _parse_header(head: bytes) -> list[str]:
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode(errors="replace")
    return [name.strip().strip('"').lower() for name in first.strip().split(_guess_delimiter(head))]


def _guess_delimiter(head: bytes) -> str:
    first = head.split(b"\n", 1)[0].decode(errors="replace")
    return max(DELIMITERS, key=first.count)


def _find_cell_split(cells: list[str], columns_at: dict[str, int]) -> Split | None:
    column = columns_at.get("split", len(cells))
    return parse_split(cells[column]) if column < len(cells) else None


def _find_columns(header: list[str], columns: tuple[str, ...]) -> dict[str, int]:
    """Map each column to the index of its cell."""
    columns_at = {
        name: header.index(name) for name in (*columns, "width", "height") if name in header
    }
    columns_at["filename"] = next(header.index(name) for name in IMAGE_COLUMNS if name in header)
    if (
        label := next((header.index(name) for name in CLASS_COLUMNS if name in header), None)
    ) is not None:
        columns_at["class"] = label
    if (part := next((name for name in SPLIT_COLUMNS if name in header), None)) is not None:
        columns_at["split"] = header.index(part)
    return columns_at
