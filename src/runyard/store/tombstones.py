"""Ids that were deleted, kept for thirty days."""

from sqlalchemy import Connection, delete, insert, select

from runyard.store.tables import tombstones

KEPT_MS = 30 * 24 * 3600 * 1000


def add(connection: Connection, *, org: str, kind: str, id: str, time_ms: int) -> None:
    connection.execute(delete(tombstones).where(tombstones.c.org == org, tombstones.c.time < time_ms - KEPT_MS))
    connection.execute(insert(tombstones).values(org=org, kind=kind, id=id, time=time_ms))


def exists(connection: Connection, *, org: str, kind: str, id: str) -> bool:
    query = select(tombstones.c.id).where(tombstones.c.org == org, tombstones.c.kind == kind, tombstones.c.id == id)
    return connection.execute(query).first() is not None
