"""COCO JSON in: boxes of categories as phrase grounding, captions as freeform texts.

A file is read twice, each time one element after another: pictures and categories first, because annotations may stand
before them; then the annotations, of which boxes are kept as plain numbers until the picture's row is complete.
"""

import math
import re
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from runyard.datasets.findings import Finding, Say, finding
from runyard.datasets.readers import Row, Spot
from runyard.datasets.readers.boxes import Labelled, as_share, row_of, size_of
from runyard.datasets.readers.json_stream import Malformed, elements
from runyard.datasets.readers.lines import head_of
from runyard.datasets.records import AssetRef, Box, DatasetType, Freeform, Record
from runyard.datasets.sources import Source

_KEY = re.compile(rb'"(?:(?:images|annotations|categories|licenses)"\s*:\s*\[|info"\s*:\s*\{)')


class Coco:
    """COCO instances and captions; see ``readers.Reader``."""

    name = "Coco"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "freeform")

    def claims(self, source: Source) -> list[str]:
        return [path for path in source.paths() if path.lower().endswith(".json") and _is_ours(head_of(source, path))]

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        for path in files:
            try:
                yield from _File(source, path, say).rows(task)
            except Malformed as error:
                say(finding("FileUnreadable", file=path, line=error.line, cause=str(error), action="FileRejected"))


def _is_ours(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _KEY.search(head) is not None


class _Picture(NamedTuple):
    number: int
    name: str
    frame: tuple[int, int] | None


class _File:
    """One COCO file while it is read."""

    def __init__(self, source: Source, path: str, say: Say) -> None:
        self._source, self._path, self._say = source, path, say
        self._pictures: dict[int | str, _Picture] = {}
        self._names: dict[int | str, str] = {}
        self._numbered: list[str] = []

    def rows(self, task: DatasetType) -> Iterator[Row]:
        with self._source.open(self._path) as file:
            for key, number, element in elements(file):
                if key == "images":
                    self._picture(number, element)
                elif key == "categories":
                    self._category(number, element)
        yield from self._captions() if task == "freeform" else self._boxes()

    def _picture(self, number: int, element: Any) -> None:
        where = f"images[{number}]"
        problem = _missing(element, ("id", "file_name"))
        if problem:
            self._refuse("FieldMissing", f"{where}.{problem}", f"the picture has no {problem!r}")
            return
        key, name = element["id"], element["file_name"]
        if not _is_id(key) or not isinstance(name, str) or not name:
            self._refuse("FieldInvalid", where, "id must be a number or a text, and file_name a text", [key, name])
            return
        if key in self._pictures:
            cause = (
                f"another picture has the id {key!r}; annotations of this id are taken for {self._pictures[key].name!r}"
            )
            self._say(finding("IdDuplicate", file=self._path, field=f"{where}.id", cause=cause, value=key))
            return
        width, height = element.get("width"), element.get("height")
        frame = (width, height) if isinstance(width, int) and isinstance(height, int) and width > 0 < height else None
        self._pictures[key] = _Picture(number, name, frame)

    def _category(self, number: int, element: Any) -> None:
        problem = _missing(element, ("id", "name"))
        if problem:
            self._refuse("FieldMissing", f"categories[{number}].{problem}", f"the category has no {problem!r}")
        elif not _is_id(element["id"]) or not isinstance(element["name"], str):
            self._refuse("FieldInvalid", f"categories[{number}]", "id must be a number or a text, and name a text")
        else:
            self._names[element["id"]] = element["name"]

    def _annotations(self) -> Iterator[tuple[int, dict[str, Any], _Picture]]:
        """Every annotation whose picture is listed."""
        with self._source.open(self._path) as file:
            for key, number, element in elements(file):
                if key != "annotations":
                    continue
                if problem := _missing(element, ("image_id",)):
                    self._refuse(
                        "FieldMissing", f"annotations[{number}].{problem}", f"the annotation has no {problem!r}"
                    )
                    continue
                picture = self._pictures.get(element["image_id"]) if _is_id(element["image_id"]) else None
                if picture is None:
                    field, value = f"annotations[{number}].image_id", element["image_id"]
                    self._refuse("FieldInvalid", field, "no picture of the list has this id", value)
                    continue
                yield number, element, picture

    def _captions(self) -> Iterator[Row]:
        has_boxes = has_captions = False
        for number, element, picture in self._annotations():
            caption, field = element.get("caption"), f"annotations[{number}].caption"
            if not isinstance(caption, str):
                has_boxes = True
                continue
            has_captions = True
            facts = self._source.image(picture.name, beside=self._path)
            record = Record(
                id=f"{facts.path if facts else picture.name}#{element.get('id', number)}",
                asset=AssetRef(filename=picture.name, width=0, height=0),
                contents=Freeform(text=caption.strip()),
            )
            yield Row(record, self._path, None, field, picture.frame)
        if has_boxes and not has_captions:
            self._ignore("it has no captions, and the dataset is for freeform texts")

    def _boxes(self) -> Iterator[Row]:
        # Six numbers a box: category, number of the annotation, x, y, width, height.
        boxes: dict[int, array[float]] = {}
        defects: dict[int, list[Finding]] = {}
        numbers: dict[str, int] = {}
        has_captions = False
        by_number = {}
        for number, element, picture in self._annotations():
            if "caption" in element and "bbox" not in element:
                has_captions = True
                continue
            by_number[picture.number] = picture
            found = self._box(number, element)
            if isinstance(found, Finding):
                defects.setdefault(picture.number, []).append(found)
                continue
            name, box = found
            place = numbers.setdefault(name, len(numbers))
            boxes.setdefault(picture.number, array("d")).extend((place, number, *box))
        if has_captions and not by_number:
            self._ignore("it has captions and no boxes, and the dataset is for phrase grounding")
        names = list(numbers)
        for number in sorted(by_number):
            yield self._row(by_number[number], boxes.pop(number, array("d")), names, defects.pop(number, []))

    def _box(self, number: int, element: dict[str, Any]) -> tuple[str, Box] | Finding:
        """Name and box of an annotation, or what is wrong with it."""
        where = f"annotations[{number}]"
        if problem := _missing(element, ("category_id",)):
            return self._wrong("FieldMissing", f"{where}.{problem}", f"the annotation has no {problem!r}")
        category = element["category_id"]
        name = self._names.get(category) if _is_id(category) else None
        if name is None:
            return self._wrong("ClassUnknown", f"{where}.category_id", "no category has this id", category)
        box = element.get("bbox")
        if box is None:
            box = _around(element.get("segmentation"))
        if box is None:
            return self._wrong("FieldMissing", f"{where}.bbox", "the annotation has no 'bbox'")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            return self._wrong("FieldInvalid", f"{where}.bbox", "it must be four numbers: x, y, width, height", box)
        x, y, width, height = (_float(value) for value in box)
        return name, (x, y, x + width, y + height)

    def _row(self, picture: _Picture, boxes: "array[float]", names: list[str], defects: list[Finding]) -> Row:
        size = size_of(self._source, picture.name, self._path, picture.frame)
        labelled = [
            Labelled(
                names[int(boxes[at])],
                as_share((boxes[at + 2], boxes[at + 3], boxes[at + 4], boxes[at + 5]), size),
                Spot(None, f"annotations[{int(boxes[at + 1])}].bbox"),
            )
            for at in range(0, len(boxes), 6)
        ]
        return row_of(
            self._source,
            picture.name,
            labelled,
            file=self._path,
            field=f"images[{picture.number}]",
            frame=picture.frame,
            unit="pixel",
            defects=defects,
        )

    def _wrong(self, code: str, field: str, cause: str, value: object = None) -> Finding:
        return finding(code, file=self._path, field=field, cause=cause, value=value)

    def _refuse(self, code: str, field: str, cause: str, value: object = None) -> None:
        self._say(self._wrong(code, field, cause, value))

    def _ignore(self, cause: str) -> None:
        self._say(finding("FileIgnored", file=self._path, cause=cause))


def _missing(element: Any, names: tuple[str, ...]) -> str | None:
    """The first of these fields that an element lacks."""
    if not isinstance(element, dict):
        return names[0]
    return next((name for name in names if element.get(name) is None), None)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _around(polygons: Any) -> list[float] | None:
    """The box round polygons, as x, y, width, height; None for anything else."""
    if not isinstance(polygons, list) or not polygons:
        return None
    numbers = [value for polygon in polygons if isinstance(polygon, list) for value in polygon]
    if len(numbers) < 6 or not all(_is_number(value) for value in numbers):
        return None
    xs, ys = numbers[0::2], numbers[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
