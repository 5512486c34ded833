"""One line of a YOLO label file: the class, as number or name, and the numbers of its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.readers.boxes import parse_number
from runyard.datasets.readers.text_labels.class_lists import ClassNames
from runyard.datasets.readers.text_labels.poses import fits_polygon, fits_pose
from runyard.datasets.readers.text_labels.text_kinds import MAX_NAME_WORDS, MIN_POSE_NUMBERS
from runyard.datasets.readers.text_labels.words import (
    has_decimal_comma,
    parse_whole,
    split_words,
)
from runyard.datasets.records import Box

COLUMNS = ("class", "x", "y", "width", "height")
_POSE_FIX = (
    "add kpt_shape to data.yaml, such as 'kpt_shape: [17, 3]', if these are keypoints; or "
    "'task: segment' if they are polygons"
)


@dataclass(frozen=True)
class RowLayout:
    """What the numbers after the class mean, beyond what a row says itself.

    ``keypoints`` is ``kpt_shape``. ``is_likely_pose`` means that all rows of the dataset have the
    same count of numbers, and that all fit a box with keypoints.
    """

    keypoints: tuple[int, int] | None = None
    is_segmentation: bool = False
    is_likely_pose: bool = False


class LabelLine(NamedTuple):
    """A line that could be read. ``confidence`` is the number after the shape, if any."""

    name: str
    box: Box
    confidence: float | None


class _LineInvalid(Exception):
    """The line cannot be read; the arguments are those of its finding."""

    def __init__(
        self, code: str, field: str | None, cause: str, value: object, fix: str | None = None
    ) -> None:
        super().__init__(cause)
        self.code, self.field, self.cause, self.value, self.fix = code, field, cause, value, fix


def parse_line(
    path: str, number: int, line: bytes, names: ClassNames, layout: RowLayout
) -> LabelLine | Finding | None:
    """Parse a line; return None if it is blank or a comment."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        cause = f"byte {error.start + 1} of the line is not UTF-8"
        return make_finding("EncodingWrong", file=path, line=number, cause=cause)
    words = split_words(text)
    if not words:
        return None
    try:
        name, numbers = _split_class(words, names)
        box, confidence = _read_shape(numbers, words, layout)
    except _LineInvalid as invalid:
        return make_finding(
            invalid.code,
            file=path,
            line=number,
            field=invalid.field,
            cause=invalid.cause,
            value=invalid.value,
            fix=invalid.fix,
        )
    return LabelLine(name, box, confidence)


# The class ----------------------------------------------------------------------------------------


def _split_class(words: list[str], names: ClassNames) -> tuple[str, list[float]]:
    """Return the name of the class and the numbers after it."""
    after = [parse_number(word) for word in words[1:]]
    if None not in after and parse_number(words[0]) is not None:
        if len(words) < 5:
            raise _make_count_invalid(words)
        return _find_class(words[0], names), [one for one in after if one is not None]
    found = _split_name(words, after, names)
    if found is not None:
        return found
    if parse_number(words[0]) is not None:
        index = after.index(None)
        word = words[index + 1]
        cause = "decimals need a point" if has_decimal_comma(word) else "not a number"
        field = COLUMNS[index + 1] if index < 4 else None
        raise _LineInvalid("FieldInvalid", field, cause, word)
    count = _count_last_numbers(after)
    name = " ".join(words[: len(words) - count])
    if count < 4:
        cause = "expected a class and at least 4 numbers"
        raise _LineInvalid("RowInvalid", None, cause, " ".join(words))
    cause = f"no class has the name {name!r}: {names.describe()}"
    raise _LineInvalid("ClassUnknown", "class", cause, name)


def _find_class(word: str, names: ClassNames) -> str:
    number = parse_whole(word)
    if number is None:
        raise _LineInvalid("FieldInvalid", "class", "the class is not a whole number from 0", word)
    if number not in names.by_number:
        cause = f"there is no class {number}: {names.describe()}"
        raise _LineInvalid("ClassUnknown", "class", cause, word)
    return names.by_number[number]


def _split_name(
    words: list[str], after: Sequence[float | None], names: ClassNames
) -> tuple[str, list[float]] | None:
    """Find a name of the list at the beginning of the line, with numbers after it.

    A name may have spaces and numbers, such as ``type 2``.
    """
    found: list[tuple[str, list[float]]] = []
    count_numbers = _count_last_numbers(after)
    for count in range(min(len(words) - 4, MAX_NAME_WORDS), 0, -1):
        if len(words) - count > count_numbers:
            break
        name = names.find(" ".join(words[:count]).strip("'\""))
        if name is not None:
            numbers = [number for number in after[count - 1 :] if number is not None]
            found.append((name, numbers))
    if len(found) > 1:
        shown = " or ".join(repr(name) for name, _ in found[:2])
        cause = f"the class may be {shown}: write its number"
        raise _LineInvalid("RowInvalid", "class", cause, " ".join(words))
    return found[0] if found else None


def _count_last_numbers(numbers: Sequence[float | None]) -> int:
    """Return how many numbers there are after the last word that is none."""
    return next((at for at, one in enumerate(reversed(numbers)) if one is None), len(numbers))


# The shape ----------------------------------------------------------------------------------------


def _read_shape(
    numbers: Sequence[float], words: list[str], layout: RowLayout
) -> tuple[Box, float | None]:
    """Return the box of the shape and the confidence after it."""
    count = len(numbers)
    if count == 4:
        return _to_box(numbers), None
    if count == 5 and 0 <= numbers[4] <= 1:
        return _to_box(numbers[:4]), numbers[4]
    if layout.keypoints is not None:
        return _read_pose(numbers, words, layout.keypoints)
    if count < 6:
        raise _make_count_invalid(words)
    is_even = count % 2 == 0
    if not layout.is_segmentation and _may_be_pose(numbers, layout):
        cause = (
            f"the {count + 1} numbers may be a box with keypoints or a polygon"
            f"{'' if is_even else ' with a confidence'}; nothing says which"
        )
        raise _LineInvalid("RowInvalid", None, cause, " ".join(words), fix=_POSE_FIX)
    if is_even:
        return _to_polygon_box(numbers), None
    if not 0 <= numbers[-1] <= 1:
        raise _make_count_invalid(words)
    return _to_polygon_box(numbers[:-1]), numbers[-1]


def _make_count_invalid(words: list[str]) -> _LineInvalid:
    cause = (
        f"the line has {len(words)} numbers; a box has 5, a polygon 7 or another odd number, and "
        "one more with a confidence from 0 to 1"
    )
    return _LineInvalid("RowInvalid", None, cause, " ".join(words))


def _read_pose(
    numbers: Sequence[float], words: list[str], keypoints: tuple[int, int]
) -> tuple[Box, float | None]:
    expected = 4 + keypoints[0] * keypoints[1]
    if len(numbers) == expected:
        return _to_box(numbers[:4]), None
    if len(numbers) == expected + 1 and 0 <= numbers[-1] <= 1:
        return _to_box(numbers[:4]), numbers[-1]
    cause = (
        f"the line has {len(numbers) + 1} numbers; a box with the keypoints of 'kpt_shape: "
        f"{list(keypoints)}' has {expected + 1}"
    )
    raise _LineInvalid("RowInvalid", None, cause, " ".join(words))


def _may_be_pose(numbers: Sequence[float], layout: RowLayout) -> bool:
    if len(numbers) % 2:
        return (len(numbers) - 4) % 3 == 0 and fits_pose(numbers)
    if len(numbers) < MIN_POSE_NUMBERS or not fits_pose(numbers):
        return False
    return layout.is_likely_pose or not fits_polygon(numbers)


def _to_box(numbers: Sequence[float]) -> Box:
    x, y, width, height = numbers
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _to_polygon_box(numbers: Sequence[float]) -> Box:
    xs, ys = numbers[0::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)
