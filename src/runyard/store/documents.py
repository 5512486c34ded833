"""Rows of flows and training projects: a document under an id.

Both tables have the same columns, so each function takes the table as its first argument after the
connection.
"""

import functools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from runyard.store.engines.prepared import Prepared
from runyard.store.lists import keyset
from runyard.store.tables import AnyRow


def get(connection: Connection, table: Table, *, org: str, id: str) -> Any:
    """Return the columns document, etag, generation, body_sha256; None if there is no document."""
    return _prepare_get(table).find(connection, {"org": org, "id": id})


@functools.cache
def _prepare_get(table: Table) -> Prepared:
    columns = (table.c.document, table.c.etag, table.c.generation, table.c.body_sha256)
    is_it = (table.c.org == bindparam("org"), table.c.id == bindparam("id"))
    return Prepared(select(*columns).where(*is_it))


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
    values: dict[str, Any] = {"org": org, "max_rows": limit}
    if after is not None:
        values |= {"after_time": after[0], "after_id": after[1]}
    return _prepare_page(table, is_after=after is not None).list_rows(connection, values)


@functools.cache
def _prepare_page(table: Table, *, is_after: bool) -> Prepared:
    order = (table.c.time_created, table.c.id)
    query = select(table.c.document, *order).where(table.c.org == bindparam("org"))
    if is_after:
        after: list[Any] = [bindparam("after_time"), bindparam("after_id")]
        query = query.where(keyset.compare(order, after))
    return Prepared(keyset.sort(query, order).limit(bindparam("max_rows")))
