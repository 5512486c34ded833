"""Rows of flows and training projects: a document under an id.

Both tables have the same columns, so each function takes the table as its first argument after the
connection.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Table, delete, insert, select, update

from runyard.store.lists import keyset
from runyard.store.tables import AnyRow


def get(connection: Connection, table: Table, *, org: str, id: str) -> AnyRow | None:
    """Return the columns document, etag, generation, body_sha256."""
    return connection.execute(
        select(table.c.document, table.c.etag, table.c.generation, table.c.body_sha256).where(
            table.c.org == org, table.c.id == id
        )
    ).one_or_none()


def exists(connection: Connection, table: Table, *, org: str, id: str) -> bool:
    return (
        connection.execute(select(table.c.id).where(table.c.org == org, table.c.id == id)).first()
        is not None
    )


def add(
    connection: Connection,
    table: Table,
    *,
    org: str,
    id: str,
    document: bytes,
    etag: str,
    body_sha256: bytes,
    time_ms: int,
) -> None:
    connection.execute(
        insert(table).values(
            org=org,
            id=id,
            document=document,
            etag=etag,
            generation=1,
            body_sha256=body_sha256,
            time_created=time_ms,
        )
    )


def replace(
    connection: Connection,
    table: Table,
    *,
    org: str,
    id: str,
    document: bytes,
    etag: str,
    generation: int,
) -> None:
    connection.execute(
        update(table)
        .where(table.c.org == org, table.c.id == id)
        .values(document=document, etag=etag, generation=generation)
    )


def remove(connection: Connection, table: Table, *, org: str, id: str) -> bool:
    return (
        connection.execute(delete(table).where(table.c.org == org, table.c.id == id)).rowcount == 1
    )


def page(
    connection: Connection, table: Table, *, org: str, after: tuple[int, str] | None, limit: int
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (time, id).

    Columns document, time_created, id.
    """
    query = select(table.c.document, table.c.time_created, table.c.id).where(table.c.org == org)
    return keyset.read_page(
        connection, query, (table.c.time_created, table.c.id), after=after, limit=limit
    )
