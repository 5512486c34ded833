"""Metric series of a run as buckets of steps, from packed and from waiting points.

Call the functions on a connection whose reads see one state of the database: a point that is packed
between two reads would otherwise be missed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from runyard.store.tables import AnyRow, metric_chunks
from runyard.store.telemetry import chunks, metrics
from runyard.store.telemetry.buckets import (
    LEVELS,
    PAGE_BITS,
    Buckets,
    join,
    make_buckets,
    merge,
)
from runyard.store.telemetry.chunks import KeyPoints
from runyard.store.telemetry.packing import read_pages

MOST_BITS = 54  # a bucket of as many bits covers every step
_ROWS_AT_ONCE = 10_000
# So many times the allowed number are not read first to be counted.
_MOST_READ = 64
_FIRST_CHANGED = select(func.min(metric_chunks.c.min_step)).where(
    metric_chunks.c.org == bindparam("of_org"),
    metric_chunks.c.run_id == bindparam("of_run"),
    metric_chunks.c.axis == bindparam("of_axis"),
    metric_chunks.c.last_number > bindparam("after"),
)


@dataclass(frozen=True, kw_only=True)
class Window:
    """What to read of each series: steps from ``first`` to ``last``, whole buckets.

    ``bits``: buckets of 2**bits steps; None: the smallest of which there are at most ``points``,
    those left out by ``since`` included. ``since``: only buckets with points numbered above it,
    and those after them.
    """

    first: int | None = None
    last: int | None = None
    points: int = 500
    bits: int | None = None
    since: int | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Buckets of one key. Total, first and last step are those of the whole series.

    ``from_step`` is where the first bucket of the answer may begin: the buckets replace all that a
    reader has from there on.
    """

    key: str
    bits: int
    buckets: Buckets
    total: int
    first_step: int
    last_step: int
    from_step: int


class TooManyBuckets(Exception):
    """A series has more buckets of the requested size than allowed."""

    def __init__(self, key: str, bits: int) -> None:
        super().__init__(f"{key} has too many buckets of {1 << bits} steps")
        self.key, self.bits = key, bits


class RunSeries:
    """The series of one run, as of when this was made."""

    def __init__(
        self, connection: Connection, *, org: str, run_id: str, keys: Collection[str] | None
    ) -> None:
        """Read what waits to be packed, of ``keys`` or of all."""
        self._connection = connection
        self._at: Any = {"org": org, "run_id": run_id}
        counts = metrics.get_counts(connection, **self._at)
        self.count = counts.metric_count if counts is not None else 0
        packed = counts.metric_packed if counts is not None else 0
        self._rows: Mapping[str, AnyRow] = {
            row.key: row for row in metrics.list_keys(connection, **self._at)
        }
        self._waiting: dict[str, KeyPoints] = {}
        self._numbers: dict[str, list[int]] = {}
        self._axes = {key: row.axis for key, row in self._rows.items()}
        self._read_waiting(packed, keys)
        self.keys = sorted(self._axes)

    def _read_waiting(self, packed: int, keys: Collection[str] | None) -> None:
        while True:
            points = metrics.list_rows(
                self._connection, **self._at, after=packed, limit=_ROWS_AT_ONCE
            )
            for point in points:
                for key, value in point.values.items():
                    self._axes.setdefault(key, point.axis)
                    if keys is not None and key not in keys:
                        continue
                    found = self._waiting.get(key)
                    if found is None:
                        found = self._waiting[key] = KeyPoints()
                        self._numbers[key] = []
                    found.steps.append(point.step)
                    found.times.append(point.time)
                    found.epochs.append(point.epoch)
                    found.values.append(value)
                    self._numbers[key].append(point.number)
            if len(points) < _ROWS_AT_ONCE:
                return
            packed = points[-1].number

    def read(self, key: str, window: Window, *, most: int) -> Series | None:
        """Return the series of a key; None if the run has no such key.

        Raises:
            TooManyBuckets: it has more than ``most`` buckets of ``window.bits``.
        """
        row = self._rows.get(key)
        if row is not None and row.last_step is None:
            row = None  # none of its points is packed
        waiting = make_buckets(self._waiting.get(key, KeyPoints()))
        if row is not None and waiting.index and waiting.index[0] <= row.last_step:
            # Waiting points repeat packed ones, as in a database from before points were packed.
            waiting, row = self._read_all(key, row), None
        steps = [*waiting.index[:1], *waiting.index[-1:]]
        if row is not None:
            steps += [row.first_step, row.last_step]
        if not steps:
            return None
        first, last = min(steps), max(steps)
        total = len(waiting) + (0 if row is None else row.total)
        begin = max(first, first if window.first is None else window.first)
        end = min(last, last if window.last is None else window.last)
        bits = _choose_bits(begin, end, window, total)
        if window.since is not None:
            changed = self._find_first_changed(key, window.since)
            begin = last + 1 if changed is None else max(begin, changed)
        if min(total, (end >> bits) - (begin >> bits)) > most * _MOST_READ:
            raise TooManyBuckets(key, bits)

        def collect(bits: int) -> Buckets:
            return self._collect(row, waiting, begin, end, bits)

        buckets = collect(bits)
        is_free = window.bits is None and window.since is None
        if is_free and bits and sum(buckets.count) <= window.points:
            bits, buckets = 0, collect(0)
        if len(buckets) > most:
            raise TooManyBuckets(key, bits)
        return Series(
            key=key,
            bits=bits,
            buckets=buckets,
            total=total,
            first_step=first,
            last_step=last,
            from_step=begin >> bits << bits if begin <= end else begin,
        )

    def _collect(
        self, row: AnyRow | None, waiting: Buckets, begin: int, end: int, bits: int
    ) -> Buckets:
        """Return the buckets of 2**bits steps that have a step from ``begin`` to ``end``."""
        if begin > end:
            return Buckets()
        level = max((level for level in LEVELS if level <= bits), default=0)
        first, last = begin >> bits, end >> bits
        lowest = first << (bits - level)
        highest = ((last + 1) << (bits - level)) - 1
        found = merge(waiting.select(first << bits, ((last + 1) << bits) - 1), level)
        if row is not None:
            found = join(self._read_packed(row, level, lowest, highest), found)
        return merge(found, bits - level) if bits > level else found

    def _read_packed(self, row: AnyRow, level: int, lowest: int, highest: int) -> Buckets:
        if level == 0:
            points = chunks.read_key(
                self._connection,
                **self._at,
                key_number=row.number,
                axis=row.axis,
                first_step=lowest,
                last_step=highest,
            )
            return make_buckets(points).select(lowest, highest)
        pages = read_pages(
            self._connection,
            **self._at,
            key_number=row.number,
            level=level,
            first_page=lowest >> PAGE_BITS,
            last_page=highest >> PAGE_BITS,
        )
        return pages.select(lowest, highest)

    def _read_all(self, key: str, row: AnyRow) -> Buckets:
        points = chunks.read_key(
            self._connection,
            **self._at,
            key_number=row.number,
            axis=row.axis,
            first_step=row.first_step,
            last_step=row.last_step,
        )
        new = self._waiting[key]
        points.steps += new.steps
        points.times += new.times
        points.epochs += new.epochs
        points.values += new.values
        return make_buckets(points)

    def _find_first_changed(self, key: str, since: int) -> int | None:
        """Return the lowest step among the points numbered above ``since``, or one below it."""
        at = {
            "of_org": self._at["org"],
            "of_run": self._at["run_id"],
            "of_axis": self._axes[key],
            "after": since,
        }
        steps = [
            step
            for step, number in zip(
                self._waiting.get(key, KeyPoints()).steps,
                self._numbers.get(key, ()),
                strict=True,
            )
            if number > since
        ]
        packed = self._connection.execute(_FIRST_CHANGED, at).scalar()
        return min(steps if packed is None else [*steps, int(packed)], default=None)


def _choose_bits(begin: int, end: int, window: Window, total: int) -> int:
    if window.bits is not None:
        return window.bits
    if begin > end or total <= window.points:
        return 0
    return next(
        bits
        for bits in range(MOST_BITS + 1)
        if (end >> bits) - (begin >> bits) < window.points or bits == MOST_BITS
    )
