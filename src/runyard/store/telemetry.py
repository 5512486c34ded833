"""Rows of telemetry: stream offsets, log lines and metric points, numbered per run from 1."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from runyard.store.tables import AnyRow, log_lines, metrics, runs, stream_offsets

LINE_BYTES = 100  # size of a line in the database besides its text

# Built once: every message with lines runs these, and building a statement costs more than running
# it.
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


def get_offset(connection: Connection, *, org: str, run_id: str, attempt: int, stream: str) -> int:
    """Return the offset up to which the server has received a stream."""
    value = connection.execute(_OFFSET, _offset_key(org, run_id, attempt, stream)).scalar()
    return value or 0


def advance_offset(
    connection: Connection, *, org: str, run_id: str, attempt: int, stream: str, to: int
) -> None:
    changed = connection.execute(
        _ADVANCE, {**_offset_key(org, run_id, attempt, stream), "offset": to}
    )
    if changed.rowcount == 0:
        row = {"org": org, "run_id": run_id, "attempt": attempt, "stream": stream, "offset": to}
        connection.execute(_BEGIN, row)


def add_log_lines(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD_LOG_LINES, [dict(row) for row in rows])


def add_metrics(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD_METRICS, [dict(row) for row in rows])


def trim_log(connection: Connection, *, org: str, run_id: str, limit: int) -> int:
    """Remove the oldest ``limit`` lines of a run if it has more than that.

    Return how many were removed.
    """
    of_run = (log_lines.c.org == org, log_lines.c.run_id == run_id)
    ordered = select(log_lines.c.number).where(*of_run).order_by(log_lines.c.number)
    first_kept = connection.execute(ordered.offset(limit).limit(1)).scalar()
    if first_kept is None:
        return 0
    return connection.execute(
        delete(log_lines).where(*of_run, log_lines.c.number < first_kept)
    ).rowcount


def count_log_bytes(connection: Connection) -> None:
    """Record the size of every run's log, for rows from before it was recorded."""
    of_run = (log_lines.c.org == runs.c.org, log_lines.c.run_id == runs.c.id)
    total = select(func.coalesce(func.sum(func.length(log_lines.c.text) + LINE_BYTES), 0)).where(
        *of_run
    )
    connection.execute(update(runs).values(log_bytes=total.scalar_subquery()))


def remove_log(connection: Connection, *, org: str, run_id: str) -> None:
    """Remove every line of a run."""
    connection.execute(
        delete(log_lines).where(log_lines.c.org == org, log_lines.c.run_id == run_id)
    )


def log_page(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    since: int,
    until: int | None,
    stream: str | None,
    limit: int,
) -> Sequence[AnyRow]:
    """Return lines with a number above ``since``."""
    query = select(log_lines).where(
        log_lines.c.org == org, log_lines.c.run_id == run_id, log_lines.c.number > since
    )
    if until is not None:
        query = query.where(log_lines.c.number <= until)
    if stream is not None:
        query = query.where(log_lines.c.stream == stream)
    return connection.execute(query.order_by(log_lines.c.number).limit(limit)).all()


def metric_page(
    connection: Connection, *, org: str, run_id: str, since: int, limit: int
) -> Sequence[AnyRow]:
    """Return points with a number above ``since``."""
    query = select(metrics).where(
        metrics.c.org == org, metrics.c.run_id == run_id, metrics.c.number > since
    )
    return connection.execute(query.order_by(metrics.c.number).limit(limit)).all()


def _offset_key(org: str, run_id: str, attempt: int, stream: str) -> dict[str, Any]:
    return {"of_org": org, "of_run": run_id, "of_attempt": attempt, "of_stream": stream}
