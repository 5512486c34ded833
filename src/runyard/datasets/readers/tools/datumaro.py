"""The Datumaro JSON reader: a file for each subset, with class names, and items with annotations.

A file is streamed. It is read from the start once more if its items precede its categories.
"""

import math
import posixpath
from collections.abc import Iterator
from typing import Any

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_size, to_number
from runyard.datasets.readers.json_stream import MalformedJson, iter_members
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.tools.geometry import (
    bound_points,
    bound_polygon,
    find_center,
    pair_numbers,
    rotate_rectangle,
    to_numbers,
)
from runyard.datasets.readers.tools.json_files import has_keys, report_malformed
from runyard.datasets.readers.tools.shapes import IgnoredAnnotations, ImageShapes, choose_name
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

STREAMED = ("items",)
NEEDS = {
    "bbox": "a 'bbox' of x, y, width and height",
    "polygon": "'points' of at least three pairs",
    "ellipse": "'points' of two corners",
}


class DatumaroReader:
    """The reader of Datumaro's JSON; see ``base.Reader``."""

    name = "Datumaro"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_datumaro(sniff_json(source, path))]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        ignored = IgnoredAnnotations()
        for path in files:
            try:
                yield from _DatumaroFile(source, path, report, ignored).read_rows()
            except MalformedJson as error:
                report_malformed(error, path, report)
        ignored.report(report)


def _is_datumaro(form: JsonForm | None) -> bool:
    if form is None or form.is_array or "items" not in form.keys:
        return False
    return "categories" in form.keys or has_keys(form.first.get("items"), "id", "annotations")


class _DatumaroFile:
    """One file being read."""

    def __init__(
        self, source: Source, path: str, report: ReportFinding, ignored: IgnoredAnnotations
    ) -> None:
        self._source, self._path = source, path
        self._report, self._ignored = report, ignored
        self._subset = posixpath.splitext(posixpath.basename(path))[0]
        self._names: list[Any] = []

    def read_rows(self) -> Iterator[Row]:
        self._names = self._read_names()
        with open_text(self._source, self._path) as file:
            for key, number, item in iter_members(file, STREAMED):
                if key == "items" and number is None:
                    cause = "it must be a list of items"
                    found = make_finding(
                        "FieldInvalid",
                        file=self._path,
                        field=key,
                        cause=cause,
                        action="FileRejected",
                    )
                    self._report(found)
                elif key == "items":
                    row = self._build_row(f"items[{number}]", item)
                    if row is not None:
                        yield row

    def _read_names(self) -> list[Any]:
        """Return the name of each class by its number, unchecked."""
        with open_text(self._source, self._path) as file:
            for key, _, value in iter_members(file, STREAMED):
                if key == "categories":
                    labels = value.get("label") if isinstance(value, dict) else None
                    classes = labels.get("labels") if isinstance(labels, dict) else None
                    return [
                        one.get("name") if isinstance(one, dict) else None
                        for one in (classes if isinstance(classes, list) else [])
                    ]
        return []

    def _build_row(self, where: str, item: Any) -> Row | None:
        values = item if isinstance(item, dict) else {}
        image = values.get("image") or values.get("media")
        image = image if isinstance(image, dict) else {}
        names = self._list_names(values.get("id"), image.get("path"))
        annotations = values.get("annotations", [])
        if not names or not isinstance(annotations, list):
            cause = "an item needs an id and a list of annotations"
            found = make_finding(
                "RowInvalid", file=self._path, field=where, cause=cause, value=item
            )
            self._report(found)
            return None
        shapes = ImageShapes(self._path)
        for number, annotation in enumerate(annotations):
            self._add_annotation(shapes, f"{where}.annotations[{number}]", annotation)
        size = to_numbers(image.get("size"), 2)
        name = choose_name(self._source, self._path, names)
        frame = parse_size(size[1], size[0]) if size else None  # height comes first
        return shapes.build_row(self._source, name, frame=frame, field=where)

    def _list_names(self, key: object, path: object) -> list[str]:
        """List the names that the image may have, the most exact first."""
        given = [name for name in (path, key) if isinstance(name, str) and name]
        inside = [
            name if name.startswith("images/") else f"images/{self._subset}/{name}"
            for name in given
            if not name.startswith("/")
        ]
        return [*inside, *given]

    def _add_annotation(self, shapes: ImageShapes, where: str, annotation: Any) -> None:
        kind = annotation.get("type") if isinstance(annotation, dict) else None
        if not isinstance(kind, str):
            cause = "the annotation has no 'type'"
            shapes.reject("FieldMissing", cause, field=f"{where}.type", value=annotation)
            return
        if kind not in NEEDS:
            self._ignored.count(f"annotations of type {kind[:40]}", file=self._path, field=where)
            return
        number = annotation.get("label_id")
        is_index = isinstance(number, int) and not isinstance(number, bool)
        if not is_index or not 0 <= number < len(self._names):
            cause = f"no class has this number; there are {len(self._names)}"
            shapes.reject("ClassUnknown", cause, field=f"{where}.label_id", value=number)
            return
        box = _bound_annotation(kind, annotation)
        shapes.add(self._names[number], box, field=where, what=NEEDS[kind])


def _bound_annotation(kind: str, annotation: dict[str, Any]) -> Box | None:
    if kind == "bbox":
        return _parse_bbox(annotation)
    numbers = to_numbers(annotation.get("points"))
    points = pair_numbers(numbers) if numbers else None
    if kind == "ellipse":  # its corners
        return bound_points(points) if points and len(points) == 2 else None
    return bound_polygon(points)


def _parse_bbox(annotation: dict[str, Any]) -> Box | None:
    """Return a rectangle, or the bounding box of one that CVAT rotated around its center."""
    numbers = to_numbers(annotation.get("bbox"), 4)
    if numbers is None:
        return None
    x, y, width, height = numbers
    box = (x, y, x + width, y + height)
    attributes = annotation.get("attributes")
    degrees = attributes.get("rotation") if isinstance(attributes, dict) else None
    radians = math.radians(to_number(degrees) or 0.0)
    return rotate_rectangle(box, radians, find_center(box))
