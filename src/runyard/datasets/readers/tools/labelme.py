"""The LabelMe reader: one JSON file per image, with shapes in pixels.

The file usually embeds its image as base64. The embedded image is used if there is no image file.
"""

import base64
import binascii
import math
import posixpath
from collections.abc import Iterator
from typing import Any

from runyard.datasets.findings import ReportFinding
from runyard.datasets.images import ENDINGS, detect_mime
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_size
from runyard.datasets.readers.json_stream import MalformedJson, iter_members
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.tools.geometry import (
    bound_ellipse,
    bound_points,
    bound_polygon,
    to_points,
)
from runyard.datasets.readers.tools.json_files import report_malformed
from runyard.datasets.readers.tools.own_images import find_own_image
from runyard.datasets.readers.tools.shapes import IgnoredAnnotations, ImageShapes
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

OTHER_SHAPES = ("point", "points", "line", "linestrip", "mask")
SIBLINGS = ("imagePath", "imageData", "imageHeight", "imageWidth")


class LabelMeReader:
    """The reader of one JSON file per image; see ``base.Reader``."""

    name = "LabelMe"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_labelme(sniff_json(source, path))]

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
                row = _read_file(source, path, ignored)
            except MalformedJson as error:
                report_malformed(error, path, report)
                continue
            if row is not None:
                yield row
        ignored.report(report)


def _is_labelme(form: JsonForm | None) -> bool:
    if form is None or form.is_array or form.is_lines:
        return False
    if "shapes" in form.keys and any(key in form.keys for key in SIBLINGS):
        return True
    # A key may start after the first MiB: behind an embedded image, or behind many shapes.
    shape = form.first.get("shapes")
    has_shape = isinstance(shape, dict) and "points" in shape and "label" in shape
    return has_shape or (form.keys[-1:] == ("imageData",) and "imageData" not in form.values)


def _read_file(source: Source, path: str, ignored: IgnoredAnnotations) -> Row | None:
    shapes = ImageShapes(path)
    values: dict[str, Any] = {}
    with open_text(source, path) as file:
        for key, number, value in iter_members(file, ("shapes",)):
            if number is not None:
                _add_shape(shapes, f"shapes[{number}]", value, ignored)
            elif key in SIBLINGS:
                values[key] = value
            elif key == "flags" and isinstance(value, dict) and any(value.values()):
                ignored.count("flags of whole images", file=path, field="flags")
            elif key == "shapes":
                shapes.reject("FieldInvalid", "it must be a list", field="shapes", value=value)
    name, is_certain = _find_image(source, path, values, shapes)
    return shapes.build_row(
        source,
        name,
        frame=parse_size(values.get("imageWidth"), values.get("imageHeight")),
        is_name_certain=is_certain,
    )


def _find_image(
    source: Source, path: str, values: dict[str, Any], shapes: ImageShapes
) -> tuple[str, bool]:
    """Return the image's name and whether it is certain; add the embedded image if needed."""
    named = values.get("imagePath")
    named = named if isinstance(named, str) else ""
    image = find_own_image(source, path, named, field="imagePath")
    if image.finding:
        shapes.findings.append(image.finding)
        return image.name, False
    embedded = values.get("imageData")
    if embedded and source.find_image(image.name, relative_to=path) is None:
        name = _add_embedded(source, path, embedded, shapes)
        return name or image.name, name is not None
    return image.name, True


def _add_embedded(source: Source, path: str, embedded: Any, shapes: ImageShapes) -> str | None:
    """Add the embedded image with the file's own name; return it, or None with a finding."""
    try:
        data = base64.b64decode(embedded, validate=True) if isinstance(embedded, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    mime = detect_mime(data[:16])
    ending = next((name for name, known in ENDINGS.items() if known == mime), None)
    if ending is None:
        cause = "no image file was found, and the embedded image cannot be decoded"
        fix = "add the image file, or save the file in LabelMe again"
        shapes.reject("ImageMissing", cause, field="imageData", fix=fix)
        return None
    name = f"{posixpath.splitext(path)[0]}.{ending}"
    if source.add_image(name, data, found_in=path) is None:
        cause = "no image file was found, and the embedded image was rejected"
        shapes.reject("ImageMissing", cause, field="imageData")
        return None
    return name


def _add_shape(shapes: ImageShapes, where: str, shape: Any, ignored: IgnoredAnnotations) -> None:
    if not isinstance(shape, dict):
        shapes.reject("RowInvalid", "the shape is not an object", field=where, value=shape)
        return
    kind = shape.get("shape_type") or "polygon"  # files of LabelMe 3 do not say
    if kind in OTHER_SHAPES:
        ignored.count(f"shapes of type {kind}", file=shapes.path, field=where)
    elif kind not in ("rectangle", "polygon", "circle", "oriented_rectangle", "rotation"):
        cause = "this type of shape is not known"
        shapes.reject("FieldInvalid", cause, field=f"{where}.shape_type", value=kind)
    else:
        box = _bound_shape(kind, shape.get("points"))
        needs = f"the points of a {kind}"
        shapes.add(shape.get("label"), box, field=f"{where}.points", what=needs)


def _bound_shape(kind: str, values: Any) -> Box | None:
    points = to_points(values)
    if not points:
        return None
    if kind == "rectangle":
        return bound_points(points) if len(points) in (2, 4) else None
    if kind == "circle":
        if len(points) != 2:
            return None
        radius = math.dist(*points)
        return bound_ellipse(points[0], (radius, radius))
    return bound_polygon(points)
