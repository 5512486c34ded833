"""The COCO JSON reader: boxes become phrase grounding, captions become freeform texts.

A file is streamed twice: images and categories first, because annotations may precede them, then
the annotations. Boxes are kept as plain numbers until the image's row is complete.
"""

import math
import re
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import LabeledBox, build_row, find_image_size, to_fractions
from runyard.datasets.readers.json_stream import MalformedJson, iter_elements
from runyard.datasets.readers.lines import read_head
from runyard.datasets.records import AssetRef, Box, DatasetType, Freeform, Record
from runyard.datasets.sources import Source
from runyard.datasets.splits import Split, find_row_split

_KEY = re.compile(rb'"(?:(?:images|annotations|categories|licenses)"\s*:\s*\[|info"\s*:\s*\{)')


class CocoReader:
    """The reader of COCO instances and captions; see ``base.Reader``."""

    name = "Coco"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "freeform")

    def detect(self, source: Source) -> list[str]:
        return [
            path
            for path in source.paths()
            if path.lower().endswith(".json") and _is_coco(read_head(source, path))
        ]

    def read(
        self, source: Source, files: list[str], task: DatasetType, report: ReportFinding
    ) -> Iterator[Row]:
        for path in files:
            try:
                yield from _CocoFile(source, path, report).read_rows(task)
            except MalformedJson as error:
                report(
                    make_finding(
                        "FileUnreadable",
                        file=path,
                        line=error.line,
                        cause=str(error),
                        action="FileRejected",
                    )
                )


def _is_coco(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _KEY.search(head) is not None


class _Image(NamedTuple):
    number: int
    name: str
    frame: tuple[int, int] | None
    split: Split | None


class _CocoFile:
    """One COCO file being read."""

    def __init__(self, source: Source, path: str, report: ReportFinding) -> None:
        self._source, self._path, self._report = source, path, report
        self._images: dict[int | str, _Image] = {}
        self._names: dict[int | str, str] = {}
        self._numbered: list[str] = []

    def read_rows(self, task: DatasetType) -> Iterator[Row]:
        with self._source.open(self._path) as file:
            for key, number, element in iter_elements(file):
                if key == "images":
                    self._add_image(number, element)
                elif key == "categories":
                    self._add_category(number, element)
        yield from self._read_captions() if task == "freeform" else self._read_boxes()

    def _add_image(self, number: int, element: Any) -> None:
        where = f"images[{number}]"
        missing = _find_missing(element, ("id", "file_name"))
        if missing:
            self._refuse("FieldMissing", f"{where}.{missing}", f"the image has no {missing!r}")
            return
        key, name = element["id"], element["file_name"]
        if not _is_id(key) or not isinstance(name, str) or not name:
            self._refuse(
                "FieldInvalid",
                where,
                "id must be a number or a string, and file_name a string",
                [key, name],
            )
            return
        if key in self._images:
            cause = (
                f"another image has the id {key!r}; annotations with this id are assigned to "
                f"{self._images[key].name!r}"
            )
            self._report(
                make_finding(
                    "IdDuplicate", file=self._path, field=f"{where}.id", cause=cause, value=key
                )
            )
            return
        width, height = element.get("width"), element.get("height")
        frame = (
            (width, height)
            if isinstance(width, int) and isinstance(height, int) and width > 0 < height
            else None
        )
        self._images[key] = _Image(number, name, frame, find_row_split(element))

    def _add_category(self, number: int, element: Any) -> None:
        missing = _find_missing(element, ("id", "name"))
        if missing:
            self._refuse(
                "FieldMissing",
                f"categories[{number}].{missing}",
                f"the category has no {missing!r}",
            )
        elif not _is_id(element["id"]) or not isinstance(element["name"], str):
            self._refuse(
                "FieldInvalid",
                f"categories[{number}]",
                "id must be a number or a string, and name a string",
            )
        else:
            self._names[element["id"]] = element["name"]

    def _iter_annotations(self) -> Iterator[tuple[int, dict[str, Any], _Image]]:
        """Yield every annotation whose image is listed."""
        with self._source.open(self._path) as file:
            for key, number, element in iter_elements(file):
                if key != "annotations":
                    continue
                if missing := _find_missing(element, ("image_id",)):
                    self._refuse(
                        "FieldMissing",
                        f"annotations[{number}].{missing}",
                        f"the annotation has no {missing!r}",
                    )
                    continue
                image = (
                    self._images.get(element["image_id"]) if _is_id(element["image_id"]) else None
                )
                if image is None:
                    field, value = f"annotations[{number}].image_id", element["image_id"]
                    self._refuse("FieldInvalid", field, "no listed image has this id", value)
                    continue
                yield number, element, image

    def _read_captions(self) -> Iterator[Row]:
        has_boxes = has_captions = False
        for number, element, image in self._iter_annotations():
            caption, field = element.get("caption"), f"annotations[{number}].caption"
            if not isinstance(caption, str):
                has_boxes = True
                continue
            has_captions = True
            facts = self._source.find_image(image.name, relative_to=self._path)
            record = Record(
                id=f"{facts.path if facts else image.name}#{element.get('id', number)}",
                asset=AssetRef(filename=image.name, width=0, height=0),
                contents=Freeform(text=caption.strip()),
                split=image.split,
            )
            yield Row(record, self._path, None, field, image.frame)
        if has_boxes and not has_captions:
            self._ignore("it has no captions, but the dataset is for freeform texts")

    def _read_boxes(self) -> Iterator[Row]:
        # Six numbers per box: category, number of the annotation, x, y, width, height.
        boxes: dict[int, array[float]] = {}
        findings: dict[int, list[Finding]] = {}
        numbers: dict[str, int] = {}
        has_captions = False
        by_number = {}
        for number, element, image in self._iter_annotations():
            if "caption" in element and "bbox" not in element:
                has_captions = True
                continue
            by_number[image.number] = image
            found = self._parse_box(number, element)
            if isinstance(found, Finding):
                findings.setdefault(image.number, []).append(found)
                continue
            name, box = found
            index = numbers.setdefault(name, len(numbers))
            boxes.setdefault(image.number, array("d")).extend((index, number, *box))
        if has_captions and not by_number:
            self._ignore("it has captions and no boxes, but the dataset is for phrase grounding")
        names = list(numbers)
        for number in sorted(by_number):
            yield self._build_row(
                by_number[number], boxes.pop(number, array("d")), names, findings.pop(number, [])
            )

    def _parse_box(self, number: int, element: dict[str, Any]) -> tuple[str, Box] | Finding:
        """Return name and box of an annotation, or the finding about it."""
        where = f"annotations[{number}]"
        if missing := _find_missing(element, ("category_id",)):
            return self._make_finding(
                "FieldMissing", f"{where}.{missing}", f"the annotation has no {missing!r}"
            )
        category = element["category_id"]
        name = self._names.get(category) if _is_id(category) else None
        if name is None:
            return self._make_finding(
                "ClassUnknown", f"{where}.category_id", "no category has this id", category
            )
        box = element.get("bbox")
        if box is None:
            box = _bound_polygons(element.get("segmentation"))
        if box is None:
            return self._make_finding(
                "FieldMissing", f"{where}.bbox", "the annotation has no 'bbox'"
            )
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(_is_number(value) for value in box)
        ):
            return self._make_finding(
                "FieldInvalid", f"{where}.bbox", "it must be four numbers: x, y, width, height", box
            )
        x, y, width, height = (_to_float(value) for value in box)
        return name, (x, y, x + width, y + height)

    def _build_row(
        self, image: _Image, boxes: "array[float]", names: list[str], findings: list[Finding]
    ) -> Row:
        size = find_image_size(self._source, image.name, self._path, image.frame)
        labeled_boxes = [
            LabeledBox(
                names[int(boxes[at])],
                to_fractions((boxes[at + 2], boxes[at + 3], boxes[at + 4], boxes[at + 5]), size),
                BoxLocation(None, f"annotations[{int(boxes[at + 1])}].bbox"),
            )
            for at in range(0, len(boxes), 6)
        ]
        return build_row(
            self._source,
            image.name,
            labeled_boxes,
            file=self._path,
            field=f"images[{image.number}]",
            frame=image.frame,
            unit="pixel",
            findings=findings,
            split=image.split,
        )

    def _make_finding(self, code: str, field: str, cause: str, value: object = None) -> Finding:
        return make_finding(code, file=self._path, field=field, cause=cause, value=value)

    def _refuse(self, code: str, field: str, cause: str, value: object = None) -> None:
        self._report(self._make_finding(code, field, cause, value))

    def _ignore(self, cause: str) -> None:
        self._report(make_finding("FileIgnored", file=self._path, cause=cause))


def _find_missing(element: Any, names: tuple[str, ...]) -> str | None:
    """Return the first of these fields that an element lacks."""
    if not isinstance(element, dict):
        return names[0]
    return next((name for name in names if element.get(name) is None), None)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _bound_polygons(polygons: Any) -> list[float] | None:
    """Return the bounding box of polygons as x, y, width, height; None for anything else."""
    if not isinstance(polygons, list) or not polygons:
        return None
    numbers = [value for polygon in polygons if isinstance(polygon, list) for value in polygon]
    if len(numbers) < 6 or not all(_is_number(value) for value in numbers):
        return None
    xs, ys = numbers[0::2], numbers[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
