"""Rows of a box and its keypoints: ``class x y width height``, then ``x y`` of each keypoint, with
a visibility of 0, 1 or 2 in most files.

Such a row has the form of a polygon. ``kpt_shape`` in ``data.yaml`` says which it is.
"""

from collections.abc import Sequence

# Keypoints may be this fraction of the box's side outside of it.
_MARGIN = 0.05
_ROUNDING = 1e-3


def fits_pose(numbers: Sequence[float]) -> bool:
    """Return whether the first four numbers are a box within the image that contains the rest."""
    x, y, width, height = numbers[:4]
    if width <= 0 or height <= 0:
        return False
    left, right = x - width / 2, x + width / 2
    top, bottom = y - height / 2, y + height / 2
    if min(left, top) < -_ROUNDING or max(right, bottom) > 1 + _ROUNDING:
        return False
    area = (
        left - _MARGIN * width,
        top - _MARGIN * height,
        right + _MARGIN * width,
        bottom + _MARGIN * height,
    )
    return any(_are_keypoints(numbers[4:], size, area) for size in (2, 3))


def fits_polygon(numbers: Sequence[float]) -> bool:
    """Return whether all numbers can be corners within the image."""
    return all(-_ROUNDING <= number <= 1 + _ROUNDING for number in numbers)


def _are_keypoints(
    numbers: Sequence[float], size: int, area: tuple[float, float, float, float]
) -> bool:
    if len(numbers) % size:
        return False
    left, top, right, bottom = area
    for at in range(0, len(numbers), size):
        x, y = numbers[at : at + 2]
        is_visible = size == 2 or numbers[at + 2] > 0
        if size == 3 and not 0 <= numbers[at + 2] <= 2:
            return False
        # Keypoints that are not labeled are at 0, 0.
        if (x or y) and is_visible and not (left <= x <= right and top <= y <= bottom):
            return False
    return True
