"""The coordinate frame of the boxes of a file: the unit of their numbers, and what these mean.

A format defines both, but tools get them wrong: fractions where pixels belong, percent, the 0-1000
of a vision-language model, corners in place of a size. All boxes of a file come from one program,
so the frame is decided once per file, from all its boxes. A file in another frame is left out as a
whole with one finding: a few of its boxes would fit the image by chance, and be wrong.

A small dataset must never be rejected for boxes that are merely close together, so each decision
needs evidence that correct boxes do not give:

* Fractions in a format of pixels: more than half of the boxes end within 1.5 pixels. As pixels
  they would show nothing, so one box is enough.
* Pixels, percent or 0-1000 in a format of fractions: more than half of the boxes reach beyond 1.5,
  which is half an image past the edge.
* Another form, because boxes overflow: two boxes and a fifth of all reach more than a tenth of the
  image past its edge, while 99 % of the boxes fit the other form within 2 %. Boxes of objects that
  the edge cuts off overflow too, but do not all have ``x2 > x1`` as corners.
* Another unit, because boxes overflow: in the same way two boxes and a third of all. In a small
  image nearly every box fits percent, so a few boxes outside of it are no evidence.
* Corners in a format of sizes: also if one box in five reaches more than a quarter past the edge,
  and all boxes, at least two, fit as corners.
* Sizes in a format of corners: half of the boxes, and at least two, have ``x2 <= x1`` or
  ``y2 <= y1`` (or a fifth, and at least five), while 99 % fit as sizes.
* Percent and 0-1000 that fit the image: eight boxes, none of which ends beyond 100 (or 1000),
  although each image is at least three times as large in both directions; the boxes reach 60 % of
  this range in x and in y, and start at positions that differ by 20 % of it. A logo in the corner
  of each image does not spread like this. In smaller images, such as 0-1000 in 1920 x 1080, more
  boxes are needed, which end just below the limit in both directions (see ``_SPREADS``).
* No known frame: eight boxes, and half of all reach more than a tenth past the edge; the images may
  have been resized after they were annotated.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.options import ReadOptions
from runyard.datasets.records import Box

Unit = Literal["pixel", "fraction", "percent", "thousandth"]
Form = Literal["corners", "size"]
Numbers = tuple[float, float, float, float]

TOLERANCE = 0.02  # of the frame; a box that exceeds it by no more still fits
FIRST_PIXELS = 1.5

_LARGEST: dict[str, float] = {"fraction": 1, "percent": 100, "thousandth": 1000, "1024": 1024}
_LIMITS = tuple(limit * (1 + TOLERANCE) for limit in _LARGEST.values())
_RATIOS = (1 + TOLERANCE, 1.1, 1.25)  # of the image: fits, and two degrees of overflow
# Boxes that fit the image and are still percent or 0-1000, as shares of this range: how many there
# are, the shortest and longest side of the smallest images, how far boxes reach, and how far apart
# they start.
_SPREADS = (
    (8, 3.0, 3.0, 0.6, 0.2),
    (20, 1.5, 1.5, 0.9, 0.5),
    (50, 1.05, 1.5, 0.9, 0.5),
)
_OTHER: dict[Form, Form] = {"corners": "size", "size": "corners"}
_UNIT_NAMES = {
    "pixel": "pixels",
    "fraction": "fractions from 0 to 1",
    "percent": "percent (0-100)",
    "thousandth": "0-1000",
    "1024": "0-1024",
}
_FORM_NAMES = {"corners": "two corners", "size": "x, y, width, height"}


class Frame(NamedTuple):
    """The unit of the four numbers of a box, and what they mean."""

    unit: Unit
    form: Form

    def to_fractions(self, numbers: Iterable[float], size: tuple[int, int]) -> Box:
        """Convert a box to the corners as fractions of an image of this width and height."""
        a, b, c, d = numbers
        width, height = size if self.unit == "pixel" else (_LARGEST[self.unit],) * 2
        if self.form == "size":
            c, d = a + c, b + d
        return a / width, b / height, c / width, d / height

    @property
    def row_unit(self) -> Literal["fraction", "pixel"]:
        """The unit in which the checker reports boxes of this frame."""
        return "pixel" if self.unit == "pixel" else "fraction"


def choose_frame(options: ReadOptions, unit: Unit, form: Form) -> Frame:
    """Return the frame to read a file in: what the user chose, else what its format defines."""
    return Frame(
        unit if options.box_unit == "auto" else options.box_unit,
        form if options.box_form == "auto" else options.box_form,
    )


@dataclass(slots=True)
class _Readings:
    """The counts of the boxes of a file, read as corners or as sizes."""

    ends: list[int] = field(default_factory=lambda: [0] * (len(_LIMITS) + 1))
    pixel_ratios: list[int] = field(default_factory=lambda: [0] * (len(_RATIOS) + 1))
    fraction_ratios: list[int] = field(default_factory=lambda: [0] * (len(_RATIOS) + 1))
    fitting_pixels: int = 0
    inverted: int = 0
    reach: tuple[float, float] = (-math.inf, -math.inf)

    def add(self, box: Numbers, size: tuple[int, int]) -> None:
        left, top, right, bottom = box
        end = right if right > bottom else bottom
        ratio = max(right / size[0], bottom / size[1])
        if right > self.reach[0] or bottom > self.reach[1]:
            self.reach = max(self.reach[0], right), max(self.reach[1], bottom)
        if right <= left or bottom <= top:
            self.inverted += 1
        elif min(left, top) >= -TOLERANCE * end:
            self.ends[bisect_left(_LIMITS, end)] += 1
            self.fitting_pixels += ratio <= _RATIOS[0]
        self.pixel_ratios[bisect_left(_RATIOS, ratio)] += 1
        self.fraction_ratios[bisect_left(_RATIOS, end)] += 1

    def count_fits(self, unit: str) -> int:
        """Count the boxes that are within the frame of this unit, with positive sizes."""
        if unit == "pixel":
            return self.fitting_pixels
        return sum(self.ends[: list(_LARGEST).index(unit) + 1])

    def count_beyond(self, unit: str, ratio: float) -> int:
        """Count the boxes that reach beyond this ratio of the frame; 0 for unusual units."""
        counts = {"pixel": self.pixel_ratios, "fraction": self.fraction_ratios}.get(unit, [])
        return sum(counts[_RATIOS.index(ratio) + 1 :])


@dataclass(slots=True)
class FrameEvidence:
    """The evidence for the frame of one file, in a constant amount of memory.

    A reader adds the numbers of every box of the file, and then asks for another frame than the
    one it would read the file in. Boxes of images that are missing need not be added.
    """

    boxes: int = 0
    in_first_pixels: int = 0
    beyond_first_pixels: int = 0
    _read: dict[Form, _Readings] = field(
        default_factory=lambda: {"corners": _Readings(), "size": _Readings()}
    )
    _smallest: tuple[int, int] = (1 << 62, 1 << 62)
    _smallest_longer: int = 1 << 62  # the smallest of the longer sides
    _last_size: tuple[int, int] = (0, 0)
    _highest: list[float] = field(default_factory=lambda: [-math.inf] * 4)
    _lowest_x: float = math.inf
    _lowest_y: float = math.inf

    def add(self, numbers: Numbers, size: tuple[int, int]) -> None:
        """Add the four numbers of a box as written, and the width and height of its image."""
        a, b, c, d = numbers
        if not math.isfinite(a + b + c + d) or min(size) <= 0:
            return
        self.boxes += 1
        largest = max(a, b, c, d)
        if largest > FIRST_PIXELS:
            self.beyond_first_pixels += 1
        elif largest > 0 and min(a, b, c, d) > -FIRST_PIXELS and _are_fractions(numbers, size):
            self.in_first_pixels += 1
        self._read["corners"].add(numbers, size)
        self._read["size"].add((a, b, a + c, b + d), size)
        if size != self._last_size:
            self._last_size = size
            self._smallest = min(self._smallest[0], size[0]), min(self._smallest[1], size[1])
            self._smallest_longer = min(self._smallest_longer, max(size))
        for index, number in enumerate(numbers):
            if number > self._highest[index]:
                self._highest[index] = number
        self._lowest_x, self._lowest_y = min(self._lowest_x, a), min(self._lowest_y, b)

    @property
    def is_mostly_fractions(self) -> bool:
        """True if the boxes of a file of pixels or fractions are fractions."""
        return self.in_first_pixels * 2 > self.boxes

    def find_other_frame(
        self, frame: Frame, options: ReadOptions, *, file: str, rows: int
    ) -> Finding | None:
        """Return the finding that leaves out a file of this many rows; None if its frame is right.

        What the user chose is not questioned.
        """
        if self.boxes == 0:
            return None
        other = None
        if options.box_unit == "auto":
            other = self._find_unit(frame, options)
        if other is None and options.box_form == "auto":
            other = self._find_form(frame)
        return other and make_finding(
            "BoxOtherFrame",
            file=file,
            cause=f"{self._describe(frame)}, but {other.cause}; {_count_rows(rows)}",
            fix=other.fix,
            action="FileRejected",
            rows=rows,
        )

    def _find_unit(self, frame: Frame, options: ReadOptions) -> "_Other | None":
        read = self._read[frame.form]
        if frame.unit == "pixel" and self.is_mostly_fractions:
            share = f"{self.in_first_pixels} of {_count_boxes(self.boxes)}"
            return _Other(
                f"the numbers of {share} fit the frame 0-1",
                _suggest([("fraction", frame.form)], frame),
            )
        overflowing = read.count_beyond(frame.unit, 1.1)
        is_evident = (
            self.beyond_first_pixels * 2 > self.boxes
            if frame.unit == "fraction"
            else overflowing >= 2 and overflowing * 5 >= self.boxes
        )
        if is_evident:
            fits = self._list_fits(frame, options)
            if frame.unit == "pixel" and overflowing * 3 < self.boxes:
                fits = [fit for fit in fits if fit[0] == frame.unit]
            if fits or frame.unit == "fraction" or overflowing * 2 >= self.boxes > 7:
                return _Other(*self._explain_overflow(frame, overflowing, fits))
        return self._find_spread(frame) if frame.unit == "pixel" else None

    def _list_fits(self, frame: Frame, options: ReadOptions) -> list[tuple[str, Form]]:
        """List the frames that the boxes fit, the tightest first."""
        forms = [frame.form, _OTHER[frame.form]] if options.box_form == "auto" else [frame.form]
        fits: list[tuple[str, Form]] = [
            (unit, form)
            for unit in ("pixel", *_LARGEST)
            for form in forms
            if (unit, form) != frame and self._fits(unit, form)
        ]
        known = {unit: (unit, form) for unit, form in reversed(fits)}
        if frame.unit in known:
            return [known[frame.unit]]
        if "thousandth" in known:
            known.pop("1024", None)
        return list(reversed(known.values()))[:2]

    def _fits(self, unit: str, form: Form) -> bool:
        return self._read[form].count_fits(unit) * 100 >= self.boxes * 99

    def _explain_overflow(
        self, frame: Frame, overflowing: int, fits: list[tuple[str, Form]]
    ) -> tuple[str, str]:
        beyond = self.beyond_first_pixels if frame.unit == "fraction" else overflowing
        cause = f"{beyond} of {_count_boxes(self.boxes)} reach far past the edge"
        if not fits:
            fix = "correct the boxes; if the images were resized, scale the boxes with them"
            return f"{cause} and fit no known frame; were the images resized?", fix
        return f"{cause}, and all fit {_name_frames(fits, frame)}", _suggest(fits, frame)

    def _find_form(self, frame: Frame) -> "_Other | None":
        other = _OTHER[frame.form]
        if not self._fits(frame.unit, other):
            return None
        if frame.form == "corners":
            wrong = self._read["corners"].inverted
            is_evident = wrong >= 2 and wrong * 2 >= self.boxes
            is_evident = is_evident or (wrong >= 5 and wrong * 5 >= self.boxes)
            what = f"{wrong} of {_count_boxes(self.boxes)} would have no area"
        else:
            wrong = self._read["size"].count_beyond(frame.unit, 1.1)
            is_evident = wrong >= 2 and wrong * 5 >= self.boxes
            far = self._read["size"].count_beyond(frame.unit, 1.25)
            is_evident = is_evident or (far > 0 and 2 <= self.boxes <= far * 5)
            what = f"{wrong} of {_count_boxes(self.boxes)} reach far past the edge"
        if not is_evident:
            return None
        fits: list[tuple[str, Form]] = [(frame.unit, other)]
        return _Other(f"{what}, and all fit {_name_frames(fits, frame)}", _suggest(fits, frame))

    def _find_spread(self, frame: Frame) -> "_Other | None":
        """Detect percent and 0-1000 in images that are larger than that."""
        for unit in ("percent", "thousandth"):
            if self._fits(unit, frame.form) and self._is_spread(_LARGEST[unit], frame):
                fits: list[tuple[str, Form]] = [(unit, frame.form)]
                cause = f"none of {_count_boxes(self.boxes)} ends beyond {_LARGEST[unit]:g}"
                return _Other(
                    f"{cause}: all fit {_name_frames(fits, frame)}", _suggest(fits, frame)
                )
        return None

    def _is_spread(self, limit: float, frame: Frame) -> bool:
        apart = min(self._highest[0] - self._lowest_x, self._highest[1] - self._lowest_y)
        reach = min(self._read[frame.form].reach)
        return any(
            self.boxes >= boxes
            and min(self._smallest) >= shorter * limit
            and self._smallest_longer >= longer * limit
            and reach >= reached * limit
            and apart >= started * limit
            for boxes, shorter, longer, reached, started in _SPREADS
        )

    def _describe(self, frame: Frame) -> str:
        width, height = self._smallest
        a, b, c, d = self._highest
        return (
            f"this format uses {_UNIT_NAMES[frame.unit]} as {_FORM_NAMES[frame.form]} (largest "
            f"numbers {a:g}, {b:g}, {c:g}, {d:g}; smallest image {width} x {height})"
        )


class _Other(NamedTuple):
    cause: str
    fix: str


def _are_fractions(numbers: Numbers, size: tuple[int, int]) -> bool:
    """Return whether these small numbers are no corners of a box of one or two pixels."""
    return min(size) > 2 or any(number % 1 for number in numbers)


def _name_frames(fits: list[tuple[str, Form]], frame: Frame) -> str:
    """Name the frames, each only as far as it differs from the expected one."""
    names = []
    for unit, form in fits:
        parts = [] if unit == frame.unit else [f"the frame {_UNIT_NAMES[unit]}"]
        parts += [] if form == frame.form else [f"as {_FORM_NAMES[form]}"]
        names.append(" ".join(parts))
    return " or ".join(names)


def _suggest(fits: list[tuple[str, Form]], frame: Frame) -> str:
    """Say how to read the file in one of these frames, or in the expected one after all."""
    choices = []
    for unit, form in fits:
        if unit == "1024":
            continue
        words = [] if unit == frame.unit else [f"--box-unit {unit}"]
        words += [] if form == frame.form else [f"--box-form {form}"]
        choices.append(" ".join(words))
    keep = f"--box-unit {frame.unit} --box-form {frame.form}"
    if not choices:
        return f"convert the boxes; if they are right as they are, use {keep}"
    return f"read the file with {' or '.join(choices)}; if it is right as it is, use {keep}"


def _count_boxes(count: int) -> str:
    return "1 box" if count == 1 else f"{count:,} boxes"


def _count_rows(count: int) -> str:
    return f"its {'row is' if count == 1 else f'{count:,} rows are'} left out"
