"""The CSV reader: one box per line, with the image's name, in several layouts.

    filename,xmin,ymin,xmax,ymax,class         four corners
    filename,x,y,width,height,class            upper left corner and size
    image_id,width,height,bbox,class           a box as a text: "[x, y, width, height]"
    ImageID,LabelName,XMin,XMax,YMin,YMax      Open Images, in fractions
    filename,region_shape_attributes,...       VGG Image Annotator
    a.jpg,4,2,12,6,tin                         RetinaNet, without a header

Columns are found by name, in any order and case; other columns are allowed. ``width`` and
``height`` are those of the image where they are not those of the box. Numbers are pixels, or
fractions if the boxes of the file show it (see ``frames``). Lines of one image may be anywhere, so
boxes are kept as plain numbers until the file has been read.
"""

import csv
import io
import json
import posixpath
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Literal

import msgspec

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import (
    LabeledBox,
    RowSpool,
    bound_points,
    build_row,
    parse_number,
    parse_size,
    to_number,
)
from runyard.datasets.readers.frames import (
    Form,
    Frame,
    FrameEvidence,
    Numbers,
    Unit,
    choose_frame,
)
from runyard.datasets.readers.lines import open_text, read_head, read_text
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source
from runyard.datasets.splits import COLUMNS as SPLIT_COLUMNS
from runyard.datasets.splits import Split, parse_split

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_NAMES_BYTES = 4 << 20

# Names of columns are compared in lower case, with underscores for blanks, hyphens and points.
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
    ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
)
SIZES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("x1", "y1", "w", "h"),
    ("x1", "y1", "width", "height"),
    ("xmin", "ymin", "w", "h"),
    ("xmin", "ymin", "width", "height"),
    ("x_min", "y_min", "width", "height"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
)
CENTERS = (
    ("x_center", "y_center", "width", "height"),
    ("xcenter", "ycenter", "width", "height"),
    ("center_x", "center_y", "width", "height"),
    ("cx", "cy", "w", "h"),
)
BOX_TEXTS = ("bbox", "box", "bounding_box")
VIA_SHAPE, VIA_ATTRIBUTES = "region_shape_attributes", "region_attributes"
IMAGE_SIZES = (("image_width", "image_height"), ("img_width", "img_height"), ("width", "height"))
IMAGE_COLUMNS = (
    "filename",
    "file_name",
    "file",
    "image",
    "image_path",
    "path",
    "image_name",
    "imagename",
    "image_file",
    "filepath",
    "file_path",
    "img",
    "img_name",
    "img_path",
    "image_id",
    "imageid",
    "img_id",
)
CLASS_COLUMNS = (
    "class",
    "label",
    "class_name",
    "classname",
    "label_name",
    "labelname",
    "category",
    "category_name",
    "name",
    "tag",
    "type",
    "phrase",
)
# Columns that often have numbers, which name nothing.
CLASS_ID_COLUMNS = ("class_id", "label_id", "category_id", "classid", "labelid")
# Columns of questions and captions, which may come with a box.
TEXT_COLUMNS = ("question", "answer", "caption", "text", "prompt", "conversations", "messages")
GROUP = "isgroupof"
NO_CLASS = ("", "nan", "none", "background", "no finding", "no_finding")
NO_NUMBER = ("", "nan", "none", "null")

_PART = struct.Struct("<iq4d")  # class, line, four numbers of a box


_Kind = Literal["numbers", "center", "text", "via"]


@dataclass(frozen=True)
class _Layout:
    """The columns of a file.

    ``box`` are the names of the columns with the numbers, or of the one with a text; the others are
    indexes. ``kind`` is how a box is written: four numbers, also with the center in place of the
    corner, a text with four numbers, or a shape of VGG Image Annotator.
    """

    header: Sequence[str]
    box: tuple[str, ...]
    image: int | None
    label: int | None
    form: Form
    kind: _Kind = "numbers"
    unit: Unit | None = None  # None: pixels or fractions
    size: tuple[int, int] | None = None
    group: int | None = None
    split: int | None = None
    has_header: bool = True

    @property
    def reader(self) -> str:
        return "CsvFourCorner" if self.form == "corners" else "CsvWidthHeight"


class _CsvReader:
    name: str
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        tables = [path for path in source.paths() if path.lower().endswith(ENDINGS)]
        files = [
            path
            for path in tables
            if (layout := _find_layout(source, path)) is not None and layout.reader == self.name
        ]
        return sorted([*files, *filter(_names_classes, tables)]) if files else []

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        names: dict[str, str] = {}
        for path in filter(_names_classes, files):
            names.update(_read_class_names(source, path, report))
        for path in files:
            if not _names_classes(path):
                with RowSpool() as spool:
                    yield from _CsvFile(source, path, names, spool, report).read_rows(options)


class CsvFourCornerReader(_CsvReader):
    """The reader of boxes as four corners; see ``base.Reader``."""

    name = "CsvFourCorner"


class CsvWidthHeightReader(_CsvReader):
    """The reader of boxes as a corner and a size; see ``base.Reader``."""

    name = "CsvWidthHeight"


# The layout of a file -----------------------------------------------------------------------------


def _find_layout(source: Source, path: str) -> _Layout | None:
    head = read_head(source, path)
    lines = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").splitlines()
    rows = csv.reader(lines, delimiter=_guess_delimiter(head), skipinitialspace=True)
    try:
        first = list(islice(rows, 20))
    except csv.Error:
        return None
    if len(first) > 1 and len(head) >= 1 << 16:
        first.pop()  # it may be cut off
    if not first:
        return None
    if layout := _parse_header(first[0]):
        return layout
    return _find_headless_layout([cells for cells in first if cells])


def _parse_header(cells: Sequence[str]) -> _Layout | None:
    """Return the layout that a header names; None without boxes, or without image and class."""
    header = [re.sub(r"[\s.-]+", "_", cell.strip().lstrip("#").lower()) for cell in cells]
    found = _find_box_columns(header)
    if found is None:
        return None
    box, form, kind = found
    image = _find_column(header, IMAGE_COLUMNS)
    label = _find_column(header, (*CLASS_COLUMNS, *CLASS_ID_COLUMNS))
    if kind == "via":
        label = _find_column(header, (VIA_ATTRIBUTES,))
    if label is None and (image is None or not set(header).isdisjoint(TEXT_COLUMNS)):
        return None
    pairs = (pair for pair in IMAGE_SIZES if not set(pair) & set(box) and set(pair) <= set(header))
    pair = next(pairs, None)
    return _Layout(
        header=header,
        box=box,
        image=image,
        label=label,
        form=form,
        kind=kind,
        unit="fraction" if {"imageid", "labelname", GROUP} <= set(header) else None,
        size=(header.index(pair[0]), header.index(pair[1])) if pair else None,
        group=_find_column(header, (GROUP,)),
        split=_find_column(header, SPLIT_COLUMNS),
    )


def _find_box_columns(
    header: Sequence[str],
) -> tuple[tuple[str, ...], Form, _Kind] | None:
    if VIA_SHAPE in header:
        return (VIA_SHAPE,), "size", "via"
    names = set(header)
    for columns in CORNERS:
        if names.issuperset(columns):
            return columns, "corners", "numbers"
    for columns in CENTERS:
        if names.issuperset(columns):
            return columns, "size", "center"
    for columns in SIZES:
        if names.issuperset(columns):
            return columns, "size", "numbers"
    text = next((name for name in BOX_TEXTS if name in names), None)
    return ((text,), "size", "text") if text else None


def _find_headless_layout(rows: list[list[str]]) -> _Layout | None:
    """Recognize ``path,x1,y1,x2,y2,class``, also with the image's width and height at the end.

    Return None unless every line is unmistakable.
    """
    if not rows or len({len(cells) for cells in rows}) != 1 or len(rows[0]) not in (6, 8):
        return None
    for cells in rows:
        box, rest = cells[1:5], cells[6:]
        is_box = all(parse_number(cell.strip()) is not None for cell in box)
        is_empty = not any(cell.strip() for cell in cells[1:6])
        if not cells[0].strip().lower().endswith(IMAGE_ENDINGS) or not (is_box or is_empty):
            return None
        if any(parse_number(cell.strip()) is None for cell in rest):
            return None
    if not any(cells[5].strip() for cells in rows):
        return None
    header = ["path", "x1", "y1", "x2", "y2", "class", "image_width", "image_height"]
    header = header[: len(rows[0])]
    size = (6, 7) if len(header) == 8 else None
    return _Layout(header, CORNERS[2], 0, 5, "corners", size=size, has_header=False)


def _find_column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _guess_delimiter(head: bytes) -> str:
    first = head.split(b"\n", 1)[0].decode(errors="replace")
    return max(DELIMITERS, key=first.count)


# Names of classes ---------------------------------------------------------------------------------


def _names_classes(path: str) -> bool:
    """Return whether this is Open Images' list of class names."""
    return "class-descriptions" in posixpath.basename(path).lower()


def _read_class_names(source: Source, path: str, report: ReportFinding) -> dict[str, str]:
    text = read_text(source, path, report, limit_bytes=MAX_NAMES_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(text or "", newline="")))
    except csv.Error:
        return {}
    return {cells[0].strip(): cells[1].strip() for cells in rows if len(cells) > 1 and cells[1]}


# Reading ------------------------------------------------------------------------------------------


class _CsvFile:
    """One CSV file being read."""

    def __init__(
        self,
        source: Source,
        path: str,
        names: Mapping[str, str],
        spool: RowSpool,
        report: ReportFinding,
    ) -> None:
        self._source, self._path, self._names = source, path, names
        self._spool, self._report = spool, report
        # An image in two splits becomes two rows, so that the conflict is noticed.
        self._images: dict[tuple[str, Split | None], int] = {}
        self._lines: list[int] = []
        self._frames: list[tuple[int, int] | None] = []
        self._classes: dict[str, int] = {}
        self._sizes: list[tuple[int, int]] = []
        self._crowds = self._empty_lines = 0
        self._evidence = FrameEvidence()
        self._has_fractions = self._has_names = False
        self._delimiter = _guess_delimiter(read_head(source, path))

    def read_rows(self, options: ReadOptions) -> Iterator[Row]:
        layout = _find_layout(self._source, self._path)
        if layout is None:
            cause = "no columns with the four numbers of a box were found"
            self._reject_file("FieldMissing", cause, line=1)
            return
        with open_text(self._source, self._path) as file:
            is_read = self._read_lines(file, layout)
        if not is_read or not self._check_columns(layout):
            return
        frame = self._choose_frame(layout, options)
        self._report_left_out()
        rows = len(self._images)
        other = self._evidence.find_other_frame(frame, options, file=self._path, rows=rows)
        if other is not None:
            self._report(other)
            return
        yield from self._build_rows(layout, frame)

    def _read_lines(self, file: BinaryIO, layout: _Layout) -> bool:
        """Read the lines; return False if the file cannot be read, which is reported."""
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, delimiter=self._delimiter, skipinitialspace=True)
        line = 1
        try:
            if layout.has_header:
                next(rows, None)
            line = rows.line_num + 1
            for cells in rows:
                if any(cells):
                    self._add_line(cells, line, layout)
                line = rows.line_num + 1
        except UnicodeDecodeError as error:
            cause = f"not UTF-8 at or soon after this line: {error.reason}"
            self._reject_file("EncodingWrong", cause, line=line)
            return False
        except csv.Error as error:
            self._reject_file("FileUnreadable", str(error), line=line)
            return False
        return True

    def _check_columns(self, layout: _Layout) -> bool:
        """Report missing columns, now that the number of images is known."""
        known = ", ".join(layout.header)[:200]
        if layout.image is None:
            cause = f"no column names the image; the columns are: {known}"
            fix = f"name the column with the image {IMAGE_COLUMNS[0]}"
            self._reject_file("FieldMissing", cause, line=1, fix=fix)
        elif layout.label is None:
            cause = f"no column names the class; the columns are: {known}"
            fix = f"add a column with the class, called {' or '.join(CLASS_COLUMNS[:4])}"
            self._reject_file("ClassUnknown", cause, line=1, fix=fix)
        elif self._needs_names(layout) and self._classes and not self._has_names:
            column = layout.header[layout.label]
            cause = f"the column {column!r} has only numbers, such as {next(iter(self._classes))}"
            fix = "add a column class with the names of the classes"
            self._reject_file("ClassUnknown", cause, line=1, fix=fix)
        else:
            return True
        return False

    def _needs_names(self, layout: _Layout) -> bool:
        label = layout.header[layout.label or 0]
        return not layout.has_header or label in CLASS_ID_COLUMNS

    def _choose_frame(self, layout: _Layout, options: ReadOptions) -> Frame:
        is_fraction = self._has_fractions and self._evidence.is_mostly_fractions
        unit: Unit = layout.unit or ("fraction" if is_fraction else "pixel")
        return choose_frame(options, unit, layout.form)

    def _build_rows(self, layout: _Layout, frame: Frame) -> Iterator[Row]:
        names = list(self._classes)
        for (name, split), row in self._images.items():
            labeled_boxes, findings = [], []
            width, height = self._sizes[row]
            for part in self._spool.read(row):
                if len(part) != _PART.size:
                    findings.append(msgspec.json.decode(part[1:], type=Finding))
                    continue
                label, line, *numbers = _PART.unpack(part)
                box = frame.to_fractions(numbers, (width or 1, height or 1))
                location = BoxLocation(line, ",".join(layout.box))
                labeled_boxes.append(LabeledBox(names[label], box, location))
            if labeled_boxes or findings:
                yield build_row(
                    self._source,
                    name,
                    labeled_boxes,
                    file=self._path,
                    line=self._lines[row],
                    frame=self._frames[row],
                    unit=frame.row_unit,
                    is_unit_chosen=True,
                    findings=findings,
                    split=split,
                )

    def _add_line(self, cells: list[str], line: int, layout: _Layout) -> None:
        if layout.image is None:
            return
        name = cells[layout.image].strip() if len(cells) > layout.image else ""
        if not name:
            field, cause = layout.header[layout.image], "the line does not name an image"
            value = self._delimiter.join(cells)
            self._report(self._make_finding("FieldMissing", line, field, cause, value))
            return
        is_whole = len(cells) == len(layout.header)
        split = None
        if layout.split is not None and layout.split < len(cells):
            split = parse_split(cells[layout.split])
        row = self._images.setdefault((name, split), len(self._images))
        if row == len(self._lines):
            claimed = None
            if layout.size is not None and is_whole:
                claimed = parse_size(*(cells[index] for index in layout.size))
            self._lines.append(line)
            self._frames.append(claimed)
            self._sizes.append(self._find_size(name, claimed))
        found: Finding | None = None
        if not is_whole:
            cause = f"the line has {len(cells)} cells, but the header has {len(layout.header)}"
            value = self._delimiter.join(cells)
            found = self._make_finding("RowInvalid", line, None, cause, value)
        elif layout.group is not None and cells[layout.group].strip() == "1":
            self._crowds += 1
        else:
            found = self._add_box(cells, line, row, layout)
        if found is not None:
            self._spool.add(row, b"!" + msgspec.json.encode(found))

    def _find_size(self, name: str, claimed: tuple[int, int] | None) -> tuple[int, int]:
        """Return the size to divide pixels by; zeros if the image is missing."""
        if claimed is None and (facts := self._source.find_image(name, relative_to=self._path)):
            return facts.width, facts.height
        return claimed or (0, 0)

    def _add_box(self, cells: list[str], line: int, row: int, layout: _Layout) -> Finding | None:
        """Add the box of a line; return the finding about it if it cannot be read."""
        label = "" if layout.label is None else cells[layout.label].strip()
        texts: list[str] | Finding
        columns = layout.box
        if layout.kind in ("numbers", "center"):
            texts = [cells[layout.header.index(column)].strip() for column in columns]
        elif layout.kind == "text":
            columns *= 4
            texts = self._split_box(cells[layout.header.index(columns[0])], line, columns[0])
        else:
            columns *= 4
            texts = self._parse_shape(cells[layout.header.index(VIA_SHAPE)], line)
            label = _find_via_label(label)
        if isinstance(texts, Finding):
            return texts
        if all(text.lower() in NO_NUMBER for text in texts) and label.lower() in NO_CLASS:
            self._empty_lines += 1
            return None
        numbers: list[float] = []
        for column, text in zip(columns, texts, strict=True):
            number = self._parse_number(text)
            if number is None:
                code, cause = (
                    ("FieldInvalid", "not a number")
                    if text
                    else ("FieldMissing", "the cell is empty")
                )
                return self._make_finding(code, line, column, cause, text or None)
            numbers.append(number)
        a, b, c, d = numbers
        if layout.kind == "center":
            a, b = a - c / 2, b - d / 2
        self._add_numbers((a, b, c, d), label, line, row)
        return None

    def _add_numbers(self, numbers: Numbers, label: str, line: int, row: int) -> None:
        label = self._names.get(label, label)
        self._has_names = self._has_names or not label.isdecimal()
        self._has_fractions = self._has_fractions or any(number % 1 for number in numbers)
        index = self._classes.setdefault(label, len(self._classes))
        self._spool.add(row, _PART.pack(index, line, *numbers))
        self._evidence.add(numbers, self._sizes[row])

    def _split_box(self, text: str, line: int, column: str) -> list[str] | Finding:
        """Split a box such as ``[4, 2, 8, 4]`` into its numbers."""
        words = text.strip().strip("[](){}").replace(",", " ").replace(";", " ").split()
        if not words or text.strip().lower() in NO_NUMBER:
            return [""] * 4
        if len(words) != 4:
            cause = f"it has {len(words)} numbers; a box has 4: x, y, width, height"
            return self._make_finding("FieldInvalid", line, column, cause, text)
        return words

    def _parse_number(self, text: str) -> float | None:
        if self._delimiter != "," and re.fullmatch(r"-?(?:0|\d+),\d+", text):
            is_ambiguous = re.fullmatch(r"-?[1-9]\d*,\d{3}", text) is not None
            return None if is_ambiguous else parse_number(text.replace(",", "."))
        return parse_number(text)

    def _parse_shape(self, text: str, line: int) -> list[str] | Finding:
        """Return the numbers of VIA's shape: x, y, width, height."""
        try:
            shape = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            shape = None
        if shape == {}:
            return [""] * 4
        bounds = _bound_shape(shape) if isinstance(shape, dict) else None
        if bounds is None:
            cause = "it is not a rectangle, polygon, circle or ellipse"
            return self._make_finding("FieldInvalid", line, VIA_SHAPE, cause, text)
        return [repr(number) for number in bounds]

    def _report_left_out(self) -> None:
        if self._crowds:
            cause = f"{self._crowds} boxes show a group of objects (IsGroupOf) and are left out"
            self._report(
                make_finding(
                    "BoxCrowd", file=self._path, cause=cause, value=self._crowds, action="Mended"
                )
            )
        if self._empty_lines:
            cause = f"{self._empty_lines} lines name an image without a box; they give no row"
            self._report(
                make_finding(
                    "AnnotationsAbsent", file=self._path, cause=cause, value=self._empty_lines
                )
            )

    def _make_finding(
        self, code: str, line: int, field: str | None, cause: str, value: object = None
    ) -> Finding:
        return make_finding(code, file=self._path, line=line, field=field, cause=cause, value=value)

    def _reject_file(self, code: str, cause: str, *, line: int, fix: str | None = None) -> None:
        self._report(
            make_finding(
                code,
                file=self._path,
                line=line,
                cause=cause,
                fix=fix,
                action="FileRejected",
                rows=len(self._images) or None,
            )
        )


# Shapes of VGG Image Annotator --------------------------------------------------------------------


def _bound_shape(shape: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """Return the bounding box of a shape as x, y, width, height; None for other shapes."""

    def read(*keys: str) -> list[float]:
        numbers = [to_number(shape.get(key)) for key in keys]
        return [number for number in numbers if number is not None]

    if len(box := read("x", "y", "width", "height")) == 4:
        return box[0], box[1], box[2], box[3]
    if len(circle := read("cx", "cy", "r")) == 3:
        x, y, radius = circle
        return x - radius, y - radius, 2 * radius, 2 * radius
    if len(ellipse := read("cx", "cy", "rx", "ry")) == 4:
        x, y, rx, ry = ellipse
        return x - rx, y - ry, 2 * rx, 2 * ry
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    return bound_points(xs, ys) if isinstance(xs, list) and isinstance(ys, list) else None


def _find_via_label(text: str) -> str:
    """Return the class from a region's attributes; an empty text if there is none, or several."""
    try:
        attributes = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return ""
    if not isinstance(attributes, dict):
        return ""
    by_name = {str(key).strip().lower(): value for key, value in attributes.items()}
    named = next((by_name[name] for name in CLASS_COLUMNS if by_name.get(name)), None)
    if named is None and len(by_name) == 1:
        named = next(iter(by_name.values()))
    if isinstance(named, dict):  # a checkbox
        chosen = [str(key) for key, is_set in named.items() if is_set]
        named = chosen[0] if len(chosen) == 1 else None
    return named.strip() if isinstance(named, str) else ""
