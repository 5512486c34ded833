"""Pascal VOC XML in: one file a picture, names and boxes in pixels, taken as counted from 0.

XML is parsed by expat with everything refused that could reach outside of the file or grow: a document type, and with
it every entity of its own.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from runyard.datasets.findings import Finding, Say, finding
from runyard.datasets.readers import Row, Spot
from runyard.datasets.readers.boxes import Labelled, as_share, number_of, row_of, size_of
from runyard.datasets.readers.lines import head_of
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

LARGEST_BYTES = 4 << 20
DEEPEST = 32
LISTS = "ImageSets/"  # folder of lists of pictures by split, which say nothing of what is in them
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class PascalVoc:
    """One XML file a picture; see ``readers.Reader``."""

    name = "PascalVoc"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def claims(self, source: Source) -> list[str]:
        annotations = [
            path for path in source.paths() if path.lower().endswith(".xml") and b"<annotation" in head_of(source, path)
        ]
        lists = [path for path in source.paths() if _is_list(path)]
        return sorted([*annotations, *lists]) if annotations else []

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        for path in (path for path in files if not _is_list(path)):
            if source.size_bytes(path) > LARGEST_BYTES:
                cause = f"it has {source.size_bytes(path):,} bytes; {LARGEST_BYTES:,} are the most for one picture"
                say(finding("FileUnreadable", file=path, cause=cause, action="FileRejected"))
                continue
            with source.open(path) as file:
                data = file.read()
            try:
                tree = parsed(data)
            except expat.ExpatError as error:
                cause = f"it is no XML: {expat.ErrorString(error.code)}"
                say(finding("FileUnreadable", file=path, line=error.lineno, cause=cause, action="FileRejected"))
            except (XmlRefused, ValueError, LookupError) as error:  # what it says of its encoding raises the latter
                say(finding("FileUnreadable", file=path, cause=str(error), action="FileRejected"))
            else:
                row = _row(source, path, tree, say)
                if row is not None:
                    yield row


class XmlRefused(Exception):
    """The file has something that no annotation needs."""


@dataclass
class Element:
    """One element: its name, line, text and children."""

    name: str
    line: int
    text: str = ""
    children: "list[Element]" = field(default_factory=list)

    def child(self, name: str) -> "Element | None":
        return next((child for child in self.children if child.name == name), None)

    def text_of(self, name: str) -> str:
        """The text of a child, without blanks round it; empty when there is none."""
        child = self.child(name)
        return "" if child is None else child.text.strip()


def parsed(data: bytes) -> Element:
    """The document's root. Raises expat.ExpatError, XmlRefused."""
    parser = expat.ParserCreate()
    root = Element("", 0)
    stack = [root]

    def start(name: str, _: Any) -> None:
        if len(stack) > DEEPEST:
            raise XmlRefused(f"it is nested deeper than {DEEPEST} elements")
        element = Element(name, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def refuse(*_: Any) -> None:
        raise XmlRefused("it declares a document type, which annotations do not need and which may do harm")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    parser.Parse(data, True)
    return root.children[0]


def _row(source: Source, path: str, root: Element, say: Say) -> Row | None:
    if root.name != "annotation":
        say(finding("FileUnreadable", file=path, line=root.line, cause=f"its root is <{root.name}>, not <annotation>"))
        return None
    name = _picture_of(source, path, root)
    frame = _frame(root)
    size = size_of(source, name, path, frame)
    labelled, defects = [], []
    for number, element in enumerate(child for child in root.children if child.name == "object"):
        found = _labelled(path, number, element)
        if isinstance(found, Finding):
            defects.append(found)
        else:
            labelled.append(found._replace(box=as_share(found.box, size)))
    if not labelled and not defects:
        return None
    return row_of(source, name, labelled, file=path, line=root.line, frame=frame, unit="pixel", defects=defects)


def _picture_of(source: Source, path: str, root: Element) -> str:
    """The picture's name: what the file says, else the picture of the same stem."""
    said = root.text_of("filename")
    stem = posixpath.splitext(posixpath.basename(path))[0]
    candidates = [said, *(f"{stem}{ending}" for ending in (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".bmp"))]
    found = (name for name in candidates if name and source.image(name, beside=path) is not None)
    return next(found, said or f"{stem}.jpg")


def _frame(root: Element) -> tuple[int, int] | None:
    size = root.child("size")
    if size is None:
        return None
    try:
        width, height = int(float(size.text_of("width"))), int(float(size.text_of("height")))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None  # some tools write zeros where they do not know


def _labelled(path: str, number: int, element: Element) -> Labelled | Finding:
    where = f"object[{number}]"
    box = element.child("bndbox")
    if box is None:
        cause = "the object has no 'bndbox'"
        return finding("FieldMissing", file=path, line=element.line, field=f"{where}.bndbox", cause=cause)
    corners = []
    for name in CORNERS:
        text = box.text_of(name)
        if not text:
            cause = f"the box has no {name!r}"
            return finding("FieldMissing", file=path, line=box.line, field=f"{where}.bndbox.{name}", cause=cause)
        corner = number_of(text)
        if corner is None:
            field, cause = f"{where}.bndbox.{name}", "it is no number"
            return finding("FieldInvalid", file=path, line=box.line, field=field, cause=cause, value=text)
        corners.append(corner)
    xmin, ymin, xmax, ymax = corners
    return Labelled(element.text_of("name"), (xmin, ymin, xmax, ymax), Spot(box.line, f"{where}.bndbox"))


def _is_list(path: str) -> bool:
    return path.endswith(".txt") and LISTS in path
