"""CSV in: one box a line, with the picture's name, in two forms.

    filename,xmin,ymin,xmax,ymax,class         four corners
    filename,x,y,width,height,class            upper left corner and size

Columns are found by name, in any order and case; more columns may be there. With four corners, ``width`` and ``height``
are those of the picture. Numbers are pixels, or shares if no number of the file is larger than 1 and one has a point.
Lines of one picture may stand anywhere, so boxes are kept as plain numbers until the file has been read.
"""

import csv
import io
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from runyard.datasets.findings import Finding, Say, finding
from runyard.datasets.readers import Row, Spot
from runyard.datasets.readers.boxes import Labelled, as_share, number_of, row_of, size_of
from runyard.datasets.readers.lines import head_of
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"
FOUR_CORNERS = ("xmin", "ymin", "xmax", "ymax")
CORNER_AND_SIZE = ("x", "y", "width", "height")
PICTURE = ("filename", "file_name", "file", "image", "image_path", "path")
CLASS = ("class", "label", "class_name", "label_name", "category", "name")


class _Csv:
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def __init__(self, name: str, columns: tuple[str, ...]) -> None:
        self.name = name
        self._columns = columns

    def claims(self, source: Source) -> list[str]:
        return [
            path
            for path in source.paths()
            if path.lower().endswith(ENDINGS) and self._is_ours(_header(head_of(source, path)))
        ]

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        for path in files:
            boxes = _Boxes(source, path, self._columns)
            with source.open(path) as file:
                boxes.read(file, say)
            yield from boxes.rows()

    def _is_ours(self, header: list[str]) -> bool:
        if self._columns == CORNER_AND_SIZE and set(FOUR_CORNERS) <= set(header):
            return False
        return set(self._columns) <= set(header) and any(name in header for name in PICTURE)


class CsvFourCorner(_Csv):
    """``filename,xmin,ymin,xmax,ymax,class``; see ``readers.Reader``."""

    def __init__(self) -> None:
        super().__init__("CsvFourCorner", FOUR_CORNERS)


class CsvWidthHeight(_Csv):
    """``filename,x,y,width,height,class``; see ``readers.Reader``."""

    def __init__(self) -> None:
        super().__init__("CsvWidthHeight", CORNER_AND_SIZE)


@dataclass
class _Picture:
    """What the lines of one picture say: class, line and four numbers a box."""

    line: int
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    defects: list[Finding] = field(default_factory=list)
    frame: tuple[int, int] | None = None


class _Boxes:
    """The boxes of one file."""

    def __init__(self, source: Source, path: str, columns: tuple[str, ...]) -> None:
        self._source, self._path, self._columns = source, path, columns
        self._pictures: dict[str, _Picture] = {}
        self._classes: dict[str, int] = {}
        self._most, self._is_broken = 0.0, False

    def read(self, file: BinaryIO, say: Say) -> None:
        """Read the lines; what cannot be read is told, or kept beside the picture that it is about."""
        delimiter = _delimiter(head_of(self._source, self._path))
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, delimiter=delimiter, skipinitialspace=True)
        line = 1
        try:
            header = [name.strip().lower() for name in next(rows, [])]
            if not set(header) >= set(self._columns) or set(header).isdisjoint(PICTURE):
                # The first KiB looked like it, but quotes or line ends make another head of it.
                cause = f"the first line names {', '.join(header)[:80] or 'no columns'}"
                say(finding("FieldMissing", file=self._path, line=1, cause=cause, action="FileRejected"))
                return
            places = _places(header, self._columns)
            line = rows.line_num + 1
            for cells in rows:
                if cells:
                    self._take(cells, line, header, places, say)
                line = rows.line_num + 1
        except UnicodeDecodeError as error:
            cause = f"it is not UTF-8: {error.reason}, at this line or soon after"
            say(finding("EncodingWrong", file=self._path, line=line, cause=cause, action="FileRejected"))
            self._pictures.clear()
        except csv.Error as error:
            say(finding("FileUnreadable", file=self._path, line=line, cause=str(error), action="FileRejected"))
            self._pictures.clear()

    def rows(self) -> Iterator[Row]:
        is_share = self._most <= 1.0 and self._is_broken
        names = list(self._classes)
        for name, picture in self._pictures.items():
            size = (1, 1) if is_share else size_of(self._source, name, self._path, picture.frame)
            numbers = picture.numbers
            labelled = []
            for at in range(0, len(numbers), 6):
                a, b, c, d = numbers[at + 2 : at + 6]
                box = (a, b, c, d) if self._columns == FOUR_CORNERS else (a, b, a + c, b + d)
                spot = Spot(int(numbers[at + 1]), ",".join(self._columns))
                labelled.append(Labelled(names[int(numbers[at])], as_share(box, size), spot))
            yield row_of(
                self._source,
                name,
                labelled,
                file=self._path,
                line=picture.line,
                frame=picture.frame,
                unit="share" if is_share else "pixel",
                defects=picture.defects,
            )

    def _take(self, cells: list[str], line: int, header: list[str], places: dict[str, int], say: Say) -> None:
        def wrong(code: str, field: str | None, cause: str, value: object = None) -> Finding:
            return finding(code, file=self._path, line=line, field=field, cause=cause, value=value)

        if len(cells) <= places["filename"] or not (name := cells[places["filename"]].strip()):
            say(wrong("FieldMissing", header[places["filename"]], "the line names no picture", ",".join(cells)))
            return
        picture = self._pictures.setdefault(name, _Picture(line))
        if len(cells) != len(header):
            cause = f"the line has {len(cells)} cells, and the header {len(header)}"
            picture.defects.append(wrong("RowInvalid", None, cause, ",".join(cells)))
            return
        numbers = []
        for column in self._columns:
            text = cells[places[column]].strip()
            number = number_of(text)
            if number is None:
                code, cause = ("FieldInvalid", "it is no number") if text else ("FieldMissing", "the cell is empty")
                picture.defects.append(wrong(code, column, cause, text or None))
                return
            numbers.append(number)
            self._is_broken = self._is_broken or "." in text or "e" in text
        picture.frame = picture.frame or self._frame(cells, places)
        finite = [abs(number) for number in numbers if math.isfinite(number)]
        self._most = max(self._most, *finite, 0.0)
        label = cells[places["class"]].strip() if "class" in places else "object"
        picture.numbers.extend((self._classes.setdefault(label, len(self._classes)), line, *numbers))

    def _frame(self, cells: list[str], places: dict[str, int]) -> tuple[int, int] | None:
        """The picture's size, where four corners stand beside it."""
        if self._columns != FOUR_CORNERS or "width" not in places or "height" not in places:
            return None
        width, height = (number_of(cells[places[name]].strip()) or 0 for name in ("width", "height"))
        return (int(width), int(height)) if 0 < width < math.inf and 0 < height < math.inf else None


def _header(head: bytes) -> list[str]:
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode(errors="replace")
    return [name.strip().strip('"').lower() for name in first.strip().split(_delimiter(head))]


def _delimiter(head: bytes) -> str:
    first = head.split(b"\n", 1)[0].decode(errors="replace")
    return max(DELIMITERS, key=first.count)


def _places(header: list[str], columns: tuple[str, ...]) -> dict[str, int]:
    """Which cell holds which column."""
    places = {name: header.index(name) for name in (*columns, "width", "height") if name in header}
    places["filename"] = next(header.index(name) for name in PICTURE if name in header)
    if (label := next((header.index(name) for name in CLASS if name in header), None)) is not None:
        places["class"] = label
    return places
