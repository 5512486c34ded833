"""Bounding boxes of the shapes that annotation tools draw. Lengths are in pixels."""

import math
from collections.abc import Sequence
from typing import Any

from runyard.datasets.readers.boxes import to_number
from runyard.datasets.records import Box


def to_numbers(values: Any, count: int | None = None) -> list[float] | None:
    """Convert a list of numbers; None if one is missing, or if there are not ``count``."""
    if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
        return None
    numbers = [to_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def to_points(values: Any) -> list[tuple[float, float]] | None:
    """Convert a list of [x, y] pairs; None for anything else."""
    if not isinstance(values, list):
        return None
    points = [to_numbers(value, 2) for value in values]
    if None in points:
        return None
    return [(point[0], point[1]) for point in points if point is not None]


def pair_numbers(numbers: Sequence[float]) -> list[tuple[float, float]] | None:
    """Convert x1, y1, x2, y2, ... to points; None if a number has no partner."""
    if len(numbers) % 2:
        return None
    return list(zip(numbers[0::2], numbers[1::2], strict=True))


def bound_points(points: Sequence[tuple[float, float]]) -> Box:
    """Return the bounding box of points, at least one.

    A coordinate that is not a number stays one, so that it is reported.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if any(map(math.isnan, (*xs, *ys))):
        return math.nan, math.nan, math.nan, math.nan
    return min(xs), min(ys), max(xs), max(ys)


def bound_polygon(points: Sequence[tuple[float, float]] | None) -> Box | None:
    """Return the bounding box of a polygon; None if it has fewer than three points."""
    return bound_points(points) if points is not None and len(points) >= 3 else None


def bound_ellipse(
    center: tuple[float, float], radii: tuple[float, float], radians: float = 0.0
) -> Box:
    """Return the bounding box of an ellipse, which may be rotated around its center."""
    x, y = center
    if not math.isfinite(radians):
        return math.nan, math.nan, math.nan, math.nan
    cosine, sine = math.cos(radians), math.sin(radians)
    width = math.hypot(radii[0] * cosine, radii[1] * sine)
    height = math.hypot(radii[0] * sine, radii[1] * cosine)
    return x - width, y - height, x + width, y + height


def rotate_rectangle(box: Box, radians: float, pivot: tuple[float, float]) -> Box:
    """Return the bounding box of a rectangle that is rotated around a point."""
    if radians == 0:
        return box
    if not all(map(math.isfinite, (*box, radians))):
        return math.nan, math.nan, math.nan, math.nan
    cosine, sine = math.cos(radians), math.sin(radians)
    xmin, ymin, xmax, ymax = box
    corners = []
    for x, y in ((xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax)):
        right, down = x - pivot[0], y - pivot[1]
        corners.append(
            (pivot[0] + right * cosine - down * sine, pivot[1] + right * sine + down * cosine)
        )
    return bound_points(corners)


def find_center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
