"""Projects of VGG Image Annotator 3: files, views, and regions that refer to them by number.

Regions of one image may be anywhere in the file. They are collected before the first row is built.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.json_stream import MalformedJson, iter_members
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.sniffing import JsonForm
from runyard.datasets.readers.tools.geometry import (
    bound_ellipse,
    bound_points,
    bound_polygon,
    pair_numbers,
    to_numbers,
)
from runyard.datasets.readers.tools.shapes import IgnoredAnnotations, ImageShapes, choose_name
from runyard.datasets.readers.tools.via_attributes import choose_attribute
from runyard.datasets.records import Box
from runyard.datasets.sources import Source

KEYS = {"attribute", "file", "metadata", "view"}
REGIONS = "metadata"
MAX_REGIONS = 200_000
# The first number of a region is its shape.
RECTANGLE, CIRCLE, ELLIPSE, POLYGON, EXTREME_RECTANGLE = 2, 3, 4, 7, 8
OTHER_SHAPES = {1: "point", 5: "line", 6: "polyline", 9: "extreme circle"}


@dataclass
class _Project:
    """The parts of a project that are not regions, unchecked."""

    attributes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)  # attributes that regions have


def is_via3(form: JsonForm | None) -> bool:
    """Return whether a JSON file is a project of version 3."""
    return form is not None and not form.is_array and set(form.keys) >= KEYS


def read_via3(
    source: Source, path: str, report: ReportFinding, ignored: IgnoredAnnotations
) -> Iterator[Row]:
    """Yield the rows of a project.

    Raises MalformedJson, AttributeUnclear.
    """
    project = _read_project(source, path)
    used = {key: _get(project.attributes, key).get("aname") for key in project.used}
    chosen = choose_attribute([name for name in used.values() if isinstance(name, str)])
    attribute = next((key for key, name in used.items() if name == chosen), "")
    images: dict[str, ImageShapes] = {}
    for number, (key, region) in enumerate(_iter_regions(source, path)):
        if number >= MAX_REGIONS:
            raise MalformedJson(f"it has more than {MAX_REGIONS:,} regions", 1)
        where = f"{REGIONS}.{key}"
        values = region if isinstance(region, dict) else {}
        if not isinstance(values.get("xy"), list) or "vid" not in values:
            cause = "a region needs 'vid' and 'xy'"
            report(make_finding("RowInvalid", file=path, field=where, cause=cause, value=region))
        elif values.get("z") or not values["xy"]:
            kind = "annotations of time segments, or of whole files"
            ignored.count(kind, file=path, field=where)
        else:
            shapes = images.setdefault(str(values["vid"]), ImageShapes(path))
            classes = _list_classes(project, attribute, values.get("av"))
            _add_region(shapes, where, values["xy"], classes, ignored)
    for view, shapes in images.items():
        names = _list_names(project, view)
        if not names:
            where, cause = f"view.{view}", "the view has no file with a name"
            report(make_finding("FieldMissing", file=path, field=where, cause=cause))
            continue
        name = choose_name(source, path, names)
        row = shapes.build_row(source, name, frame=None, field=f"view.{view}")
        if row is not None:
            yield row


def _read_project(source: Source, path: str) -> _Project:
    project = _Project()
    with open_text(source, path) as file:
        for key, name, value in iter_members(file, (REGIONS,)):
            if key == REGIONS and name is not None:
                values = value.get("av") if isinstance(value, dict) else None
                used = values if isinstance(values, dict) else {}
                project.used.update(dict.fromkeys(one for one in used if used[one] != ""))
            elif key in KEYS and isinstance(value, dict):
                setattr(project, f"{key}s", value)
    return project


def _iter_regions(source: Source, path: str) -> Iterator[tuple[int | str, Any]]:
    with open_text(source, path) as file:
        for key, name, value in iter_members(file, (REGIONS,)):
            if key == REGIONS:
                yield "" if name is None else name, value


def _get(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _list_classes(project: _Project, attribute: str, values: Any) -> list[Any]:
    """List the classes of a region: a text, or the texts of its options."""
    value = values.get(attribute) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value.strip():
        return [None]
    options = _get(_get(project.attributes, attribute), "options")
    if value in options or not options:
        return [options.get(value, value)]
    return [options.get(one.strip()) for one in value.split(",")]  # several check boxes


def _list_names(project: _Project, view: str) -> list[str]:
    """List the names of the one file that a view shows."""
    keys = _get(project.views, view).get("fid_list")
    key = str(keys[0]) if isinstance(keys, list) and len(keys) == 1 else view
    file = _get(project.files, key)
    return [name for name in (file.get("fname"), file.get("src")) if isinstance(name, str) and name]


def _add_region(
    shapes: ImageShapes,
    where: str,
    xy: list[Any],
    classes: list[Any],
    ignored: IgnoredAnnotations,
) -> None:
    kind = OTHER_SHAPES.get(xy[0]) if isinstance(xy[0], int) else None
    if kind is not None:
        ignored.count(f"regions of type {kind}", file=shapes.path, field=where)
        return
    box = _bound_shape(xy)
    for name in classes:
        shapes.add(name, box, field=f"{where}.xy", what="a known shape and its coordinates")


def _bound_shape(xy: list[Any]) -> Box | None:
    numbers = to_numbers(xy[1:])
    if numbers is None:
        return None
    if xy[0] == RECTANGLE and len(numbers) == 4:
        x, y, width, height = numbers
        return x, y, x + width, y + height
    if xy[0] == CIRCLE and len(numbers) == 3:
        return bound_ellipse((numbers[0], numbers[1]), (numbers[2], numbers[2]))
    if xy[0] == ELLIPSE and len(numbers) == 4:
        return bound_ellipse((numbers[0], numbers[1]), (numbers[2], numbers[3]))
    points = pair_numbers(numbers)
    if xy[0] == POLYGON:
        return bound_polygon(points)
    return bound_points(points) if xy[0] == EXTREME_RECTANGLE and points else None
