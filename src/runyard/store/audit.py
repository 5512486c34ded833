"""Rows of the audit log: one for every change and each series of rejected keys."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, String, cast, delete, insert, or_, select, update

from runyard.store.engines.prepared import Prepared
from runyard.store.tables import AnyRow, audit

_ADD = Prepared(
    insert(audit).returning(audit.c.number),
    ("org", "time", "actor", "address", "action", "target", "count"),
)


def add(
    connection: Connection,
    *,
    org: str,
    time_ms: int,
    actor: str,
    address: str,
    action: str,
    target: str,
    count: int = 1,
) -> int:
    """Insert a row; return its number."""
    row = {
        "org": org,
        "time": time_ms,
        "actor": actor,
        "address": address,
        "action": action,
        "target": target,
    }
    return int(_ADD.find(connection, row | {"count": count})[0])


def set_count(connection: Connection, *, number: int, count: int) -> None:
    connection.execute(update(audit).where(audit.c.number == number).values(count=count))


def page(
    connection: Connection,
    *,
    orgs: Collection[str],
    before: int | None,
    limit: int,
    actor: str | None = None,
    action: str | None = None,
    since: int | None = None,
    until: int | None = None,
) -> Sequence[AnyRow]:
    """Return a page, newest first, before the row of a number.

    With id and time_created, as in other lists.

    ``actor`` may be the id of a key.
    """
    id, time = cast(audit.c.number, String(20)).label("id"), audit.c.time.label("time_created")
    query = select(audit, id, time).where(audit.c.org.in_(orgs))
    if before is not None:
        query = query.where(audit.c.number < before)
    if actor is not None:
        query = query.where(or_(audit.c.actor == actor, audit.c.actor == f"key {actor}"))
    if action is not None:
        query = query.where(audit.c.action == action)
    if since is not None:
        query = query.where(audit.c.time >= since)
    if until is not None:
        query = query.where(audit.c.time < until)
    return connection.execute(query.order_by(audit.c.number.desc()).limit(limit)).all()


def prune(connection: Connection, *, before_ms: int, limit: int) -> bool:
    """Remove rows older than a time, at most ``limit``; return whether more may be left.

    Only the first rows by number are examined: this runs every minute and mostly finds nothing.
    """
    oldest = connection.execute(
        select(audit.c.number, audit.c.time).order_by(audit.c.number).limit(limit)
    ).all()
    numbers = [row.number for row in oldest if row.time < before_ms]
    if numbers:
        connection.execute(delete(audit).where(audit.c.number.in_(numbers)))
    return len(numbers) == limit
