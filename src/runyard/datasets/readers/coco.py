"""The COCO JSON reader: boxes become phrase grounding, captions become freeform texts.

A file is streamed twice: images and categories first, because annotations may precede them, then
the annotations. Boxes are kept in a spool until the frame of the file is decided and the image's
row is complete, so that memory depends on the number of images alone.

Ids are compared as tools mix them: 7 and "7" are the same. Without ``bbox`` the box is that of the
polygons or of the mask. Regions of a crowd (``iscrowd``) are no objects and are left out. Boxes
that another file of the same folder already gave for the image, such as those of
``person_keypoints_*.json`` beside ``instances_*.json``, are not added again.
"""

import posixpath
import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import msgspec

from runyard.datasets.findings import Action, Finding, ReportFinding, make_finding
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import (
    LabeledBox,
    RowSpool,
    bound_mask,
    bound_points,
    build_row,
    parse_size,
    to_number,
)
from runyard.datasets.readers.frames import Frame, FrameEvidence, Numbers, choose_frame
from runyard.datasets.readers.json_stream import MalformedJson, iter_elements
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.records import AssetRef, DatasetType, Freeform, Record
from runyard.datasets.sources import Source
from runyard.datasets.splits import Split, find_row_split

MAX_FINDINGS = 100  # of one row; the others are counted
NAME_KEYS = ("file_name", "filename", "path", "coco_url", "url", "flickr_url")
CLASS_KEYS = ("category_name", "category", "label", "class", "class_name")

_PART = struct.Struct("<iqB4d")  # class, number of the annotation, origin, four numbers of a box
_BBOX, _POLYGON, _MASK = range(3)  # the origin of a box
_SHAPES = ("bbox", "segmentation", "keypoints")


class CocoReader:
    """The reader of COCO instances and captions; see ``base.Reader``."""

    name = "Coco"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "freeform")

    def detect(self, source: Source) -> list[str]:
        return [
            path
            for path in source.paths()
            if (form := sniff_json(source, path)) is not None
            and (_is_coco(form) or _is_result(form))
        ]

    def find_type(self, source: Source, files: list[str]) -> DatasetType | None:
        """Return the type according to the first annotation of each file; see ``TypeFinder``."""
        forms = (sniff_json(source, path) for path in files)
        firsts = [form.first.get("annotations") for form in forms if form and not form.is_array]
        known = [first for first in firsts if isinstance(first, dict)]
        if any("caption" not in first or "bbox" in first for first in known):
            return "phrase-grounding"
        return "freeform" if known and len(known) == len(firsts) else None

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        folders: dict[str, list[str]] = {}
        for path in _drop_results(source, files, report):
            folders.setdefault(posixpath.dirname(path), []).append(path)
        for paths in folders.values():
            with ExitStack() as stack:
                siblings: list[_CocoFile] = []
                for path in paths:
                    spool = stack.enter_context(RowSpool())
                    file = _CocoFile(source, path, spool, report, is_alone=len(paths) == 1)
                    try:
                        yield from file.read_rows(task, options, siblings)
                    except MalformedJson as error:
                        report(
                            make_finding(
                                error.code,
                                file=path,
                                line=error.line,
                                cause=str(error),
                                action="FileRejected",
                            )
                        )
                    else:
                        siblings += [file] if file.has_boxes else []


def _is_coco(form: JsonForm) -> bool:
    """Return whether a file is an object with images and annotations.

    Either list may be so long that the other is beyond the part that was read.
    """
    keys = set(form.keys)
    if form.is_array or form.is_lines or not keys & {"images", "annotations"}:
        return False
    annotation, image = form.first.get("annotations"), form.first.get("images")
    if isinstance(annotation, dict):
        is_other = "segments_info" in annotation or "question_id" in annotation
        is_known = any(key in annotation for key in ("category_id", "caption", *_SHAPES))
        if is_other or ("images" not in keys and not (is_known and "image_id" in annotation)):
            return False
    if "images" not in keys:
        return isinstance(annotation, dict)
    is_image = isinstance(image, dict) and "id" in image
    return "annotations" in keys or (is_image and "images" not in form.values)


def _is_result(form: JsonForm) -> bool:
    """Return whether a file is a list of boxes or masks of numbered images, without the images."""
    keys = set(form.keys)
    return form.is_array and {"image_id", "category_id"} <= keys and not keys.isdisjoint(_SHAPES)


def _drop_results(source: Source, files: list[str], report: ReportFinding) -> list[str]:
    """Report the files with predictions; return the others."""
    forms = {path: sniff_json(source, path) for path in files}
    results = [path for path, form in forms.items() if form is not None and _is_result(form)]
    is_alone = len(results) == len(files)
    for path in results:
        cause = "it has predictions (image_id, category_id, box), but no list of images"
        fix = "import the COCO file with the lists images, annotations and categories"
        code = "ContentsUnfit" if is_alone else "FileIgnored"
        action: Action | None = "FileRejected" if is_alone else None
        report(make_finding(code, file=path, cause=cause, fix=fix, action=action))
    return [path for path in files if path not in results]


class _Image(NamedTuple):
    """One listed image: the index of its row, its index in ``images``, and its name."""

    row: int
    number: int
    name: str
    frame: tuple[int, int] | None
    split: Split | None


class _CocoFile:
    """One COCO file being read. ``is_alone`` says that its folder has no other."""

    def __init__(
        self,
        source: Source,
        path: str,
        spool: RowSpool,
        report: ReportFinding,
        *,
        is_alone: bool,
    ) -> None:
        self.path, self._is_alone = path, is_alone
        self._source, self._spool, self._report = source, spool, report
        self._rows: dict[int | str, int] = {}  # by the image's id
        self._image_names: list[str] = []
        self._splits: dict[int, Split] = {}  # by the row
        self._numbers = array("q")  # of images in the file
        self._claimed = array("q")  # width and height of each image; 0 if not given
        self._sizes = array("q")  # to divide pixels by; -1 if not yet known
        self._categories: dict[int | str, str | None] = {}  # None: two categories have the id
        self._category_names: set[str] = set()
        self._classes: dict[str, int] = {}
        self._crowds = 0
        self._evidence = FrameEvidence()
        self._frame = Frame("pixel", "size")
        self._rows_by_path: dict[str, int] = {}
        self._repeated_boxes = self._repeated_rows = 0

    def read_rows(
        self, task: DatasetType, options: ReadOptions, siblings: "list[_CocoFile]"
    ) -> Iterator[Row]:
        with open_text(self._source, self.path) as file:
            for key, number, element in iter_elements(file):
                if key == "images":
                    self._add_image(number, element)
                elif key == "categories":
                    self._add_category(number, element)
        if task == "freeform":
            yield from self._read_captions()
        else:
            yield from self._read_boxes(options, siblings)

    # Images and categories

    def _add_image(self, number: int, element: Any) -> None:
        where = f"images[{number}]"
        if missing := _find_missing(element, ("id",)):
            self._refuse("FieldMissing", f"{where}.{missing}", f"the image has no {missing!r}")
            return
        name = _find_file_name(element)
        if name is None:
            field, cause = f"{where}.file_name", "the image has no 'file_name'"
            self._refuse("FieldMissing", field, cause)
            return
        key = _to_id(element["id"])
        if key is None or not isinstance(name, str):
            cause = "id must be a number or a string, and file_name a string"
            self._refuse("FieldInvalid", where, cause, [element["id"], name])
            return
        if key in self._rows:
            cause = (
                f"another image has the id {key!r}; annotations with this id are assigned to "
                f"{self._image_names[self._rows[key]]!r}"
            )
            self._refuse("IdDuplicate", f"{where}.id", cause, key)
            return
        self._rows[key] = len(self._image_names)
        if split := find_row_split(element):
            self._splits[self._rows[key]] = split
        self._image_names.append(name)
        self._numbers.append(number)
        self._claimed.extend(parse_size(element.get("width"), element.get("height")) or (0, 0))
        self._sizes.extend((-1, -1))

    def _add_category(self, number: int, element: Any) -> None:
        where = f"categories[{number}]"
        if isinstance(element, str):
            self._category_names.add(element)
            return
        if missing := _find_missing(element, ("name",)):
            cause = f"the category has no {missing!r}"
            self._drop_category("FieldMissing", f"{where}.{missing}", cause)
            return
        name = element["name"]
        name = str(name) if type(name) is int else name
        key = _to_id(element.get("id"))
        if not isinstance(name, str) or (key is None and element.get("id") is not None):
            cause = "id must be a number or a string, and name a string"
            self._drop_category("FieldInvalid", where, cause, [element.get("id"), name])
            return
        self._category_names.add(name)
        if key is None:
            cause = "the category has no 'id'"
            self._drop_category("FieldMissing", f"{where}.id", cause)
        elif self._categories.setdefault(key, name) != name:
            self._categories[key] = None

    def _get_image(self, row: int) -> _Image:
        width, height = self._claimed[2 * row], self._claimed[2 * row + 1]
        frame = (width, height) if width else None
        split = self._splits.get(row)
        return _Image(row, self._numbers[row], self._image_names[row], frame, split)

    def _get_size(self, row: int) -> tuple[int, int]:
        """Return the size to divide pixels by; zeros for a missing image of unknown size."""
        if self._sizes[2 * row] < 0:
            image = self._get_image(row)
            width, height = image.frame or (0, 0)
            if not width and (facts := self._find_facts(image)):
                width, height = facts.width, facts.height
            self._sizes[2 * row], self._sizes[2 * row + 1] = width, height
        return self._sizes[2 * row], self._sizes[2 * row + 1]

    # Annotations

    def _iter_annotations(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Yield every annotation whose image is listed, with its number and its row."""
        with open_text(self._source, self.path) as file:
            for key, number, element in iter_elements(file):
                if key != "annotations":
                    continue
                where = f"annotations[{number}]"
                if missing := _find_missing(element, ("image_id",)):
                    cause = f"the annotation has no {missing!r}"
                    self._refuse("FieldMissing", f"{where}.{missing}", cause)
                    continue
                image = _to_id(element["image_id"])
                row = None if image is None else self._rows.get(image)
                if row is None:
                    field, value = f"{where}.image_id", element["image_id"]
                    self._refuse("FieldInvalid", field, "no listed image has this id", value)
                    continue
                yield number, element, row

    def _read_captions(self) -> Iterator[Row]:
        has_boxes = has_captions = False
        for number, element, row in self._iter_annotations():
            caption, field = element.get("caption"), f"annotations[{number}].caption"
            if not isinstance(caption, str):
                has_boxes = True
                continue
            has_captions = True
            image = self._get_image(row)
            facts = self._find_facts(image)
            record = Record(
                id=f"{facts.path if facts else image.name}#{element.get('id', number)}",
                asset=AssetRef(filename=image.name, width=0, height=0),
                contents=Freeform(text=caption.strip()),
                split=image.split,
            )
            yield Row(record, self.path, None, field, image.frame)
        if has_boxes and not has_captions:
            self._ignore("it has no captions, but the dataset is for freeform texts")

    def _read_boxes(self, options: ReadOptions, siblings: "list[_CocoFile]") -> Iterator[Row]:
        has_captions = has_boxes = False
        for number, element, row in self._iter_annotations():
            if "caption" in element and "bbox" not in element:
                has_captions = True
                continue
            has_boxes = True
            if _is_crowd(element.get("iscrowd")):
                self._crowds += 1
                continue
            found = self._add_box(number, element, row)
            if found is not None:
                self._spool.add(row, msgspec.json.encode(found))
        if has_captions and not has_boxes:
            self._ignore("it has captions and no boxes, but the dataset is for phrase grounding")
        self._report_crowds()
        self._frame = choose_frame(options, "pixel", "size")
        rows = sum(1 for row in range(len(self._spool)) if self._spool.has(row))
        other = self._evidence.find_other_frame(self._frame, options, file=self.path, rows=rows)
        if other is not None:
            self._report(other)
            return
        for number in range(len(self._spool)):
            if self._spool.has(number) and (built := self._build_row(number, siblings)):
                yield built
        self._report_repeated(siblings)

    def _add_box(self, number: int, element: dict[str, Any], row: int) -> Finding | None:
        """Add the box of an annotation to its row; return the finding if it cannot be read."""
        name = self._find_class(number, element)
        if isinstance(name, Finding):
            return name
        box = self._parse_box(number, element)
        if isinstance(box, Finding):
            return box
        numbers, origin = box
        index = self._classes.setdefault(name, len(self._classes))
        self._spool.add(row, _PART.pack(index, number, origin, *numbers))
        if origin != _MASK:
            self._evidence.add(numbers, self._get_size(row))
        return None

    def _find_class(self, number: int, element: dict[str, Any]) -> str | Finding:
        """Return the name of an annotation's class, or the finding about it."""
        field = f"annotations[{number}].category_id"
        value = element.get("category_id")
        key = None if value is None else _to_id(value)
        if key is not None and key in self._categories:
            name = self._categories[key]
            if name is not None:
                return name
            cause = "two categories of different names have this id"
            return self._make_finding("ClassUnknown", field, cause, value)
        if isinstance(value, str) and self._is_class_name(value):
            return value
        for name_key in CLASS_KEYS:
            given = element.get(name_key)
            if isinstance(given, str) and given.strip():
                return given
        if value is None:
            cause = "the annotation has no 'category_id'"
            return self._make_finding("FieldMissing", field, cause)
        return self._make_finding("ClassUnknown", field, "no category has this id", value)

    def _is_class_name(self, text: str) -> bool:
        """Return whether an id is the name of a class itself."""
        if self._category_names:
            return text in self._category_names
        return bool(text.strip()) and isinstance(_to_id(text), str)

    def _parse_box(self, number: int, element: dict[str, Any]) -> tuple[Numbers, int] | Finding:
        """Return the four numbers of a box and its origin, or the finding about it."""
        field, box = f"annotations[{number}].bbox", element.get("bbox")
        if box is None or box == []:
            return self._parse_segmentation(field, element.get("segmentation"), box)
        numbers = [to_number(value) for value in box] if isinstance(box, list) else []
        if len(numbers) != 4:
            cause = "it must be four numbers: x, y, width, height"
            return self._make_finding("FieldInvalid", field, cause, box)
        a, b, c, d = numbers
        if a is None or b is None or c is None or d is None:
            cause = "it must be four numbers: x, y, width, height"
            return self._make_finding("FieldInvalid", field, cause, box)
        return (a, b, c, d), _BBOX

    def _parse_segmentation(
        self, field: str, shape: Any, box: Any
    ) -> tuple[Numbers, int] | Finding:
        bounds = bound_mask(shape) if isinstance(shape, dict) else _bound_polygons(shape)
        if bounds is not None:
            return bounds, _MASK if isinstance(shape, dict) else _POLYGON
        cause = "the annotation has no 'bbox'"
        if shape:
            cause += ", and its 'segmentation' is neither polygons nor a mask with pixels"
        code = "FieldMissing" if box is None else "FieldInvalid"
        return self._make_finding(code, field, cause, box)

    # Rows

    def _build_row(self, row: int, siblings: "list[_CocoFile]") -> Row | None:
        """Build the row of an image; None if its boxes are those of other files of the folder."""
        image = self._get_image(row)
        facts = self._find_facts(image)
        path = facts.path if facts else image.name
        known = {box for other in siblings for box in other.list_boxes(path)}
        if not self._is_alone:
            self._rows_by_path[path] = row
        names = list(self._classes)
        boxes, findings, repeated, unread = [], [], 0, 0
        for part in self._spool.read(row):
            if len(part) != _PART.size:
                unread += 1
                if unread <= MAX_FINDINGS:
                    findings.append(msgspec.json.decode(part, type=Finding))
                continue
            index, number, origin, *numbers = _PART.unpack(part)
            if known and (names[index], *numbers) in known:
                repeated += 1
                continue
            box = self._to_fractions(numbers, origin, self._get_size(row))
            location = BoxLocation(None, f"annotations[{number}].bbox")
            boxes.append(LabeledBox(names[index], box, location))
        self._repeated_boxes += repeated
        if repeated and not boxes and not findings:
            self._repeated_rows += 1
            return None
        if unread > MAX_FINDINGS:
            cause = f"{unread - MAX_FINDINGS} more annotations of this image cannot be read"
            findings.append(self._make_finding("RowInvalid", f"images[{image.number}]", cause))
        return build_row(
            self._source,
            image.name,
            boxes,
            file=self.path,
            field=f"images[{image.number}]",
            frame=image.frame,
            unit=self._frame.row_unit,
            is_unit_chosen=True,
            findings=findings,
            split=image.split,
        )

    @property
    def has_boxes(self) -> bool:
        return bool(self._classes)

    def list_boxes(self, path: str) -> Iterator[tuple[Any, ...]]:
        """List the boxes of an image, each as its class and four numbers."""
        row = self._rows_by_path.get(path)
        if row is not None:
            names = list(self._classes)
            for part in self._spool.read(row):
                if len(part) == _PART.size:
                    index, _, _, *numbers = _PART.unpack(part)
                    yield names[index], *numbers

    def _to_fractions(self, numbers: list[float], origin: int, size: tuple[int, int]) -> Any:
        frame = self._frame
        if origin == _POLYGON:
            frame = Frame(frame.unit, "size")
        elif origin == _MASK:
            frame = Frame("pixel", "size")
        return frame.to_fractions(numbers, (size[0] or 1, size[1] or 1))

    def _find_facts(self, image: _Image) -> ImageFacts | None:
        return self._source.find_image(image.name, relative_to=self.path)

    # Findings

    def _report_crowds(self) -> None:
        if self._crowds:
            cause = f"regions of a crowd (iscrowd: 1) are left out: {self._crowds}"
            self._report(
                make_finding(
                    "BoxCrowd", file=self.path, cause=cause, value=self._crowds, action="Mended"
                )
            )

    def _report_repeated(self, siblings: "list[_CocoFile]") -> None:
        if self._repeated_boxes:
            others = " and ".join(posixpath.basename(other.path) for other in siblings[:3])
            cause = (
                f"boxes that are also in {others}, for the same images, are used once: "
                f"{self._repeated_boxes}; images without other boxes: {self._repeated_rows}"
            )
            self._report(
                make_finding(
                    "BoxDuplicate",
                    file=self.path,
                    cause=cause,
                    value=self._repeated_boxes,
                    action="Mended",
                    rows=self._repeated_rows or None,
                )
            )

    def _make_finding(self, code: str, field: str, cause: str, value: object = None) -> Finding:
        return make_finding(code, file=self.path, field=field, cause=cause, value=value)

    def _refuse(self, code: str, field: str, cause: str, value: object = None) -> None:
        self._report(self._make_finding(code, field, cause, value))

    def _drop_category(self, code: str, field: str, cause: str, value: object = None) -> None:
        """Report a category that cannot be used; this alone leaves out no row."""
        found = self._make_finding(code, field, f"{cause}; it is left out", value)
        self._report(msgspec.structs.replace(found, action="Mended"))

    def _ignore(self, cause: str) -> None:
        self._report(make_finding("FileIgnored", file=self.path, cause=cause))


def _find_missing(element: Any, fields: tuple[str, ...]) -> str | None:
    """Return the first field that is missing or null; all are if it is not an object."""
    if not isinstance(element, dict):
        return fields[0]
    return next((name for name in fields if element.get(name) is None), None)


def _find_file_name(element: dict[str, Any]) -> Any:
    """Return the image's name: ``file_name``, or the last part of a path or URL; None without."""
    key = next((key for key in NAME_KEYS if element.get(key) not in (None, "")), None)
    if key is None or key == "file_name" or not isinstance(element[key], str):
        return None if key is None else element[key]
    return posixpath.basename(element[key].replace("\\", "/").partition("?")[0]) or None


def _to_id(value: Any) -> int | str | None:
    """Return an id so that 7, 7.0 and "7" are equal; None for anything but a number or text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        is_number = value.isascii() and value.isdecimal() and len(value) < 20
        return int(value) if is_number and str(int(value)) == value else value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _is_crowd(value: Any) -> bool:
    return value is True or to_number(value) == 1


def _bound_polygons(polygons: Any) -> Numbers | None:
    """Return the bounding box of polygons as x, y, width, height; None for anything else."""
    if not isinstance(polygons, list) or not polygons:
        return None
    if not isinstance(polygons[0], list):
        polygons = [polygons]
    numbers = [value for polygon in polygons if isinstance(polygon, list) for value in polygon]
    return bound_points(numbers[0::2], numbers[1::2])
