"""Metrics of a run: its points page by page, and series of any length as buckets for charts."""

from array import array
from binascii import b2a_base64
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.server.services import paging
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs.runs import get as get_run
from runyard.store.telemetry import metrics as rows
from runyard.store.telemetry.buckets import Buckets
from runyard.store.telemetry.chunks import Point
from runyard.store.telemetry.columns import to_little_endian
from runyard.store.telemetry.series import RunSeries, Series, TooManyBuckets, Window
from vi.api.resources.runs.responses import MetricPoint
from vi.api.resources.runs.series import MetricSeries, SeriesColumns

MOST = 1000
MOST_RUNS, MOST_KEYS = 20, 100
DEFAULT_POINTS, MOST_POINTS = 500, 5000
MOST_BUCKETS = 150_000  # of one answer
MOST_FLOAT32 = 3.4028234663852886e38


class MetricPage(msgspec.Struct):
    """A page of metrics. ``next`` is the sequence number to continue from."""

    items: list[MetricPoint]
    next: int


class MetricSeriesPage(msgspec.Struct):
    """Series of one or several runs, and every key of these runs."""

    items: list[MetricSeries]
    keys: list[str]


async def read_metric_page(
    services: Services, *, org: str, run_id: str, since: int, limit: int = MOST
) -> bytes:
    """Return a ``MetricPage`` as JSON: points numbered above ``since``.

    Points of ``system/`` keys are left out: their steps are seconds.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)

    def fetch(tx: Connection, after: int, limit: int) -> Sequence[Point]:
        return rows.list_points(tx, org=org, run_id=run_id, since=after, limit=limit)

    def read_points(tx: Connection) -> bytes:
        items, last, _ = paging.gather(
            partial(fetch, tx),
            after=since,
            size=limit,
            encode=_encode_point,
            get_position=_get_number,
        )
        raw: list[Any] = [msgspec.Raw(item) for item in items]
        page = MetricPage(items=raw, next=last.number if last else since)
        return msgspec.json.encode(page)

    return await services.store.read_snapshot_in_thread(read_points)


async def read_series(
    services: Services,
    *,
    org: str,
    run_ids: Sequence[str],
    keys: Collection[str] | None,
    window: Window,
) -> bytes:
    """Return a ``MetricSeriesPage`` as JSON.

    Raises:
        Refusal: NotFound, InvalidQuery (an answer with too many buckets).
    """
    for run_id in run_ids:
        get_run(services, org=org, run_id=run_id)

    def read(tx: Connection) -> bytes:
        found: list[MetricSeries] = []
        known: set[str] = set()
        remaining = MOST_BUCKETS
        for run_id in run_ids:
            run = RunSeries(tx, org=org, run_id=run_id, keys=keys)
            known.update(run.keys)
            for key in run.keys:
                if keys is not None and key not in keys:
                    continue
                series = _read_one(run, key, window)
                if series is None:
                    continue
                remaining -= len(series.buckets)
                if remaining < 0:
                    raise _too_many_buckets()
                found.append(_encode_series(series, run_id=run_id, next=run.count))
        return msgspec.json.encode(MetricSeriesPage(items=found, keys=sorted(known)))

    return await services.store.read_snapshot_in_thread(read)


def _read_one(run: RunSeries, key: str, window: Window) -> Series | None:
    try:
        return run.read(key, window, most=MOST_POINTS)
    except TooManyBuckets as error:
        raise Refusal(
            "InvalidQuery",
            f"{key[:80]!r} has more than {MOST_POINTS:,} buckets of {1 << error.bits:,} steps "
            "here; try: a larger bucketSteps, or a smaller range by from and to",
        ) from error


def _too_many_buckets() -> Refusal:
    return Refusal(
        "InvalidQuery",
        f"the answer would have more than {MOST_BUCKETS:,} buckets; try: fewer points, or fewer "
        "keys or runs in one request",
    )


def _encode_series(series: Series, *, run_id: str, next: int) -> MetricSeries:
    buckets = series.buckets
    start = buckets.time[0] if buckets.time else 0
    return MetricSeries(
        run_id=run_id,
        key=series.key,
        bucket_steps=1 << series.bits,
        count=len(buckets),
        total=series.total,
        first_step=series.first_step,
        last_step=series.last_step,
        from_step=series.from_step,
        next=next,
        time_start=start,
        columns=_encode_columns(buckets, start),
    )


def _encode_columns(buckets: Buckets, start: int) -> SeriesColumns:
    return SeriesColumns(
        step=_encode_column(array("d", buckets.step)),
        time=_encode_column(array("f", [(time - start) / 1000 for time in buckets.time])),
        epoch=_encode_column(_to_float32(buckets.epoch)),
        min=_encode_column(_to_float32(buckets.low)),
        max=_encode_column(_to_float32(buckets.high)),
        last=_encode_column(_to_float32(buckets.last)),
    )


def _to_float32(values: Sequence[float]) -> "array[float]":
    """Return values as float32; those beyond its range become its largest number."""
    if values and (max(values) > MOST_FLOAT32 or min(values) < -MOST_FLOAT32):
        values = [min(max(value, -MOST_FLOAT32), MOST_FLOAT32) for value in values]
    return array("f", values)


def _encode_column(numbers: "array[float]") -> str:
    return b2a_base64(to_little_endian(numbers), newline=False).decode("ascii")


def _get_number(point: Point) -> int:
    return point.number


def _encode_point(point: Point) -> bytes:
    return msgspec.json.encode(
        MetricPoint(
            step=point.step,
            epoch=point.epoch,
            time=point.time,
            attempt=point.attempt,
            values=dict(point.values),
        )
    )
