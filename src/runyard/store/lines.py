"""What attempts say: stream offsets, log lines and metric points, numbered per run from 1 on."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from runyard.store.tables import AnyRow, log_lines, metrics, stream_offsets


def offset(connection: Connection, *, org: str, run_id: str, attempt: int, stream: str) -> int:
    """Where the server stands in a stream."""
    value = connection.execute(select(stream_offsets.c.offset).where(*_at(org, run_id, attempt, stream))).scalar()
    return value or 0


def advance(connection: Connection, *, org: str, run_id: str, attempt: int, stream: str, to: int) -> None:
    changed = connection.execute(update(stream_offsets).where(*_at(org, run_id, attempt, stream)).values(offset=to))
    if changed.rowcount == 0:
        connection.execute(
            insert(stream_offsets).values(org=org, run_id=run_id, attempt=attempt, stream=stream, offset=to)
        )


def add_log_lines(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        # PostgreSQL keeps no NUL in a text, and a line that cannot be stored would be sent again for ever.
        kept = [dict(row) | {"text": row["text"].replace("\0", "\ufffd")} for row in rows]
        connection.execute(insert(log_lines), kept)


def add_metrics(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(insert(metrics), [dict(row) for row in rows])


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


def _at(org: str, run_id: str, attempt: int, stream: str) -> tuple[Any, ...]:
    columns = stream_offsets.c
    return columns.org == org, columns.run_id == run_id, columns.attempt == attempt, columns.stream == stream
