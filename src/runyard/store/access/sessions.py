"""Rows of browser sessions and their one-time codes: never a secret, only its keyed hash."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from runyard.store.tables import AnyRow, keys, session_codes, sessions

_FIND = select(sessions).where(sessions.c.secret_mac == bindparam("mac"))
_SET_LAST_USED = (
    update(sessions)
    .where(sessions.c.id == bindparam("session_id"))
    .values(last_used=bindparam("time_ms"))
)


def add_code(
    connection: Connection, *, secret_mac: bytes, org: str, key_id: str, expires: int
) -> None:
    connection.execute(
        insert(session_codes).values(secret_mac=secret_mac, org=org, key_id=key_id, expires=expires)
    )


def find_code(connection: Connection, *, secret_mac: bytes) -> AnyRow | None:
    return connection.execute(
        select(session_codes).where(session_codes.c.secret_mac == secret_mac)
    ).one_or_none()


def take_code(connection: Connection, *, secret_mac: bytes) -> bool:
    """Remove a code; return whether it still existed."""
    where = session_codes.c.secret_mac == secret_mac
    return connection.execute(delete(session_codes).where(where)).rowcount == 1


def count_codes(connection: Connection, *, org: str, key_id: str) -> int:
    query = select(func.count()).where(session_codes.c.org == org, session_codes.c.key_id == key_id)
    return int(connection.execute(query).scalar_one())


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(insert(sessions).values(**values))


def find(connection: Connection, *, secret_mac: bytes) -> AnyRow | None:
    return connection.execute(_FIND, {"mac": secret_mac}).one_or_none()


def get(connection: Connection, *, org: str, session_id: str) -> AnyRow | None:
    return connection.execute(
        select(sessions).where(sessions.c.org == org, sessions.c.id == session_id)
    ).one_or_none()


def page(
    connection: Connection, *, org: str, now_ms: int, after: tuple[int, str] | None, limit: int
) -> Sequence[AnyRow]:
    """Return a page of the sessions that have not ended, newest first."""
    query = select(sessions).where(
        sessions.c.org == org, sessions.c.expires > now_ms, _has_valid_key(now_ms)
    )
    if after is not None:
        query = query.where(tuple_(sessions.c.time_created, sessions.c.id) < after)
    return connection.execute(
        query.order_by(sessions.c.time_created.desc(), sessions.c.id.desc()).limit(limit)
    ).all()


def remove(connection: Connection, *, org: str, session_id: str) -> bool:
    """End a session; return whether it existed."""
    where = and_(sessions.c.org == org, sessions.c.id == session_id)
    return connection.execute(delete(sessions).where(where)).rowcount == 1


def has_ended(connection: Connection, *, now_ms: int) -> bool:
    """Return whether ``remove_ended`` would remove anything."""
    queries = (
        select(sessions.c.id).where(or_(sessions.c.expires <= now_ms, ~_has_valid_key(now_ms))),
        select(session_codes.c.key_id).where(session_codes.c.expires <= now_ms),
    )
    return any(connection.execute(query.limit(1)).first() is not None for query in queries)


def remove_ended(connection: Connection, *, now_ms: int) -> None:
    """Remove sessions and codes that have expired, or whose key has ended."""
    connection.execute(
        delete(sessions).where(or_(sessions.c.expires <= now_ms, ~_has_valid_key(now_ms)))
    )
    connection.execute(delete(session_codes).where(session_codes.c.expires <= now_ms))


def remove_oldest(connection: Connection, *, org: str, key_id: str, kept: int) -> None:
    """Remove all sessions of a key but the newest ``kept``."""
    of_key = and_(sessions.c.org == org, sessions.c.key_id == key_id)
    oldest = (
        select(sessions.c.id)
        .where(of_key)
        .order_by(sessions.c.time_created.desc(), sessions.c.id.desc())
        .offset(kept)
    )
    ids = connection.execute(oldest).scalars().all()
    if ids:
        connection.execute(delete(sessions).where(sessions.c.id.in_(ids)))


def set_last_used(connection: Connection, times_ms: Mapping[str, int]) -> None:
    """Record when sessions were last used, by id."""
    if times_ms:
        connection.execute(
            _SET_LAST_USED,
            [{"session_id": id, "time_ms": time_ms} for id, time_ms in times_ms.items()],
        )


def _has_valid_key(now_ms: int) -> Any:
    return exists().where(
        keys.c.id == sessions.c.key_id,
        keys.c.revoked.is_(None),
        or_(keys.c.expires.is_(None), keys.c.expires > now_ms),
    )
