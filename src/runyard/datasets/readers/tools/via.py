"""The reader of VGG Image Annotator (VIA): regions in pixels, with free attributes.

This module reads versions 1 and 2, and ``via3`` projects of version 3. A file is streamed twice:
for the attribute that is the class, then for the regions.
"""

from collections.abc import Iterator
from typing import Any

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import to_number
from runyard.datasets.readers.json_stream import MalformedJson, iter_members
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.tools.geometry import (
    bound_ellipse,
    bound_polygon,
    to_numbers,
)
from runyard.datasets.readers.tools.json_files import has_keys, report_malformed
from runyard.datasets.readers.tools.shapes import IgnoredAnnotations, ImageShapes
from runyard.datasets.readers.tools.via3 import is_via3, read_via3
from runyard.datasets.readers.tools.via_attributes import (
    AttributeUnclear,
    choose_attribute,
    report_unclear,
)
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

PROJECT = "_via_img_metadata"  # the key of the images in a project file
OTHER_KEYS = (  # of a project file
    "_via_settings",
    "_via_attributes",
    "_via_data_format_version",
    "_via_image_id_list",
)
MAX_ATTRIBUTES = 1000
NEEDS = {
    "rect": "x, y, width and height",
    "polygon": "all_points_x and all_points_y of at least three points",
    "circle": "cx, cy and r",
    "ellipse": "cx, cy, rx and ry",
}


class ViaReader:
    """The reader of annotations and projects of VIA; see ``base.Reader``."""

    name = "Via"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_via(sniff_json(source, path))]

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
                if is_via3(sniff_json(source, path)):
                    yield from read_via3(source, path, report, ignored)
                else:
                    attribute = choose_attribute(_list_attributes(source, path))
                    yield from _read_rows(source, path, attribute, report, ignored)
            except MalformedJson as error:
                report_malformed(error, path, report)
            except AttributeUnclear as error:
                report_unclear(error, path, report)
        ignored.report(report)


def _is_via(form: JsonForm | None) -> bool:
    if form is None or form.is_array:
        return False
    if PROJECT in form.keys or is_via3(form):
        return True
    return bool(form.keys) and has_keys(form.values.get(form.keys[0]), "filename", "regions")


def _iter_images(source: Source, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every image's entry with its field."""
    with open_text(source, path) as file:
        for key, name, value in iter_members(file, (PROJECT,)):
            if name is not None:
                yield f"{key}.{name}", value
            elif key not in OTHER_KEYS:
                yield key, value


def _list_regions(entry: Any) -> list[tuple[str, Any]] | None:
    """List the regions of an image with their keys, which VIA 1 wrote as an object."""
    regions = entry.get("regions") if isinstance(entry, dict) else None
    if isinstance(regions, dict):
        return [(f"regions.{key}", region) for key, region in regions.items()]
    if isinstance(regions, list):
        return [(f"regions[{number}]", region) for number, region in enumerate(regions)]
    return None


def _get_attributes(region: Any) -> dict[str, Any]:
    attributes = region.get("region_attributes") if isinstance(region, dict) else None
    return attributes if isinstance(attributes, dict) else {}


def _list_attributes(source: Source, path: str) -> list[str]:
    """List the attributes that have a value in some region."""
    known: dict[str, None] = {}
    for _, entry in _iter_images(source, path):
        for _, region in _list_regions(entry) or ():
            for name, value in _get_attributes(region).items():
                if _list_classes(value) and len(known) < MAX_ATTRIBUTES:
                    known[name] = None
    return list(known)


def _list_classes(value: Any) -> list[str]:
    """List the classes of an attribute's value: a text, or a check box for each class."""
    if isinstance(value, dict):
        return [name for name, is_checked in value.items() if is_checked and name.strip()]
    return [value] if isinstance(value, str) and value.strip() else []


def _read_rows(
    source: Source,
    path: str,
    attribute: str | None,
    report: ReportFinding,
    ignored: IgnoredAnnotations,
) -> Iterator[Row]:
    for where, entry in _iter_images(source, path):
        regions = _list_regions(entry)
        name = entry.get("filename") if isinstance(entry, dict) else None
        if regions is None or not isinstance(name, str) or not name:
            cause = "an image needs a filename and its regions"
            report(make_finding("RowInvalid", file=path, field=where, cause=cause, value=entry))
            continue
        shapes = ImageShapes(path)
        for key, region in regions:
            _add_region(shapes, f"{where}.{key}", region, attribute, ignored)
        row = shapes.build_row(source, name, frame=None, field=where)
        if row is not None:
            yield row


def _add_region(
    shapes: ImageShapes,
    where: str,
    region: Any,
    attribute: str | None,
    ignored: IgnoredAnnotations,
) -> None:
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not has_keys(shape, "name"):
        cause = "the region has no shape with a name"
        shapes.reject("FieldMissing", cause, field=f"{where}.shape_attributes", value=region)
        return
    kind = str(shape["name"])
    if kind in ("point", "line", "polyline"):
        ignored.count(f"regions of type {kind}", file=shapes.path, field=where)
    elif kind not in NEEDS:
        field = f"{where}.shape_attributes.name"
        shapes.reject("FieldInvalid", "this type of shape is not known", field=field, value=kind)
    else:
        box = _bound_shape(kind, shape)
        value = _get_attributes(region).get(attribute or "")
        classes: list[str | None] = [*_list_classes(value)]
        for name in classes or [None]:
            shapes.add(name, box, field=f"{where}.shape_attributes", what=NEEDS[kind])


def _bound_shape(kind: str, shape: dict[str, Any]) -> Box | None:
    if kind == "polygon":
        xs, ys = to_numbers(shape.get("all_points_x")), to_numbers(shape.get("all_points_y"))
        if xs is None or ys is None or len(xs) != len(ys):
            return None
        return bound_polygon(list(zip(xs, ys, strict=True)))
    if kind == "rect":
        numbers = to_numbers([shape.get(key) for key in ("x", "y", "width", "height")])
        if numbers is None:
            return None
        x, y, width, height = numbers
        return x, y, x + width, y + height
    radii = ("r", "r") if kind == "circle" else ("rx", "ry")
    numbers = to_numbers([shape.get(key) for key in ("cx", "cy", *radii)])
    if numbers is None:
        return None
    radians = to_number(shape.get("theta", 0)) or 0.0
    return bound_ellipse((numbers[0], numbers[1]), (numbers[2], numbers[3]), radians)
