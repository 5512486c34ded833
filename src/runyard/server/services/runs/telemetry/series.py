"""Metric points of a run, page by page."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.server.services import paging
from runyard.server.services.context import Services
from runyard.server.services.runs.runs import get as get_run
from runyard.store.tables import AnyRow
from runyard.store.telemetry import metrics as rows
from vi.api.resources.runs.responses import MetricPoint

MOST = 1000


class MetricPage(msgspec.Struct):
    """A page of metrics. ``next`` is the sequence number to continue from."""

    items: list[MetricPoint]
    next: int


async def read_metric_page(
    services: Services, *, org: str, run_id: str, since: int, limit: int = MOST
) -> bytes:
    """Return a ``MetricPage`` as JSON: points numbered above ``since``.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)

    def fetch(tx: Connection, after: int, limit: int) -> Sequence[AnyRow]:
        return rows.metric_page(tx, org=org, run_id=run_id, since=after, limit=limit)

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

    return await services.store.read_in_thread(read_points)


def _get_number(row: AnyRow) -> int:
    return int(row.number)


def _encode_point(row: AnyRow) -> bytes:
    values: Any = msgspec.Raw(row.measured)
    point = MetricPoint(
        step=row.step, epoch=row.epoch, time=row.time, attempt=row.attempt, values=values
    )
    return msgspec.json.encode(point)
