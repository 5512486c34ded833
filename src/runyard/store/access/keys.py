"""Rows of keys: never the secret, only its keyed hash."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from runyard.store.lists import keyset
from runyard.store.tables import AnyRow, keys

_SET_LAST_USED = (
    update(keys).where(keys.c.id == bindparam("key_id")).values(last_used=bindparam("time_ms"))
)


def add(
    connection: Connection,
    *,
    key_id: str,
    org: str | None,
    role: str,
    secret_mac: bytes,
    name: str,
    time_ms: int,
    created_by: str | None = None,
    expires: int | None = None,
) -> None:
    connection.execute(
        insert(keys).values(
            id=key_id,
            org=org,
            role=role,
            secret_mac=secret_mac,
            name=name,
            time_created=time_ms,
            created_by=created_by,
            expires=expires,
        )
    )


def list_all(connection: Connection) -> Sequence[AnyRow]:
    """Return every key; the server keeps them in memory, since each request needs them."""
    return connection.execute(select(keys)).all()


def get(connection: Connection, *, org: str, key_id: str) -> AnyRow | None:
    return connection.execute(
        select(keys).where(keys.c.org == org, keys.c.id == key_id)
    ).one_or_none()


def page(
    connection: Connection, *, org: str, after: tuple[int, str] | None, limit: int
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (time, id)."""
    query = select(keys).where(keys.c.org == org)
    return keyset.read_page(
        connection, query, (keys.c.time_created, keys.c.id), after=after, limit=limit
    )


def change(connection: Connection, *, org: str, key_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(update(keys).where(keys.c.org == org, keys.c.id == key_id).values(**values))


def revoke(connection: Connection, *, org: str, key_id: str, time_ms: int) -> bool:
    changed = connection.execute(
        update(keys)
        .where(keys.c.org == org, keys.c.id == key_id, keys.c.revoked.is_(None))
        .values(revoked=time_ms)
    )
    return changed.rowcount == 1


def get_machine_key(connection: Connection, *, key_id: str) -> AnyRow | None:
    """Return the key of a machine that has joined; such keys have no organization."""
    query = select(keys).where(keys.c.id == key_id, keys.c.role == "machine")
    return connection.execute(query).one_or_none()


def revoke_machine_key(connection: Connection, *, key_id: str, time_ms: int) -> None:
    connection.execute(
        update(keys)
        .where(keys.c.id == key_id, keys.c.role == "machine", keys.c.revoked.is_(None))
        .values(revoked=time_ms)
    )


def count_permanent_admins(connection: Connection, *, org: str) -> int:
    """Count admin keys that are neither revoked nor expire."""
    query = select(func.count()).where(
        keys.c.org == org,
        keys.c.role == "admin",
        keys.c.revoked.is_(None),
        keys.c.expires.is_(None),
    )
    return int(connection.execute(query).scalar_one())


def set_last_used(connection: Connection, times_ms: Mapping[str, int]) -> None:
    """Record when keys were last used, by id."""
    if times_ms:
        connection.execute(
            _SET_LAST_USED, [{"key_id": id, "time_ms": time_ms} for id, time_ms in times_ms.items()]
        )
