"""Log lines, numbered per run from 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from runyard.store.tables import AnyRow, log_blocks, log_lines, runs

LINE_BYTES = 100  # size of a line in the database besides its text

# Built once: building a statement costs more than running it.
_ADD_LOG_LINES = insert(log_lines)


@dataclass(frozen=True, kw_only=True)
class LineFilter:
    """What the database checks of a line; times in epoch milliseconds, both inclusive.

    ``literals``: the text contains one of them, ignoring the case of ASCII letters.
    """

    stream: str | None = None
    attempt: int | None = None
    time_from: int | None = None
    time_to: int | None = None
    literals: tuple[str, ...] = ()


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
    """Remove every line of a run, with the summaries of its blocks."""
    for table in (log_lines, log_blocks):
        connection.execute(delete(table).where(table.c.org == org, table.c.run_id == run_id))


def get_bounds(connection: Connection, *, org: str, run_id: str) -> tuple[int, int]:
    """Return the numbers of the first and the last line; (0, 0) without lines."""
    of_run = (log_lines.c.org == org, log_lines.c.run_id == run_id)
    # Two queries, each of which the primary key answers at once; one with both would read the log.
    first = connection.execute(select(func.min(log_lines.c.number)).where(*of_run)).scalar()
    last = connection.execute(select(func.max(log_lines.c.number)).where(*of_run)).scalar()
    return first or 0, last or 0


def list_lines(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    above: int,
    up_to: int,
    filter: LineFilter,
    newest_first: bool,
    limit: int,
) -> Sequence[AnyRow]:
    """Return lines with numbers in (above, up_to] that pass a filter."""
    query = select(log_lines).where(
        log_lines.c.org == org,
        log_lines.c.run_id == run_id,
        log_lines.c.number > above,
        log_lines.c.number <= up_to,
    )
    for column, value in (
        (log_lines.c.stream, filter.stream),
        (log_lines.c.attempt, filter.attempt),
    ):
        if value is not None:
            query = query.where(column == value)
    if filter.time_from is not None:
        query = query.where(log_lines.c.time >= filter.time_from)
    if filter.time_to is not None:
        query = query.where(log_lines.c.time <= filter.time_to)
    if filter.literals:
        query = query.where(or_(*(_contains(connection, text) for text in filter.literals)))
    number = log_lines.c.number
    query = query.order_by(number.desc() if newest_first else number).limit(limit)
    return connection.execute(query).all()


def join_texts(connection: Connection, *, org: str, run_id: str, above: int, up_to: int) -> str:
    """Return the texts of lines with numbers in (above, up_to], separated by line ends."""
    values = {"of_org": org, "of_run": run_id, "above": above, "up_to": up_to}
    return connection.execute(_JOIN_TEXTS, values).scalar() or ""


_JOIN_TEXTS = select(func.aggregate_strings(log_lines.c.text, "\n")).where(
    log_lines.c.org == bindparam("of_org"),
    log_lines.c.run_id == bindparam("of_run"),
    log_lines.c.number > bindparam("above"),
    log_lines.c.number <= bindparam("up_to"),
)


def _contains(connection: Connection, literal: str) -> ColumnElement[bool]:
    """Return the condition that a text contains a literal, ignoring the case of ASCII letters."""
    if connection.dialect.name == "sqlite":  # whose LIKE ignores that case
        return log_lines.c.text.contains(literal, autoescape=True)
    return log_lines.c.text.icontains(literal, autoescape=True)
