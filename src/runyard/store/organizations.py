"""Rows of organizations, and facts about the store itself (table ``meta``)."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from runyard.store.tables import meta, organizations

STORE_ID = "epoch"  # id of the store incarnation, the first half of every fencing token
PEPPER = "pepper"  # identifies the pepper under which the keys of this store were hashed


def add(connection: Connection, *, org: str, name: str, time_ms: int) -> None:
    connection.execute(insert(organizations).values(id=org, name=name, time_created=time_ms))


def list_ids(connection: Connection) -> Sequence[str]:
    """Return ids, oldest first: admins of the first organization operate the instance."""
    oldest_first = (organizations.c.time_created, organizations.c.id)
    return connection.execute(select(organizations.c.id).order_by(*oldest_first)).scalars().all()


def get_meta(connection: Connection, key: str) -> str | None:
    """Return a fact about the store, such as ``STORE_ID``; None if it is not set."""
    value = connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar()
    return None if value is None else str(value)


def set_meta(connection: Connection, key: str, value: str) -> None:
    connection.execute(insert(meta).values(key=key, value=value))
