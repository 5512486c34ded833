"""Tombstones: ids that were deleted, kept for thirty days."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select

from runyard.store.engines.prepared import Prepared
from runyard.store.tables import tombstones

RETENTION_MS = 30 * 24 * 3600 * 1000
_FIND = Prepared(
    select(tombstones.c.id).where(
        tombstones.c.org == bindparam("of_org"),
        tombstones.c.kind == bindparam("of_kind"),
        tombstones.c.id == bindparam("of_id"),
    )
)
_ADD = Prepared(insert(tombstones))


def add(connection: Connection, *, org: str, kind: str, id: str, time_ms: int) -> None:
    _ADD.run(connection, {"org": org, "kind": kind, "id": id, "time": time_ms})


def has_expired(connection: Connection, *, now_ms: int) -> bool:
    """Return whether any has expired; a read that saves a write."""
    return (
        connection.execute(select(tombstones.c.id).where(_is_due(now_ms)).limit(1)).first()
        is not None
    )


def remove_expired(connection: Connection, *, now_ms: int) -> None:
    """Remove the expired tombstones of every organization."""
    connection.execute(delete(tombstones).where(_is_due(now_ms)))


def exists(connection: Connection, *, org: str, kind: str, id: str) -> bool:
    return _FIND.find(connection, {"of_org": org, "of_kind": kind, "of_id": id}) is not None


def list_valid(
    connection: Connection, *, org: str, kind: str, ids: Sequence[str], now_ms: int
) -> Sequence[str]:
    """Return those of some ids that were deleted, and whose tombstones have not expired."""
    query = select(tombstones.c.id).where(
        tombstones.c.org == org,
        tombstones.c.kind == kind,
        tombstones.c.id.in_(ids),
        tombstones.c.time >= now_ms - RETENTION_MS,
    )
    return connection.execute(query).scalars().all()


def _is_due(now_ms: int) -> ColumnElement[bool]:
    return tombstones.c.time < now_ms - RETENTION_MS
