"""Keys as the store holds them: never the secret, only its keyed hash."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update

from runyard.store.tables import AnyRow, keys


def add(
    connection: Connection, *, key_id: str, org: str | None, role: str, secret_mac: bytes, name: str, time_ms: int
) -> None:
    connection.execute(
        insert(keys).values(id=key_id, org=org, role=role, secret_mac=secret_mac, name=name, time_created=time_ms)
    )


def all_rows(connection: Connection) -> Sequence[AnyRow]:
    """Every key; the server keeps them in memory, since each request asks."""
    return connection.execute(select(keys)).all()


def revoke(connection: Connection, *, org: str, key_id: str, time_ms: int) -> bool:
    changed = connection.execute(
        update(keys).where(keys.c.org == org, keys.c.id == key_id, keys.c.revoked.is_(None)).values(revoked=time_ms)
    )
    return changed.rowcount == 1
