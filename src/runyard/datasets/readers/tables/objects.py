"""Boxes in the columns of a table row.

    objects: {"bbox": [[x, y, w, h], ...], "category": [...]}     a struct of lists
    objects: [{"bbox": [x, y, w, h], "category": ...}, ...]       a list of structs
    bboxes: [[x, y, w, h], ...], labels: [...]                    columns of the row

Boxes are ``[x, y, width, height]`` in pixels, as in COCO and in Hugging Face's detection datasets,
unless the options say otherwise. Tools write corners or fractions as well, so a reader first
collects the evidence of all boxes of a file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from runyard.datasets.findings import Finding
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.options import ReadOptions
from runyard.datasets.readers.frames import Frame, FrameEvidence

OBJECTS = ("objects", "annotations", "boxes")
BOXES = ("bbox", "bboxes", "boxes", "box")
NAMES = (
    *("category", "categories", "label", "labels", "class", "classes", "name", "names"),
    *("category_id", "category_ids", "class_id", "class_ids", "phrase"),
)
_ROWS_WITHOUT_BOXES = 1000  # after which a file is taken to have none


class Objects(NamedTuple):
    """The boxes of a row and their names, as found, with the paths of both columns."""

    boxes: Any
    names: Any
    box_path: str
    name_path: str
    field: str  # the row's column


def find_objects(row: Mapping[str, Any]) -> Objects | None:
    """Return the boxes of a row; None if it has none."""
    for key in OBJECTS:
        value = row.get(key)
        if isinstance(value, Mapping):
            return _split_struct(key, value)
        if isinstance(value, list) and (not value or isinstance(value[0], Mapping)):
            return _split_list(key, value)
    for key in BOXES:
        value = row.get(key)
        if isinstance(value, list) and (not value or isinstance(value[0], list)):
            name_key = next((name for name in NAMES if isinstance(row.get(name), list)), "category")
            return Objects(value, row.get(name_key), key, name_key, key)
    return None


def has_boxes(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a column of boxes, in a form that is read or not."""
    return any(row.get(key) is not None for key in (*OBJECTS, *BOXES))


def iter_numbers(row: Mapping[str, Any]) -> Iterator[tuple[float, float, float, float]]:
    """Yield the four numbers of each box of a row that has them."""
    found = find_objects(row)
    for box in found.boxes if found is not None and isinstance(found.boxes, list) else []:
        if is_box(box):
            a, b, c, d = (float(number) for number in box)
            yield a, b, c, d


def find_other_frame(
    rows: Iterable[tuple[Mapping[str, Any], ImageFacts | None]],
    frame: Frame,
    options: ReadOptions,
    *,
    file: str,
) -> Finding | None:
    """Return the finding that leaves out a file whose boxes are in another frame.

    ``rows`` are those of the file, each with the facts of its image.
    """
    evidence, count = FrameEvidence(), 0
    for row, facts in rows:
        count += 1
        if facts is not None and has_boxes(row):
            for numbers in iter_numbers(row):
                evidence.add(numbers, (facts.width, facts.height))
        elif not evidence.boxes and count >= _ROWS_WITHOUT_BOXES:
            break
    found = evidence.find_other_frame(frame, options, file=file, rows=count)
    return found and msgspec.structs.replace(found, rows=count)


def is_box(value: Any) -> bool:
    return begins_box(value) and len(value) == 4


def begins_box(value: Any) -> bool:
    """Return whether a value is the beginning of a box, at least two of its numbers."""
    return isinstance(value, list) and 2 <= len(value) <= 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**15)


def _split_struct(key: str, objects: Mapping[str, Any]) -> Objects:
    box_key, name_key = _find_key(objects, BOXES, "bbox"), _find_key(objects, NAMES, "category")
    return Objects(
        objects.get(box_key), objects.get(name_key), f"{key}.{box_key}", f"{key}.{name_key}", key
    )


def _split_list(key: str, objects: Sequence[Any]) -> Objects:
    items = [item if isinstance(item, Mapping) else {} for item in objects]
    first = items[0] if items else {}
    box_key, name_key = _find_key(first, BOXES, "bbox"), _find_key(first, NAMES, "category")
    return Objects(
        [item.get(box_key) for item in items],
        [item.get(name_key) for item in items],
        f"{key}.{box_key}",
        f"{key}.{name_key}",
        key,
    )


def _find_key(item: Mapping[str, Any], keys: Sequence[str], otherwise: str) -> str:
    return next((key for key in keys if item.get(key) is not None), otherwise)
