"""Metric points, numbered per run from 1."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from runyard.store.tables import AnyRow, metrics

# Built once: building a statement costs more than running it.
_ADD_METRICS = insert(metrics)


def add_metrics(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD_METRICS, [dict(row) for row in rows])


def metric_page(
    connection: Connection, *, org: str, run_id: str, since: int, limit: int
) -> Sequence[AnyRow]:
    """Return points with a number above ``since``."""
    query = select(metrics).where(
        metrics.c.org == org, metrics.c.run_id == run_id, metrics.c.number > since
    )
    return connection.execute(query.order_by(metrics.c.number).limit(limit)).all()
