"""Log lines, numbered per run from 1."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from runyard.store.tables import AnyRow, log_lines, runs

LINE_BYTES = 100  # size of a line in the database besides its text

# Built once: building a statement costs more than running it.
_ADD_LOG_LINES = insert(log_lines)


def add_log_lines(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD_LOG_LINES, [dict(row) for row in rows])


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
