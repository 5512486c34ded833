"""The Pascal VOC XML reader: one file per image, with names and boxes in pixels counted from 0.

expat parses the XML. A document type, and so every custom entity, is rejected: it could reach
outside the file or expand without bound.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
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

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
LISTS = "ImageSets/"  # folder of image lists by split, which contain no annotations
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class PascalVocReader:
    """The reader of one XML file per image; see ``base.Reader``."""

    name = "PascalVoc"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        annotations = [
            path
            for path in source.paths()
            if path.lower().endswith(".xml") and b"<annotation" in read_head(source, path)
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
            if source.size_bytes(path) > MAX_BYTES:
                cause = (
                    f"it has {source.size_bytes(path):,} bytes; the limit for one image is "
                    f"{MAX_BYTES:,}"
                )
                report(
                    make_finding("FileUnreadable", file=path, cause=cause, action="FileRejected")
                )
                continue
            with source.open(path) as file:
                data = file.read()
            try:
                tree = parse_xml(data)
            except expat.ExpatError as error:
                cause = f"not valid XML: {expat.ErrorString(error.code)}"
                report(
                    make_finding(
                        "FileUnreadable",
                        file=path,
                        line=error.lineno,
                        cause=cause,
                        action="FileRejected",
                    )
                )
            except (
                XmlRejected,
                ValueError,
                LookupError,
            ) as error:  # an unknown encoding raises LookupError
                report(
                    make_finding(
                        "FileUnreadable", file=path, cause=str(error), action="FileRejected"
                    )
                )
            else:
                row = _build_row(source, path, tree, report)
                if row is not None:
                    yield row


class XmlRejected(Exception):
    """The file uses an XML feature that is not allowed."""


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


def parse_xml(data: bytes) -> Element:
    """Parse a document and return its root.

    Raises expat.ExpatError, XmlRejected.
    """
    parser = expat.ParserCreate()
    root = Element("", 0)
    stack = [root]

    def start(name: str, _: Any) -> None:
        if len(stack) > MAX_DEPTH:
            raise XmlRejected(f"it is nested deeper than {MAX_DEPTH} elements")
        element = Element(name, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def refuse(*_: Any) -> None:
        raise XmlRejected("document type declarations are not allowed")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    parser.Parse(data, True)
    return root.children[0]


def _build_row(source: Source, path: str, root: Element, report: ReportFinding) -> Row | None:
    if root.name != "annotation":
        report(
            make_finding(
                "FileUnreadable",
                file=path,
                line=root.line,
                cause=f"its root is <{root.name}>, not <annotation>",
            )
        )
        return None
    name = _find_image_name(source, path, root)
    frame = _parse_frame(root)
    size = find_image_size(source, name, path, frame)
    labeled_boxes, findings = [], []
    for number, element in enumerate(child for child in root.children if child.name == "object"):
        found = _parse_box(path, number, element)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            labeled_boxes.append(found._replace(box=to_fractions(found.box, size)))
    if not labeled_boxes and not findings:
        return None
    return build_row(
        source,
        name,
        labeled_boxes,
        file=path,
        line=root.line,
        frame=frame,
        unit="pixel",
        findings=findings,
    )


def _find_image_name(source: Source, path: str, root: Element) -> str:
    """Return the image's name: the one in the file, else the image with the same stem."""
    named = root.child_text("filename")
    stem = posixpath.splitext(posixpath.basename(path))[0]
    candidates = [
        named,
        *(f"{stem}{ending}" for ending in (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".bmp")),
    ]
    found = (
        name
        for name in candidates
        if name and source.find_image(name, relative_to=path) is not None
    )
    return next(found, named or f"{stem}.jpg")


def _parse_frame(root: Element) -> tuple[int, int] | None:
    size = root.child("size")
    if size is None:
        return None
    try:
        width, height = int(float(size.child_text("width"))), int(float(size.child_text("height")))
    except (ValueError, OverflowError):
        return None
    # Some tools write zeros for an unknown size.
    return (width, height) if width > 0 and height > 0 else None


def _parse_box(path: str, number: int, element: Element) -> LabeledBox | Finding:
    where = f"object[{number}]"
    box = element.child("bndbox")
    if box is None:
        cause = "the object has no 'bndbox'"
        return make_finding(
            "FieldMissing", file=path, line=element.line, field=f"{where}.bndbox", cause=cause
        )
    corners = []
    for name in CORNERS:
        text = box.child_text(name)
        if not text:
            cause = f"the box has no {name!r}"
            return make_finding(
                "FieldMissing",
                file=path,
                line=box.line,
                field=f"{where}.bndbox.{name}",
                cause=cause,
            )
        corner = parse_number(text)
        if corner is None:
            field, cause = f"{where}.bndbox.{name}", "not a number"
            return make_finding(
                "FieldInvalid", file=path, line=box.line, field=field, cause=cause, value=text
            )
        corners.append(corner)
    xmin, ymin, xmax, ymax = corners
    return LabeledBox(
        element.child_text("name"),
        (xmin, ymin, xmax, ymax),
        BoxLocation(box.line, f"{where}.bndbox"),
    )


def _is_list(path: str) -> bool:
    return path.endswith(".txt") and LISTS in path
