"""Organisations and the store's own facts."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from runyard.store.tables import meta, organizations

EPOCH = "epoch"  # the fact that is the first half of every fencing token
PEPPER = "pepper"  # the fact that identifies the pepper under which the keys of this store were hashed


def add(connection: Connection, *, org: str, name: str, time_ms: int) -> None:
    connection.execute(insert(organizations).values(id=org, name=name, time_created=time_ms))


def ids(connection: Connection) -> Sequence[str]:
    """Oldest first: the first is the one the instance began with, whose admins are its operators."""
    oldest_first = (organizations.c.time_created, organizations.c.id)
    return connection.execute(select(organizations.c.id).order_by(*oldest_first)).scalars().all()


def fact(connection: Connection, key: str) -> str | None:
    """A fact about the store, such as its ``epoch``."""
    value = connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar()
    return None if value is None else str(value)


def set_fact(connection: Connection, key: str, value: str) -> None:
    connection.execute(insert(meta).values(key=key, value=value))
