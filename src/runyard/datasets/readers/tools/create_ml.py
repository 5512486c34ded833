"""The CreateML reader: one JSON array, with an element for each image.

Apple's Create ML writes the center of a box with its width and height, in pixels.
"""

from collections.abc import Iterator
from typing import Any

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.json_stream import MalformedJson, iter_items
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.tools.geometry import to_numbers
from runyard.datasets.readers.tools.json_files import has_keys, report_malformed
from runyard.datasets.readers.tools.shapes import ImageShapes
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

# Apple's documentation has both pairs of names.
IMAGES = ("image", "imagefilename")
ANNOTATIONS = ("annotations", "annotation")
SIDES = ("x", "y", "width", "height")


class CreateMlReader:
    """The reader of Create ML's object detection JSON; see ``base.Reader``."""

    name = "CreateMl"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_create_ml(sniff_json(source, path))]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        for path in files:
            try:
                with open_text(source, path) as file:
                    for number, item in iter_items(file):
                        row = _build_row(source, path, f"[{number}]", item, report)
                        if row is not None:
                            yield row
            except MalformedJson as error:
                report_malformed(error, path, report)


def _is_create_ml(form: JsonForm | None) -> bool:
    if form is None or not form.is_array or not any(key in form.keys for key in IMAGES):
        return False
    for key in ANNOTATIONS:
        if form.values.get(key) == [] and len(form.keys) == 2:  # an image without objects
            return True
        if has_keys(form.first.get(key), "coordinates"):
            return True
    return False


def _build_row(
    source: Source, path: str, where: str, item: Any, report: ReportFinding
) -> Row | None:
    values = item if isinstance(item, dict) else {}
    name = _get_first(values, IMAGES)
    annotations = _get_first(values, ANNOTATIONS)
    if not isinstance(name, str) or not name or not isinstance(annotations, list):
        cause = "an element needs an image name and a list of annotations"
        report(make_finding("RowInvalid", file=path, field=where, cause=cause, value=item))
        return None
    shapes = ImageShapes(path)
    for number, annotation in enumerate(annotations):
        _add_annotation(shapes, f"{where}.annotations[{number}]", annotation)
    return shapes.build_row(source, name, frame=None, field=where)


def _add_annotation(shapes: ImageShapes, where: str, annotation: Any) -> None:
    if not has_keys(annotation, "coordinates"):
        cause = "the annotation has no 'coordinates'"
        shapes.reject("FieldMissing", cause, field=f"{where}.coordinates", value=annotation)
        return
    box = _parse_box(annotation["coordinates"])
    field = f"{where}.coordinates"
    shapes.add(annotation.get("label"), box, field=field, what="x, y, width and height")


def _parse_box(coordinates: Any) -> Box | None:
    if not isinstance(coordinates, dict):
        return None
    numbers = to_numbers([coordinates.get(side) for side in SIDES])
    if numbers is None:
        return None
    x, y, width, height = numbers
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _get_first(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if name in values), None)
