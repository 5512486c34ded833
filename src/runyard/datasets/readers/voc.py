"""The Pascal VOC XML reader: one file per image, with names and boxes in pixels counted from 0."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_number, parse_size
from runyard.datasets.readers.tools.geometry import (
    bound_polygon,
    find_center,
    rotate_rectangle,
)
from runyard.datasets.readers.tools.own_images import find_own_image
from runyard.datasets.readers.tools.shapes import ImageShapes
from runyard.datasets.readers.tools.xml_files import (
    XmlRejected,
    parse_stream,
    read_xml_root,
    report_xml,
)
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

MAX_BYTES = 4 << 20
LISTS = "ImageSets/"  # folder of image lists by split, which contain no annotations
CORNERS = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h", "angle")


class PascalVocReader:
    """The reader of one XML file per image; see ``base.Reader``."""

    name = "PascalVoc"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        annotations = [
            path for path in source.paths() if read_xml_root(source, path) == "annotation"
        ]
        lists = [path for path in source.paths() if _is_list(path)]
        return sorted([*annotations, *lists]) if annotations else []

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        for path in (path for path in files if not _is_list(path)):
            size_bytes = source.size_bytes(path)
            if size_bytes > MAX_BYTES:
                cause = f"it has {size_bytes:,} bytes; the limit for one image is {MAX_BYTES:,}"
                report(
                    make_finding("FileUnreadable", file=path, cause=cause, action="FileRejected")
                )
                continue
            try:
                with source.open(path) as file:
                    root = parse_xml(file)
            except XmlRejected as error:
                report_xml(error, path, report)
                continue
            if row := _build_row(source, path, root, report):
                yield row


@dataclass
class Element:
    """One XML element: its name, line, text and children."""

    name: str
    line: int
    text: str = ""
    children: "list[Element]" = field(default_factory=list)

    def child(self, name: str) -> "Element | None":
        return next((child for child in self.children if child.name == name), None)

    def child_text(self, name: str) -> str:
        """Return the text of a child, stripped; empty if there is no such child."""
        child = self.child(name)
        return "" if child is None else child.text.strip()


class _TreeBuilder:
    """Builds the elements of a small document."""

    def __init__(self) -> None:
        self.root = Element("", 0)
        self._stack = [self.root]

    def start_element(self, name: str, attributes: Mapping[str, str], line: int) -> None:
        element = Element(name, line)
        self._stack[-1].children.append(element)
        self._stack.append(element)

    def end_element(self, name: str) -> None:
        self._stack.pop()

    def add_text(self, text: str) -> None:
        self._stack[-1].text += text


def parse_xml(file: BinaryIO) -> Element:
    """Parse a document and return its root.

    Raises XmlRejected.
    """
    builder = _TreeBuilder()
    for _ in parse_stream(file, builder):
        pass
    return builder.root.children[0]


def _build_row(source: Source, path: str, root: Element, report: ReportFinding) -> Row | None:
    if root.name != "annotation":
        cause = f"its root is <{root.name}>, not <annotation>"
        report(make_finding("FileUnreadable", file=path, line=root.line, cause=cause))
        return None
    shapes = ImageShapes(path)
    for number, element in enumerate(child for child in root.children if child.name == "object"):
        _add_object(shapes, f"object[{number}]", element)
    named = root.child("filename")
    image = find_own_image(
        source,
        path,
        root.child_text("filename") or root.child_text("path"),
        line=named.line if named else root.line,
        field="filename",
    )
    if image.finding:
        shapes.findings.append(image.finding)
    size = root.child("size") or Element("", 0)
    return shapes.build_row(
        source,
        image.name,
        line=root.line,
        # Some tools write zeros for an unknown size.
        frame=parse_size(size.child_text("width"), size.child_text("height")),
        is_name_certain=image.finding is None,
    )


def _add_object(shapes: ImageShapes, where: str, element: Element) -> None:
    """Add the box of an object: its ``bndbox``, or the bounding box of another shape."""
    name = element.child_text("name")
    if (outline := element.child("bndbox")) is not None:
        box = _parse_corners(shapes, f"{where}.bndbox", outline)
    elif (outline := element.child("robndbox")) is not None:
        box = _parse_rotated(shapes, f"{where}.robndbox", outline)
    elif (outline := element.child("polygon")) is not None:
        box = _parse_polygon(shapes, f"{where}.polygon", outline)
    else:
        field, cause = f"{where}.bndbox", "the object has no 'bndbox'"
        shapes.reject("FieldMissing", cause, line=element.line, field=field)
        return
    if box is not None:
        shapes.add(name, box, line=outline.line, field=f"{where}.{outline.name}", what="a box")


def _parse_corners(shapes: ImageShapes, where: str, element: Element) -> Box | None:
    numbers = _parse_numbers(shapes, where, element, CORNERS)
    return None if numbers is None else (numbers[0], numbers[1], numbers[2], numbers[3])


def _parse_rotated(shapes: ImageShapes, where: str, element: Element) -> Box | None:
    """Return the bounding box of a rectangle that is rotated around its center, in radians."""
    numbers = _parse_numbers(shapes, where, element, ROTATED)
    if numbers is None:
        return None
    x, y, width, height, radians = numbers
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return rotate_rectangle(box, radians, find_center(box))


def _parse_polygon(shapes: ImageShapes, where: str, element: Element) -> Box | None:
    """Return the bounding box of x1, y1, x2, y2, ... or of ``pt`` elements with x and y."""
    points = [child for child in element.children if child.name == "pt"]
    texts = [(point.child_text("x"), point.child_text("y")) for point in points]
    while text := element.child_text(f"x{len(texts) + 1}"):
        texts.append((text, element.child_text(f"y{len(texts) + 1}")))
    numbers = [(parse_number(x), parse_number(y)) for x, y in texts]
    box = bound_polygon([(x, y) for x, y in numbers if x is not None and y is not None])
    if box is None or any(None in pair for pair in numbers):
        cause = "the polygon needs at least three points with numbers"
        shapes.reject("FieldInvalid", cause, line=element.line, field=where)
        return None
    return box


def _parse_numbers(
    shapes: ImageShapes, where: str, element: Element, names: tuple[str, ...]
) -> list[float] | None:
    """Return the numbers of these children; report the first that is missing or none."""
    numbers = []
    for name in names:
        text = element.child_text(name)
        number = parse_number(text)
        if number is None:
            code = "FieldInvalid" if text else "FieldMissing"
            cause = "not a number" if text else f"the box has no {name!r}"
            shapes.reject(
                code, cause, line=element.line, field=f"{where}.{name}", value=text or None
            )
            return None
        numbers.append(number)
    return numbers


def _is_list(path: str) -> bool:
    return path.endswith(".txt") and LISTS in path
