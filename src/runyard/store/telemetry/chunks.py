"""Packed metric points: chunks in the order of their arrival, and the values of each key.

What the values of a point have in common (number, step, time, attempt, epoch) is stored once, in
``metric_chunks``. ``metric_values`` has the values of each key, with their positions in the chunk.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from runyard.store.tables import AnyRow, metric_chunks, metric_values
from runyard.store.telemetry.columns import (
    from_differences,
    pack_columns,
    to_differences,
    unpack_columns,
)

CHUNK_POINTS = 512
_POINT_KINDS, _VALUE_KINDS = "qqqqd", "qd"


@dataclass(slots=True)
class Point:
    """One metric point of a run: the values measured at a step, by key."""

    number: int
    step: int
    epoch: float
    time: int
    attempt: int
    axis: int
    values: Mapping[str, float]


@dataclass(slots=True)
class KeyPoints:
    """Points of one key in the order of their arrival, as columns."""

    steps: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Chunk:
    """Points of one axis in the order of their arrival.

    ``values`` has (positions, values) by the number of the key.
    """

    axis: int
    numbers: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    values: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return len(self.numbers) >= CHUNK_POINTS

    def append(self, point: Point, key_numbers: Mapping[str, int]) -> None:
        position = len(self.numbers)
        self.numbers.append(point.number)
        self.steps.append(point.step)
        self.times.append(point.time)
        self.attempts.append(point.attempt)
        self.epochs.append(point.epoch)
        for key, value in point.values.items():
            number = key_numbers[key]
            found = self.values.get(number)
            if found is None:
                found = self.values[number] = ([], [])
            found[0].append(position)
            found[1].append(value)

    def add_to(self, points: KeyPoints, key_number: int) -> None:
        """Append the points of a key to ``points``."""
        positions, values = self.values.get(key_number, ((), ()))
        if len(positions) == len(self.numbers):
            points.steps += self.steps
            points.times += self.times
            points.epochs += self.epochs
        else:
            points.steps += [self.steps[at] for at in positions]
            points.times += [self.times[at] for at in positions]
            points.epochs += [self.epochs[at] for at in positions]
        points.values += values


_OF_RUN = (
    metric_chunks.c.org == bindparam("of_org"),
    metric_chunks.c.run_id == bindparam("of_run"),
)
_AT = (*_OF_RUN, metric_chunks.c.first_number == bindparam("of_first"))
_ADD_CHUNK, _CHANGE_CHUNK = insert(metric_chunks), update(metric_chunks).where(*_AT)
_ADD_VALUES = insert(metric_values)
_OF_CHUNK = (
    metric_values.c.org == bindparam("of_org"),
    metric_values.c.run_id == bindparam("of_run"),
    metric_values.c.first_number == bindparam("of_first"),
)
_REMOVE_VALUES = delete(metric_values).where(*_OF_CHUNK)
_VALUES = select(metric_values.c.key_number, metric_values.c.measured).where(*_OF_CHUNK)
_NEWEST = (
    select(metric_chunks)
    .where(*_OF_RUN, metric_chunks.c.axis == bindparam("of_axis"))
    .order_by(metric_chunks.c.first_number.desc())
    .limit(1)
)
_AFTER = (
    select(metric_chunks)
    .where(
        *_OF_RUN,
        metric_chunks.c.axis == bindparam("of_axis"),
        metric_chunks.c.last_number > bindparam("after"),
        metric_chunks.c.first_number >= bindparam("begin"),
    )
    .order_by(metric_chunks.c.first_number)
    .limit(1)
)
_KEY_BETWEEN = (
    select(
        metric_chunks.c.first_number,
        metric_chunks.c.axis,
        metric_chunks.c.size,
        metric_chunks.c.points,
        metric_values.c.measured,
    )
    .join(
        metric_values,
        (metric_values.c.org == metric_chunks.c.org)
        & (metric_values.c.run_id == metric_chunks.c.run_id)
        & (metric_values.c.first_number == metric_chunks.c.first_number),
    )
    .where(
        *_OF_RUN,
        metric_chunks.c.axis == bindparam("of_axis"),
        metric_chunks.c.max_step >= bindparam("first_step"),
        metric_chunks.c.min_step <= bindparam("last_step"),
        metric_values.c.key_number == bindparam("of_key"),
    )
    .order_by(metric_chunks.c.first_number)
)


def find_unfilled(connection: Connection, *, org: str, run_id: str, axis: int) -> Chunk | None:
    """Return the newest chunk of an axis if it has room for further points."""
    key = {"of_org": org, "of_run": run_id, "of_axis": axis}
    row = connection.execute(_NEWEST, key).one_or_none()
    if row is None or row.size >= CHUNK_POINTS:
        return None
    return _load_chunk(connection, row)


def find_after(
    connection: Connection, *, org: str, run_id: str, axis: int, number: int
) -> Chunk | None:
    """Return the first chunk of an axis that has points numbered above ``number``."""
    key = {"of_org": org, "of_run": run_id, "of_axis": axis, "after": number}
    # Chunks of one axis do not overlap: the one that holds the number is the last to begin before.
    before = (
        select(metric_chunks.c.first_number)
        .where(*_OF_RUN, metric_chunks.c.axis == axis, metric_chunks.c.first_number <= number)
        .order_by(metric_chunks.c.first_number.desc())
        .limit(1)
    )
    begin = connection.execute(before, key).scalar() or 0
    row = connection.execute(_AFTER, {**key, "begin": begin}).one_or_none()
    return None if row is None else _load_chunk(connection, row)


def read_key(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    key_number: int,
    axis: int,
    first_step: int,
    last_step: int,
) -> KeyPoints:
    """Return the points of a key in chunks that have a step between two, in order of arrival."""
    rows = connection.execute(
        _KEY_BETWEEN,
        {
            "of_org": org,
            "of_run": run_id,
            "of_axis": axis,
            "of_key": key_number,
            "first_step": first_step,
            "last_step": last_step,
        },
    )
    points = KeyPoints()
    for row in rows:
        chunk = _decode_points(row)
        chunk.values[key_number] = _decode_values(row.measured, row.size)
        chunk.add_to(points, key_number)
    return points


def save(connection: Connection, chunk: Chunk, *, org: str, run_id: str, is_new: bool) -> None:
    """Write a chunk with its values."""
    row = {
        "org": org,
        "run_id": run_id,
        "first_number": chunk.numbers[0],
        "last_number": chunk.numbers[-1],
        "axis": chunk.axis,
        "size": len(chunk.numbers),
        "min_step": min(chunk.steps),
        "max_step": max(chunk.steps),
        "points": _encode_points(chunk),
    }
    if is_new:
        connection.execute(_ADD_CHUNK, row)
    else:
        at = {"of_org": org, "of_run": run_id, "of_first": chunk.numbers[0]}
        connection.execute(_CHANGE_CHUNK, {**at, **row})
        connection.execute(_REMOVE_VALUES, at)
    values = [
        {
            "org": org,
            "run_id": run_id,
            "first_number": chunk.numbers[0],
            "key_number": number,
            "measured": _encode_values(positions, measured, len(chunk.numbers)),
        }
        for number, (positions, measured) in chunk.values.items()
    ]
    if values:
        connection.execute(_ADD_VALUES, values)


def list_points(chunk: Chunk, keys: Mapping[int, str], *, after: int) -> Iterable[Point]:
    """Return the points of a chunk that are numbered above ``after``."""
    values: list[dict[str, float]] = [{} for _ in chunk.numbers]
    for number, (positions, measured) in sorted(chunk.values.items()):
        key = keys[number]
        for position, value in zip(positions, measured, strict=True):
            values[position][key] = value
    return [
        Point(*point)
        for point in zip(
            chunk.numbers,
            chunk.steps,
            chunk.epochs,
            chunk.times,
            chunk.attempts,
            [chunk.axis] * len(chunk.numbers),
            values,
            strict=True,
        )
        if point[0] > after
    ]


def _load_chunk(connection: Connection, row: AnyRow) -> Chunk:
    chunk = _decode_points(row)
    key = {"of_org": row.org, "of_run": row.run_id, "of_first": row.first_number}
    for number, measured in connection.execute(_VALUES, key):
        chunk.values[number] = _decode_values(measured, row.size)
    return chunk


def _encode_points(chunk: Chunk) -> bytes:
    columns: Sequence[Any] = (
        to_differences(chunk.numbers),
        to_differences(chunk.steps),
        to_differences(chunk.times),
        to_differences(chunk.attempts),
        array("d", chunk.epochs),
    )
    return pack_columns(columns)


def _decode_points(row: AnyRow) -> Chunk:
    columns: list[Any] = unpack_columns(row.points, _POINT_KINDS, row.size)
    numbers, steps, times, attempts = map(from_differences, columns[:4])
    return Chunk(row.axis, numbers, steps, times, attempts, columns[4].tolist())


def _encode_values(positions: Sequence[int], values: Sequence[float], size: int) -> bytes:
    """Encode values; positions are left out where every point of the chunk has a value."""
    packed = pack_columns(
        [array("d", values)]
        if len(positions) == size
        else [to_differences(positions), array("d", values)]
    )
    return len(values).to_bytes(2, "little") + packed


def _decode_values(data: bytes, size: int) -> tuple[list[int], list[float]]:
    count = int.from_bytes(data[:2], "little")
    if count == size:
        values: list[Any] = unpack_columns(data[2:], "d", count)
        return list(range(size)), values[0].tolist()
    columns: list[Any] = unpack_columns(data[2:], _VALUE_KINDS, count)
    return from_differences(columns[0]), columns[1].tolist()
