"""What attempts say: stream offsets, log lines and metric points, numbered per run from 1 on."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from runyard.store.tables import AnyRow, log_lines, metrics, stream_offsets

# Built once: every shipment of lines runs these, and putting a statement together costs more than running it.
_AT = (
    stream_offsets.c.org == bindparam("of_org"),
    stream_offsets.c.run_id == bindparam("of_run"),
    stream_offsets.c.attempt == bindparam("of_attempt"),
    stream_offsets.c.stream == bindparam("of_stream"),
)
_OFFSET = select(stream_offsets.c.offset).where(*_AT)
_ADVANCE = update(stream_offsets).where(*_AT)
_BEGIN = insert(stream_offsets)
_ADD_LOG_LINES, _ADD_METRICS = insert(log_lines), insert(metrics)


def offset(connection: Connection, *, org: str, run_id: str, attempt: int, stream: str) -> int:
    """Where the server stands in a stream."""
    value = connection.execute(_OFFSET, _at(org, run_id, attempt, stream)).scalar()
    return value or 0


def advance(connection: Connection, *, org: str, run_id: str, attempt: int, stream: str, to: int) -> None:
    changed = connection.execute(_ADVANCE, {**_at(org, run_id, attempt, stream), "offset": to})
    if changed.rowcount == 0:
        row = {"org": org, "run_id": run_id, "attempt": attempt, "stream": stream, "offset": to}
        connection.execute(_BEGIN, row)


def add_log_lines(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD_LOG_LINES, [dict(row) for row in rows])


def add_metrics(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD_METRICS, [dict(row) for row in rows])


def log_page(
    connection: Connection, *, org: str, run_id: str, since: int, until: int | None, stream: str | None, limit: int
) -> Sequence[AnyRow]:
    """Lines with a number above ``since``."""
    query = select(log_lines).where(log_lines.c.org == org, log_lines.c.run_id == run_id, log_lines.c.number > since)
    if until is not None:
        query = query.where(log_lines.c.number <= until)
    if stream is not None:
        query = query.where(log_lines.c.stream == stream)
    return connection.execute(query.order_by(log_lines.c.number).limit(limit)).all()


def metric_page(connection: Connection, *, org: str, run_id: str, since: int, limit: int) -> Sequence[AnyRow]:
    """Points with a number above ``since``."""
    query = select(metrics).where(metrics.c.org == org, metrics.c.run_id == run_id, metrics.c.number > since)
    return connection.execute(query.order_by(metrics.c.number).limit(limit)).all()


def _at(org: str, run_id: str, attempt: int, stream: str) -> dict[str, Any]:
    return {"of_org": org, "of_run": run_id, "of_attempt": attempt, "of_stream": stream}
