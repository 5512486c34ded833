"""The Label Studio reader: exports as JSON and JSON-MIN, in percent of the image.

A task has an annotation for each annotator. Annotations are never merged: the one marked as ground
truth is used, else the first, and the rest is reported. Predictions and canceled annotations are
not used.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.images import is_image_name
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import find_image_size, parse_size, to_number
from runyard.datasets.readers.json_stream import MalformedJson, iter_items, iter_members
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.tools.geometry import (
    bound_ellipse,
    bound_polygon,
    rotate_rectangle,
    to_numbers,
    to_points,
)
from runyard.datasets.readers.tools.json_files import has_keys, report_malformed
from runyard.datasets.readers.tools.shapes import IgnoredAnnotations, ImageShapes, choose_name
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

IMAGE_KEYS = ("image", "img", "image_url", "photo")
RESULTS = ("annotations", "completions")  # the latter until version 1.0
MIN_KEYS = ("annotation_id", "annotator", "lead_time", "created_at", "updated_at")
SHAPES = {
    "rectanglelabels": "rectangle",
    "polygonlabels": "polygon",
    "ellipselabels": "ellipse",
}
OTHER_LABELS = ("brushlabels", "keypointlabels", "bitmasklabels", "vectorlabels")
NEEDS = {
    "rectangle": "x, y, width and height in percent",
    "polygon": "at least three points in percent",
    "ellipse": "x, y, radiusX and radiusY in percent",
}
GEOMETRY = ("x", "y", "width", "height", "points", "radiusX", "radiusY")
ONE_OF_SEVERAL = "mark one annotation as ground truth, or delete the others before the export"
_UPLOAD = re.compile(r"/data/upload/(?:.*/)?([^/]+)$")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


class LabelStudioReader:
    """The reader of Label Studio's JSON exports; see ``base.Reader``."""

    name = "LabelStudio"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_label_studio(sniff_json(source, path))]

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
                yield from _LabelStudioFile(source, path, report, ignored).read_rows()
            except MalformedJson as error:
                report_malformed(error, path, report)
        ignored.report(report)


def _is_label_studio(form: JsonForm | None) -> bool:
    if form is None or form.is_lines:
        return False
    if form.is_array and "data" in form.keys and any(key in form.keys for key in RESULTS):
        return isinstance(form.values.get("data", {}), dict)
    if form.is_array:
        return _is_min_row(form.keys, form.first)
    return "result" in form.keys and "task" in form.keys


def _is_min_row(keys: tuple[str, ...], first: dict[str, Any]) -> bool:
    """Return whether these are the keys of a JSON-MIN row, or regions of one."""
    if sum(key in keys for key in MIN_KEYS) >= 3:
        return True
    return any(
        has_keys(region, key) for region in first.values() for key in (*SHAPES, *OTHER_LABELS)
    )


class _Region(NamedTuple):
    """One region: its kind such as ``rectangle``, its labels, and its value in percent.

    The image is rotated in the tool by ``image_degrees``.
    """

    field: str
    kind: str
    labels: list[Any]
    value: dict[str, Any]
    frame: tuple[int, int] | None
    image_degrees: float


class _LabelStudioFile:
    """One file being read."""

    def __init__(
        self, source: Source, path: str, report: ReportFinding, ignored: IgnoredAnnotations
    ) -> None:
        self._source, self._path = source, path
        self._report, self._ignored = report, ignored
        self._tasks: set[int | str] = set()  # of the JSON-MIN rows that were read
        self._shared_uploads: set[str] | None = None

    def read_rows(self) -> Iterator[Row]:
        form = sniff_json(self._source, self._path)
        with open_text(self._source, self._path) as file:
            if form is None or form.is_array:
                for number, item in iter_items(file):
                    yield from self._read_item(f"[{number}]", item)
            else:  # one annotation, as written to a target storage
                values = {key: value for key, _, value in iter_members(file)}
                task = values.get("task")
                task = task if isinstance(task, dict) else {}
                yield from self._read_item("task", task | {"annotations": [values]})

    def _read_item(self, where: str, item: Any) -> Iterator[Row]:
        if not isinstance(item, dict):
            cause = "a task must be an object"
            self._refuse("RowInvalid", where, cause, item)
            return
        key = next((key for key in RESULTS if key in item), None)
        if key is None and not isinstance(item.get("data"), dict):
            yield from self._read_min_row(where, item)
            return
        data = item.get("data")
        annotations = item.get(key, []) if key else []
        if not isinstance(data, dict) or not isinstance(annotations, list):
            cause = "a task needs an object 'data' and a list of annotations"
            self._refuse("RowInvalid", where, cause, item)
            return
        if item.get("predictions"):
            self._count("tasks' predictions", f"{where}.predictions")
        chosen = self._choose_annotation(f"{where}.{key}", annotations)
        if chosen is not None:
            at, annotation = chosen
            results = annotation.get("result")
            yield from self._build_row(where, data, at, results, item.get("file_upload"))

    def _choose_annotation(
        self, where: str, annotations: list[Any]
    ) -> tuple[str, dict[str, Any]] | None:
        """Return the annotation to use with its field."""
        usable = []
        for number, annotation in enumerate(annotations):
            at = f"{where}[{number}]"
            if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
                self._refuse("RowInvalid", at, "an annotation needs a list 'result'", annotation)
                return None
            if annotation.get("was_cancelled"):
                self._count("annotations that were canceled (skipped)", at)
            else:
                usable.append((at, annotation))
        marked = [one for one in usable if one[1].get("ground_truth") is True]
        chosen = next(iter(marked or usable), None)
        for one in usable:
            if one is not chosen:
                kind = "annotations of tasks with several, of which only one is used"
                self._count(kind, one[0], ONE_OF_SEVERAL)
        return chosen

    def _read_min_row(self, where: str, item: dict[str, Any]) -> Iterator[Row]:
        """Read one row of JSON-MIN: data and results are its fields."""
        task = item.get("id")
        if isinstance(task, int | str):
            if task in self._tasks:
                kind = "annotations of tasks with several; only the first is used"
                self._count(kind, where, ONE_OF_SEVERAL)
                return
            self._tasks.add(task)
        results: list[Any] = []
        for name, value in item.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                results += value
            elif isinstance(value, dict) or (isinstance(value, list) and value):
                self._count(f"fields {name[:40]!r} without boxes", f"{where}.{name}")
        yield from self._build_row(where, item, where, results, None)

    def _build_row(
        self, where: str, data: dict[str, Any], at: str, results: Any, upload: object
    ) -> Iterator[Row]:
        shapes = ImageShapes(self._path)
        regions = self._parse_results(shapes, at, results)
        if not regions and not shapes.findings:
            return
        key = self._find_image_key(f"{where}.data", data)
        if key is None:
            return
        name = self._choose_name(f"{where}.data.{key}", data[key], upload)
        if name is None:
            return
        frame = next((region.frame for region in regions if region.frame), None)
        size = find_image_size(self._source, name, self._path, frame)
        for region in regions:
            _add_region(shapes, region, size)
        row = shapes.build_row(self._source, name, frame=frame, field=where)
        if row is not None:
            yield row

    def _parse_results(self, shapes: ImageShapes, at: str, results: list[Any]) -> list[_Region]:
        """Return the results that are boxes; count the others."""
        regions: list[_Region] = []
        is_labeled = {
            _get_region_key(result) for result in results if _get_labels(result) is not None
        }
        for number, result in enumerate(results):
            field = f"{at}.result[{number}]"
            if not isinstance(result, dict):
                shapes.reject("RowInvalid", "the result is not an object", field=field)
                continue
            value = _get_value(result)
            kind = _find_kind(result, value)
            labels = _get_labels(result)
            if kind not in NEEDS:
                self._count(f"results of type {kind[:40]}", field)
            elif labels is not None or _get_region_key(result) not in is_labeled:
                # The labels of a region may be a second result with the same id.
                frame = parse_size(result.get("original_width"), result.get("original_height"))
                degrees = to_number(result.get("image_rotation")) or 0.0
                regions.append(_Region(field, kind, labels or [None], value, frame, degrees))
        return regions

    def _find_image_key(self, where: str, data: dict[str, Any]) -> str | None:
        """Return the field of the task's image; report it if there is none, or several."""
        keys = [key for key in IMAGE_KEYS if isinstance(data.get(key), str) and data[key]][:1]
        keys = keys or [key for key, value in data.items() if _is_image(value)]
        if len(keys) == 1 and not data[keys[0]].startswith("data:"):
            return keys[0]
        cause, fix = "the task's data names no image", "add the field 'image' with its name"
        if len(keys) > 1:
            shown = ", ".join(key[:40] for key in keys[:5])
            cause = f"the task's data names {len(keys)} images: {shown}"
            fix = "keep one of the fields, or name it 'image'"
        elif keys:
            cause, fix = "the image is embedded in the task", "save it as a file, and name the file"
        self._refuse("FieldInvalid", where, cause, fix=fix)
        return None

    def _choose_name(self, where: str, value: str, upload: object) -> str | None:
        """Return the image's name; report one that may mean several uploaded images."""
        names = _list_names(value, upload)
        name = choose_name(self._source, self._path, names)
        if name != names[0] and _UPLOAD_PREFIX.match(names[0]) and name in self._list_shared():
            cause = f"several uploaded images are named {name!r} without the prefix of the upload"
            fix = "restore the prefixes that Label Studio gave to the image files"
            self._refuse("ImageAmbiguous", where, cause, names[0], fix)
            return None
        return name

    def _list_shared(self) -> set[str]:
        """List the names that several uploaded images of this file have without their prefix."""
        if self._shared_uploads is None:
            firsts: dict[str, str] = {}
            self._shared_uploads = set()
            form = sniff_json(self._source, self._path)
            if form is not None and not form.is_array:
                return self._shared_uploads
            with open_text(self._source, self._path) as file:
                for _, item in iter_items(file):
                    for upload in _list_uploads(item):
                        name = _UPLOAD_PREFIX.sub("", upload)
                        if firsts.setdefault(name, upload) != upload:
                            self._shared_uploads.add(name)
        return self._shared_uploads

    def _count(self, kind: str, field: str, fix: str | None = None) -> None:
        self._ignored.count(kind, file=self._path, field=field, fix=fix)

    def _refuse(
        self, code: str, field: str, cause: str, value: object = None, fix: str | None = None
    ) -> None:
        self._report(
            make_finding(code, file=self._path, field=field, cause=cause, value=value, fix=fix)
        )


def _get_value(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result's value, which JSON-MIN writes into the result itself."""
    value = result.get("value")
    return value if isinstance(value, dict) else result


def _get_labels(result: Any) -> list[Any] | None:
    value = _get_value(result) if isinstance(result, dict) else {}
    found = next((value[key] for key in (*SHAPES, "labels") if value.get(key)), None)
    return found if isinstance(found, list) or found is None else [found]


def _get_region_key(result: Any) -> str:
    """Return what two results about the same region have in common."""
    if not isinstance(result, dict):
        return ""
    if "id" in result:
        return str(result["id"])
    value = _get_value(result)
    return repr([value.get(key) for key in GEOMETRY])


def _find_kind(result: dict[str, Any], value: dict[str, Any]) -> str:
    """Return the kind of shape, or the type of a result that is none."""
    kind = str(result.get("type", "labels"))
    if kind != "labels":
        return SHAPES.get(kind, kind)
    if "radiusX" in value:
        return "ellipse"
    if "points" in value:
        return "polygon"
    other = next((key for key in OTHER_LABELS if key in value), None)
    return (
        "rectangle" if other is None and "width" in value and "height" in value else other or kind
    )


def _is_image(value: object) -> bool:
    if not isinstance(value, str):
        return False
    return is_image_name(value) or is_image_name(value.partition("?")[0])


def _list_names(value: str, upload: object) -> list[str]:
    """List the names that a task's image may have on disk.

    An uploaded image has a prefix of 8 hexadecimal digits, which its source has not. The folders
    above it are the server's.
    """
    found = _UPLOAD.search(value.partition("?")[0])
    names = [unquote(found[1])] if found else [value]
    if isinstance(upload, str) and upload:
        names.append(upload)
    if found or len(names) > 1:
        names.append(_UPLOAD_PREFIX.sub("", names[-1]))
    return list(dict.fromkeys(names))


def _list_uploads(item: Any) -> list[str]:
    """List the names of uploaded images in a task, with their prefixes."""
    data = item.get("data", item) if isinstance(item, dict) else {}
    values = data.values() if isinstance(data, dict) else ()
    found = [_UPLOAD.search(value.partition("?")[0]) for value in values if isinstance(value, str)]
    return [unquote(match[1]) for match in found if match]


def _add_region(shapes: ImageShapes, region: _Region, size: tuple[int, int]) -> None:
    if region.image_degrees:
        cause = "the image was rotated in Label Studio, and boxes may be in either frame"
        fix = "set the rotation of the image to 0 in Label Studio, and correct its boxes"
        field, value = f"{region.field}.image_rotation", region.image_degrees
        shapes.reject("FieldInvalid", cause, field=field, value=value, fix=fix)
        return
    box = _bound_region(region.kind, region.value, size)
    for label in region.labels:
        shapes.add(label, box, field=f"{region.field}.value", what=NEEDS[region.kind])


def _bound_region(kind: str, value: dict[str, Any], size: tuple[int, int]) -> Box | None:
    """Return the bounding box of a region in pixels."""
    x_scale, y_scale = size[0] / 100, size[1] / 100
    if kind == "polygon":
        points = to_points(value.get("points"))
        return bound_polygon(points and [(x * x_scale, y * y_scale) for x, y in points])
    sides = ("radiusX", "radiusY") if kind == "ellipse" else ("width", "height")
    numbers = to_numbers([value.get("x"), value.get("y"), *(value.get(side) for side in sides)])
    if numbers is None:
        return None
    x, y = numbers[0] * x_scale, numbers[1] * y_scale
    across, down = numbers[2] * x_scale, numbers[3] * y_scale
    radians = math.radians(to_number(value.get("rotation")) or 0.0)
    if kind == "ellipse":
        return bound_ellipse((x, y), (across, down), radians)
    # It is rotated around its first corner.
    return rotate_rectangle((x, y, x + across, y + down), radians, (x, y))
