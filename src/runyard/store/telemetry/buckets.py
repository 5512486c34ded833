"""Buckets of a metric's steps, from which charts are drawn.

A bucket of level L covers 2**L steps and begins at a multiple of that, so its boundaries never
move. It has the minimum and maximum of its values, and the last one with its step, time and epoch.
A point is a bucket of level 0. Buckets of ``LEVELS`` are stored when points are packed; those
between are merged from the next lower level.
"""

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import chain
from operator import ge
from typing import Any

from runyard.store.telemetry.chunks import KeyPoints
from runyard.store.telemetry.columns import from_little_endian, to_little_endian

LEVELS = (6, 9, 12, 15)
PAGE_BITS = 6
FORMAT = b"\x01"
_KINDS = "qqqddddq"


@dataclass(slots=True)
class Buckets:
    """Buckets in the order of their steps, as columns. ``index`` is the step divided by 2**L."""

    index: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    time: list[int] = field(default_factory=list)
    epoch: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    count: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def concat(self, others: "Buckets") -> "Buckets":
        """Return these and then the others."""
        return Buckets(
            self.index + others.index,
            self.step + others.step,
            self.time + others.time,
            self.epoch + others.epoch,
            self.low + others.low,
            self.high + others.high,
            self.last + others.last,
            self.count + others.count,
        )

    def take(self, order: list[int]) -> "Buckets":
        """Return the buckets at these positions."""
        return Buckets(
            [self.index[at] for at in order],
            [self.step[at] for at in order],
            [self.time[at] for at in order],
            [self.epoch[at] for at in order],
            [self.low[at] for at in order],
            [self.high[at] for at in order],
            [self.last[at] for at in order],
            [self.count[at] for at in order],
        )

    def slice(self, begin: int, end: int) -> "Buckets":
        """Return the buckets at positions from ``begin`` to before ``end``."""
        return Buckets(
            self.index[begin:end],
            self.step[begin:end],
            self.time[begin:end],
            self.epoch[begin:end],
            self.low[begin:end],
            self.high[begin:end],
            self.last[begin:end],
            self.count[begin:end],
        )

    def find(self, index: int) -> int:
        """Return the position of the first bucket with this index or a higher one."""
        return bisect_left(self.index, index)

    def select(self, first: int, last: int) -> "Buckets":
        """Return the buckets with an index from ``first`` to ``last``."""
        return self.slice(self.find(first), self.find(last + 1))


def make_buckets(points: KeyPoints) -> Buckets:
    """Return points as buckets of level 0; of points with the same step, the last one counts."""
    step, time, epoch, value = points.steps, points.times, points.epochs, points.values
    if any(map(ge, step, step[1:])):
        newest = {number: position for position, number in enumerate(step)}
        order = [newest[number] for number in sorted(newest)]
        step = [step[at] for at in order]
        time = [time[at] for at in order]
        epoch = [epoch[at] for at in order]
        value = [value[at] for at in order]
    return Buckets(step, step, time, epoch, value, value, value, [1] * len(step))


def merge(buckets: Buckets, shift: int) -> Buckets:
    """Return buckets of a level higher by ``shift``; buckets of the same index become one."""
    index, end = buckets.index, len(buckets)
    merged = Buckets()
    begin = 0
    while begin < end:
        target = index[begin] >> shift
        until = bisect_left(index, (target + 1) << shift, begin)
        merged.index.append(target)
        merged.step.append(buckets.step[until - 1])
        merged.time.append(buckets.time[until - 1])
        merged.epoch.append(buckets.epoch[until - 1])
        merged.low.append(min(buckets.low[begin:until]))
        merged.high.append(max(buckets.high[begin:until]))
        merged.last.append(buckets.last[until - 1])
        merged.count.append(sum(buckets.count[begin:until]))
        begin = until
    return merged


def concat_all(parts: list[Buckets]) -> Buckets:
    """Return the buckets of all parts, in their order."""
    return Buckets(
        *(
            list(chain.from_iterable(getattr(part, name) for part in parts))
            for name in Buckets.__slots__
        )
    )


def join(earlier: Buckets, later: Buckets) -> Buckets:
    """Return both as one; the last bucket of the first may be the first of the second."""
    if not earlier.index or not later.index or earlier.index[-1] < later.index[0]:
        return earlier.concat(later)
    end = len(earlier) - 1
    shared = merge(earlier.slice(end, end + 1).concat(later.slice(0, 1)), 0)
    return earlier.slice(0, end).concat(shared).concat(later.slice(1, len(later)))


def replace(earlier: Buckets, changed: Buckets) -> Buckets:
    """Return the buckets of ``earlier``, with those of ``changed`` in place of the same index."""
    both = earlier.concat(changed)
    newest = {index: at for at, index in enumerate(both.index)}
    return both.take([newest[index] for index in sorted(newest)])


def split_pages(buckets: Buckets) -> list[tuple[int, Buckets]]:
    """Return (number of the page, its buckets) of each page."""
    pages = []
    begin = 0
    while begin < len(buckets):
        page = buckets.index[begin] >> PAGE_BITS
        end = buckets.find((page + 1) << PAGE_BITS)
        pages.append((page, buckets.slice(begin, end)))
        begin = end
    return pages


def encode_page(buckets: Buckets) -> bytes:
    """Return the buckets of one page as bytes; they are read often and are small as they are."""
    columns: list[Any] = [
        array("q", buckets.index),
        array("q", buckets.step),
        array("q", buckets.time),
        array("d", buckets.epoch),
        array("d", buckets.low),
        array("d", buckets.high),
        array("d", buckets.last),
        array("q", buckets.count),
    ]
    return FORMAT + b"".join(map(to_little_endian, columns))


def decode_page(data: bytes) -> Buckets:
    """Return the buckets in the bytes of a page."""
    if data[:1] != FORMAT:
        raise ValueError(f"a page of buckets of an unknown format: {data[:1]!r}")
    length = (len(data) - 1) // len(_KINDS)
    columns: list[Any] = [
        from_little_endian(kind, data[1 + at * length : 1 + (at + 1) * length]).tolist()
        for at, kind in enumerate(_KINDS)
    ]
    return Buckets(*columns)
