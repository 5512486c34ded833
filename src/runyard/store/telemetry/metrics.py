"""Metric points of a run, numbered from 1: the newest as rows, the others packed.

``insert`` adds rows until there are as many as a chunk holds; then ``packing`` moves them. A row of
``metrics`` has all values of a point as JSON. Databases from before points were packed have only
rows, so a run may have any number of them until ``pack_rest`` has moved them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_

from runyard.store.tables import AnyRow, metric_keys, metrics, runs
from runyard.store.telemetry import chunks
from runyard.store.telemetry.chunks import Point

STEPS, SECONDS = 0, 1  # axes: what the steps of a point count
SYSTEM_PREFIX = "system/"  # of the keys on the axis of seconds

# Built once: building a statement costs more than running it.
_OF_RUN = (metrics.c.org == bindparam("of_org"), metrics.c.run_id == bindparam("of_run"))
_ADD = insert(metrics)
_AFTER = (
    select(metrics)
    .where(*_OF_RUN, metrics.c.number > bindparam("after"))
    .order_by(metrics.c.number)
    .limit(bindparam("most"))
)
_REMOVE = delete(metrics).where(*_OF_RUN, metrics.c.number <= bindparam("until"))
_KEYS = select(metric_keys).where(
    metric_keys.c.org == bindparam("of_org"), metric_keys.c.run_id == bindparam("of_run")
)
_ADD_KEYS = insert(metric_keys)
_COUNTS = select(runs.c.metric_packed, runs.c.metric_count, runs.c.time_created).where(
    runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run")
)
_NEXT_RUN = (
    select(metrics.c.org, metrics.c.run_id)
    .where(
        tuple_(metrics.c.org, metrics.c.run_id) > tuple_(bindparam("of_org"), bindparam("of_run"))
    )
    .order_by(metrics.c.org, metrics.c.run_id)
    .limit(1)
)
_DECODER = msgspec.json.Decoder(dict[str, float])


def get_counts(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Return how many points a run has, and how many of them are packed."""
    return connection.execute(_COUNTS, {"of_org": org, "of_run": run_id}).one_or_none()


def list_keys(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Return the keys of a run: what is packed of each."""
    return connection.execute(_KEYS, {"of_org": org, "of_run": run_id}).all()


def add_keys(
    connection: Connection, keys: Mapping[str, tuple[int, int]], *, org: str, run_id: str
) -> None:
    """Add keys with their numbers and axes."""
    rows = [
        {"org": org, "run_id": run_id, "key": key, "number": number, "axis": axis, "total": 0}
        for key, (number, axis) in keys.items()
    ]
    if rows:
        connection.execute(_ADD_KEYS, rows)


def number_keys(axes: Mapping[str, int], known: Iterable[AnyRow]) -> dict[str, tuple[int, int]]:
    """Return (number, axis) of new keys, after the numbers of those that are known."""
    first = max((row.number for row in known), default=0) + 1
    return {key: (number, axis) for number, (key, axis) in enumerate(axes.items(), first)}


def add_points(connection: Connection, points: Iterable[Point], *, org: str, run_id: str) -> None:
    """Add points as rows."""
    rows = [
        {
            "org": org,
            "run_id": run_id,
            "number": point.number,
            "step": point.step,
            "epoch": point.epoch,
            "time": point.time,
            "attempt": point.attempt,
            "measured": msgspec.json.encode(point.values),
            "axis": point.axis,
        }
        for point in points
    ]
    if rows:
        connection.execute(_ADD, rows)


def list_rows(
    connection: Connection, *, org: str, run_id: str, after: int, limit: int
) -> list[Point]:
    """Return points that are not packed, numbered above ``after``."""
    key = {"of_org": org, "of_run": run_id, "after": after, "most": limit}
    return [
        Point(
            row.number,
            row.step,
            row.epoch,
            row.time,
            row.attempt,
            row.axis,
            _DECODER.decode(row.measured),
        )
        for row in connection.execute(_AFTER, key)
    ]


def remove_rows(connection: Connection, *, org: str, run_id: str, until: int) -> None:
    connection.execute(_REMOVE, {"of_org": org, "of_run": run_id, "until": until})


def list_points(
    connection: Connection, *, org: str, run_id: str, since: int, limit: int
) -> list[Point]:
    """Return points of the axis of steps, numbered above ``since``, in the order of arrival."""
    key: Any = {"org": org, "run_id": run_id}
    keys = {row.number: row.key for row in list_keys(connection, **key)}
    points: list[Point] = []
    while len(points) < limit:
        after = points[-1].number if points else since
        chunk = chunks.find_after(connection, **key, axis=STEPS, number=after)
        if chunk is None:
            break
        points += chunks.list_points(chunk, keys, after=after)
    after = points[-1].number if points else since
    while len(points) < limit:
        rows = list_rows(connection, **key, after=after, limit=limit)
        points += [point for point in rows if point.axis == STEPS]
        if len(rows) < limit:
            break
        after = rows[-1].number
    return points[:limit]


def find_unpacked(
    connection: Connection, *, after: tuple[str, str], limit: int
) -> list[tuple[str, str]]:
    """Return (organization, run) of runs that have rows of points, in order, after one of them."""
    found: list[tuple[str, str]] = []
    while len(found) < limit:
        org, run_id = found[-1] if found else after
        row = connection.execute(_NEXT_RUN, {"of_org": org, "of_run": run_id}).one_or_none()
        if row is None:
            break
        found.append((row.org, row.run_id))
    return found
