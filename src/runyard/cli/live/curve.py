"""A curve drawn with characters: dots of two by four in a braille character, or plain text.

Pure functions. Of many points in one column, the lowest and the highest are both drawn, so that a
spike never disappears.
"""

from collections.abc import Sequence
from math import isfinite

Point = tuple[float, float]

_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, then by row


def draw_curve(
    points: Sequence[Point], *, width: int, height: int, is_plain: bool = False
) -> list[str]:
    """Return ``height`` lines of at most ``width`` characters, with a scale on the left.

    ``is_plain`` uses only characters that every encoding has.
    """
    known = [(x, y) for x, y in points if isfinite(x) and isfinite(y)]
    if not known or width < 16 or height < 2:
        return ["no values yet"] + [""] * (height - 1)
    low, high = min(y for _, y in known), max(y for _, y in known)
    labels = [f"{high:.4g}"] + [""] * (height - 2) + [f"{low:.4g}"]
    left = max(map(len, labels))
    columns = width - left - 2
    across, down = (1, 1) if is_plain else (2, 4)
    dots = _place_dots(known, columns=columns * across, rows=height * down)
    border = "|" if is_plain else "│"
    lines = []
    for row in range(height):
        characters = [
            _pick_character(dots, column, row, is_plain=is_plain) for column in range(columns)
        ]
        lines.append(f"{labels[row]:>{left}} {border}{''.join(characters)}".rstrip())
    return lines


def _place_dots(points: Sequence[Point], *, columns: int, rows: int) -> set[Point]:
    """Return the dots of the curve, connected from column to column; row 0 is the top."""
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    ends: dict[int, tuple[int, int]] = {}
    for x, y in sorted(points):
        column = 0 if last == first else round((columns - 1) * (x - first) / (last - first))
        row = rows // 2 if high == low else round((rows - 1) * (high - y) / (high - low))
        top, bottom = ends.get(column, (row, row))
        ends[column] = (min(top, row), max(bottom, row))
    dots: set[Point] = set()
    earlier: tuple[int, int, int] | None = None
    for column, (top, bottom) in sorted(ends.items()):
        dots |= {(column, row) for row in range(top, bottom + 1)}
        middle = (top + bottom) / 2
        if earlier is not None:
            dots |= _connect(earlier, column, middle)
        earlier = (column, top, bottom)
    return dots


def _connect(earlier: tuple[int, int, int], column: int, row: float) -> set[Point]:
    """Return the dots of a line from the middle of an earlier column."""
    start, top, bottom = earlier
    middle = (top + bottom) / 2
    gap = column - start
    return {(start + step, round(middle + (row - middle) * step / gap)) for step in range(1, gap)}


def _pick_character(dots: set[Point], column: int, row: int, *, is_plain: bool) -> str:
    if is_plain:
        return "*" if (column, row) in dots else " "
    bits = sum(
        _DOTS[x][y] for x in range(2) for y in range(4) if (column * 2 + x, row * 4 + y) in dots
    )
    return chr(_BRAILLE + bits) if bits else " "
