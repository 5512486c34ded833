"""Ids that were deleted, kept for thirty days."""

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from runyard.store.tables import tombstones

KEPT_MS = 30 * 24 * 3600 * 1000


def add(connection: Connection, *, org: str, kind: str, id: str, time_ms: int) -> None:
    connection.execute(insert(tombstones).values(org=org, kind=kind, id=id, time=time_ms))


def expired(connection: Connection, *, now_ms: int) -> bool:
    """Whether any organisation has one that is due; asked before the writer is."""
    return connection.execute(select(tombstones.c.id).where(_is_due(now_ms)).limit(1)).first() is not None


def expire(connection: Connection, *, now_ms: int) -> None:
    """Forget those of every organisation that have been kept long enough."""
    connection.execute(delete(tombstones).where(_is_due(now_ms)))


def exists(connection: Connection, *, org: str, kind: str, id: str) -> bool:
    query = select(tombstones.c.id).where(tombstones.c.org == org, tombstones.c.kind == kind, tombstones.c.id == id)
    return connection.execute(query).first() is not None


def _is_due(now_ms: int) -> ColumnElement[bool]:
    return tombstones.c.time < now_ms - KEPT_MS
