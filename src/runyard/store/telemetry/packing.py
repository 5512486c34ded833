"""Packing of metric points: from rows to chunks and buckets, within the transaction of ingest.

Points that come after everything packed before are appended to the newest buckets. Where a later
attempt repeats steps, or a trainer goes back, the buckets of these steps are rebuilt from the
chunks, so that the value that arrived last counts once.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from operator import ge

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from runyard.store.tables import AnyRow, metric_buckets, metric_keys
from runyard.store.telemetry import chunks, metrics
from runyard.store.telemetry.buckets import (
    LEVELS,
    PAGE_BITS,
    Buckets,
    concat_all,
    decode_page,
    encode_page,
    join,
    make_buckets,
    merge,
    replace,
    split_pages,
)
from runyard.store.telemetry.chunks import CHUNK_POINTS, Chunk, KeyPoints, Point

MOST_ROWS = 4096  # packed in one transaction: others wait for it
# A shipment of as many points is packed at once, with the rows before it.
LARGE_SHIPMENT = 128

_OF_PAGE = (
    metric_buckets.c.org == bindparam("of_org"),
    metric_buckets.c.run_id == bindparam("of_run"),
    metric_buckets.c.key_number == bindparam("of_key"),
    metric_buckets.c.level == bindparam("of_level"),
)
_PAGES = (
    select(metric_buckets.c.buckets)
    .where(
        *_OF_PAGE,
        metric_buckets.c.page >= bindparam("first_page"),
        metric_buckets.c.page <= bindparam("last_page"),
    )
    .order_by(metric_buckets.c.page)
)
_REMOVE_PAGES = delete(metric_buckets).where(
    *_OF_PAGE, metric_buckets.c.page == bindparam("of_page")
)
_ADD_PAGES = insert(metric_buckets)
_CHANGE_KEY = update(metric_keys).where(
    metric_keys.c.org == bindparam("of_org"),
    metric_keys.c.run_id == bindparam("of_run"),
    metric_keys.c.key == bindparam("of_key"),
)


def add(
    connection: Connection,
    points: Sequence[Point],
    *,
    org: str,
    run_id: str,
    packed: int,
    repeats: bool,
) -> int:
    """Add points to those of a run, and pack them if there are enough; return the last one packed.

    ``packed`` is the last one packed before. ``repeats`` says that a step of a key is not above all
    that are packed: then all are packed now, since charts read rows as what follows the chunks.
    """
    if not points:
        return packed
    waiting = points[0].number - 1 - packed
    is_small = waiting + len(points) < CHUNK_POINTS and len(points) < LARGE_SHIPMENT
    if is_small and not repeats:
        metrics.add_points(connection, points, org=org, run_id=run_id)
        return packed
    if waiting > MOST_ROWS:
        metrics.add_points(connection, points, org=org, run_id=run_id)
        return pack_rows(connection, org=org, run_id=run_id, packed=packed)
    rows = metrics.list_rows(connection, org=org, run_id=run_id, after=packed, limit=MOST_ROWS)
    _pack(connection, [*rows, *points], org=org, run_id=run_id)
    if rows:
        metrics.remove_rows(connection, org=org, run_id=run_id, until=rows[-1].number)
    return points[-1].number


def pack_rows(connection: Connection, *, org: str, run_id: str, packed: int) -> int:
    """Pack the oldest rows of a run; return the number of the last one packed."""
    rows = metrics.list_rows(connection, org=org, run_id=run_id, after=packed, limit=MOST_ROWS)
    if not rows:
        return packed
    _pack(connection, rows, org=org, run_id=run_id)
    metrics.remove_rows(connection, org=org, run_id=run_id, until=rows[-1].number)
    return rows[-1].number


def read_pages(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    key_number: int,
    level: int,
    first_page: int,
    last_page: int,
) -> Buckets:
    """Return the stored buckets of a level in a range of pages."""
    found = connection.execute(
        _PAGES,
        {
            "of_org": org,
            "of_run": run_id,
            "of_key": key_number,
            "of_level": level,
            "first_page": first_page,
            "last_page": last_page,
        },
    )
    return concat_all([decode_page(data) for (data,) in found])


def _pack(connection: Connection, points: Sequence[Point], *, org: str, run_id: str) -> None:
    known = {row.key: row for row in metrics.list_keys(connection, org=org, run_id=run_id)}
    axes = {key: point.axis for point in points for key in point.values}
    unknown = {key: axis for key, axis in axes.items() if key not in known}
    new = metrics.number_keys(unknown, known.values())
    metrics.add_keys(connection, new, org=org, run_id=run_id)
    numbers = {key: row.number for key, row in known.items()}
    numbers |= {key: number for key, (number, _) in new.items()}
    for axis, group in groupby(sorted(points, key=_get_axis), key=_get_axis):
        _write_chunks(connection, group, numbers, axis=axis, org=org, run_id=run_id)
    for key, added in _sort_by_key(points).items():
        axis = known[key].axis if key in known else axes[key]
        series = _Series(connection, org, run_id, numbers[key], axis)
        series.add(added, key=key, row=known.get(key))


def _get_axis(point: Point) -> int:
    return point.axis


def _sort_by_key(points: Iterable[Point]) -> dict[str, KeyPoints]:
    by_key: dict[str, KeyPoints] = {}
    for point in points:
        for key, value in point.values.items():
            found = by_key.get(key)
            if found is None:
                found = by_key[key] = KeyPoints()
            found.steps.append(point.step)
            found.times.append(point.time)
            found.epochs.append(point.epoch)
            found.values.append(value)
    return by_key


def _write_chunks(
    connection: Connection,
    points: Iterable[Point],
    key_numbers: Mapping[str, int],
    *,
    axis: int,
    org: str,
    run_id: str,
) -> None:
    """Fill the newest chunk of an axis, then write further ones."""
    chunk = chunks.find_unfilled(connection, org=org, run_id=run_id, axis=axis)
    is_new = chunk is None
    chunk = chunk or Chunk(axis)
    for point in points:
        if chunk.is_full:
            chunks.save(connection, chunk, org=org, run_id=run_id, is_new=is_new)
            chunk, is_new = Chunk(axis), True
        chunk.append(point, key_numbers)
    chunks.save(connection, chunk, org=org, run_id=run_id, is_new=is_new)


class _Series:
    """The stored buckets of one key."""

    def __init__(
        self, connection: Connection, org: str, run_id: str, key_number: int, axis: int
    ) -> None:
        self._connection = connection
        self._org, self._run_id, self._number, self._axis = org, run_id, key_number, axis

    def add(self, points: KeyPoints, *, key: str, row: AnyRow | None) -> None:
        """Add points that are in chunks already; ``row`` is what is known of the key."""
        before = [] if row is None or row.last_step is None else [row.first_step, row.last_step]
        is_ascending = not any(map(ge, points.steps, points.steps[1:]))
        if is_ascending and (not before or points.steps[0] > before[1]):
            growth = self._append(points)
        else:
            growth = self._rebuild(points.steps)
        values = {
            "total": growth + (0 if row is None else row.total),
            "first_step": min([*before, *points.steps]),
            "last_step": max([*before, *points.steps]),
        }
        at = {"of_org": self._org, "of_run": self._run_id, "of_key": key}
        self._connection.execute(_CHANGE_KEY, {**at, **values})

    def _append(self, points: KeyPoints) -> int:
        """Add points after all others; return how many there are."""
        buckets, below = make_buckets(points), 0
        for level in LEVELS:
            buckets, below = merge(buckets, level - below), level
            stored = self._read_pages(level, buckets.index[0], buckets.index[-1])
            self._save_pages(level, join(stored, buckets))
        return len(points.steps)

    def _rebuild(self, steps: Sequence[int]) -> int:
        """Make the buckets of these steps from the chunks; return by how much the total grew."""
        changed = sorted({step >> LEVELS[0] for step in steps})
        made = Buckets()
        for first, last in _find_ranges(changed):
            made = made.concat(self._merge_points(first, last))
        stored, affected = self._read_pages(LEVELS[0], changed[0], changed[-1]), set(changed)
        positions = [at for at, index in enumerate(stored.index) if index in affected]
        growth = sum(made.count) - sum(stored.take(positions).count)
        self._save_pages(LEVELS[0], replace(stored, made))
        for below, level in pairwise(LEVELS):
            shift = level - below
            changed = sorted({index >> shift for index in changed})
            made = Buckets()
            for first, last in _find_ranges(changed):
                parts = self._read_pages(below, first << shift, ((last + 1) << shift) - 1)
                made = made.concat(merge(parts, shift).select(first, last))
            stored = self._read_pages(level, changed[0], changed[-1])
            self._save_pages(level, replace(stored, made))
        return growth

    def _merge_points(self, first: int, last: int) -> Buckets:
        """Return the buckets of the lowest level with an index in a range, from the chunks."""
        first_step, end = first << LEVELS[0], (last + 1) << LEVELS[0]
        points = chunks.read_key(
            self._connection,
            org=self._org,
            run_id=self._run_id,
            key_number=self._number,
            axis=self._axis,
            first_step=first_step,
            last_step=end - 1,
        )
        return merge(make_buckets(points).select(first_step, end - 1), LEVELS[0])

    def _read_pages(self, level: int, first: int, last: int) -> Buckets:
        """Return the buckets of the pages that have an index from ``first`` to ``last``."""
        return read_pages(
            self._connection,
            org=self._org,
            run_id=self._run_id,
            key_number=self._number,
            level=level,
            first_page=first >> PAGE_BITS,
            last_page=last >> PAGE_BITS,
        )

    def _save_pages(self, level: int, buckets: Buckets) -> None:
        at = {
            "of_org": self._org,
            "of_run": self._run_id,
            "of_key": self._number,
            "of_level": level,
        }
        rows = [
            {
                "org": self._org,
                "run_id": self._run_id,
                "key_number": self._number,
                "level": level,
                "page": page,
                "buckets": encode_page(inside),
            }
            for page, inside in split_pages(buckets)
        ]
        self._connection.execute(_REMOVE_PAGES, [{**at, "of_page": row["page"]} for row in rows])
        self._connection.execute(_ADD_PAGES, rows)


def _find_ranges(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges (first, last) without gaps."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] + 1 == index:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return ranges
