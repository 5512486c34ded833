"""Rows of imports and of their files. An import that has ended keeps its row but not its files."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from runyard.store.lists import keyset
from runyard.store.tables import AnyRow, import_files, imports

# Receiving: files arrive. Sealed: all have arrived and are checked. Committing: accepted rows are
# inserted into the dataset. The other states are final.
ACTIVE_STATES = ("Receiving", "Sealed", "Committing")


def get(connection: Connection, *, org: str, import_id: str) -> AnyRow | None:
    return connection.execute(
        select(imports).where(imports.c.org == org, imports.c.id == import_id)
    ).one_or_none()


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(
        insert(imports), {"images_done": 0, "records_done": 0, "time_sealed": None, **values}
    )


def change(connection: Connection, *, org: str, import_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(
        update(imports).where(imports.c.org == org, imports.c.id == import_id).values(**values)
    )


def transition(
    connection: Connection,
    *,
    org: str,
    import_id: str,
    before: Collection[str],
    values: Mapping[str, Any],
) -> bool:
    """Change an import if its state is one of ``before``; return whether it was."""
    where = (imports.c.org == org, imports.c.id == import_id, imports.c.state.in_(before))
    return connection.execute(update(imports).where(*where).values(**values)).rowcount == 1


def page(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    kind: str,
    after: tuple[int, str] | None,
    limit: int,
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (time, id)."""
    query = select(imports).where(
        imports.c.org == org, imports.c.dataset_id == dataset_id, imports.c.kind == kind
    )
    return keyset.read_page(
        connection, query, (imports.c.time_created, imports.c.id), after=after, limit=limit
    )


def list_active(connection: Connection) -> Sequence[AnyRow]:
    """Return the active imports of every organization, oldest first."""
    query = (
        select(imports)
        .where(imports.c.state.in_(ACTIVE_STATES))
        .order_by(imports.c.time_created, imports.c.id)
    )
    return connection.execute(query).all()


def list_active_ids(
    connection: Connection, *, org: str, dataset_id: str | None = None
) -> list[str]:
    """Return the ids of active imports of an organization, or of one of its datasets."""
    query = select(imports.c.id).where(imports.c.org == org, imports.c.state.in_(ACTIVE_STATES))
    if dataset_id is not None:
        query = query.where(imports.c.dataset_id == dataset_id)
    return list(connection.execute(query).scalars())


def list_overdue(connection: Connection, *, now_ms: int) -> Sequence[AnyRow]:
    """Return imports of every organization that wait for files after their deadline.

    Columns org, id.
    """
    query = select(imports.c.org, imports.c.id).where(
        imports.c.state == "Receiving", imports.c.deadline < now_ms
    )
    return connection.execute(query).all()


def add_files(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    nothing = {
        "name": None,
        "crc32c": None,
        "mime": None,
        "custom": None,
        "sha256": None,
        "fault": None,
    }
    if rows:
        connection.execute(insert(import_files), [{**nothing, **row} for row in rows])


def list_files(
    connection: Connection, *, org: str, import_id: str, after: int = 0
) -> Sequence[AnyRow]:
    """Return files by number, those with a number above ``after``."""
    query = select(import_files).where(
        import_files.c.org == org,
        import_files.c.import_id == import_id,
        import_files.c.number > after,
    )
    return connection.execute(query.order_by(import_files.c.number)).all()


def get_file(connection: Connection, *, org: str, import_id: str, number: int) -> AnyRow | None:
    where = (
        import_files.c.org == org,
        import_files.c.import_id == import_id,
        import_files.c.number == number,
    )
    return connection.execute(select(import_files).where(*where)).one_or_none()


def find_file(connection: Connection, *, org: str, import_id: str, name: str) -> AnyRow | None:
    where = (
        import_files.c.org == org,
        import_files.c.import_id == import_id,
        import_files.c.name == name,
    )
    return connection.execute(select(import_files).where(*where).limit(1)).one_or_none()


def change_file(
    connection: Connection, *, org: str, import_id: str, number: int, values: Mapping[str, Any]
) -> None:
    where = (
        import_files.c.org == org,
        import_files.c.import_id == import_id,
        import_files.c.number == number,
    )
    connection.execute(update(import_files).where(*where).values(**values))


def list_received_hashes(connection: Connection, *, org: str, import_id: str) -> set[str]:
    """Return the hashes of the blobs that have arrived."""
    query = select(import_files.c.sha256).where(
        import_files.c.org == org,
        import_files.c.import_id == import_id,
        import_files.c.sha256.is_not(None),
    )
    return set(connection.execute(query).scalars())


def next_file_number(connection: Connection, *, org: str, import_id: str) -> int:
    query = select(func.max(import_files.c.number)).where(
        import_files.c.org == org, import_files.c.import_id == import_id
    )
    return int(connection.execute(query).scalar() or 0) + 1


def is_awaiting_files(connection: Connection, *, org: str, import_id: str) -> bool:
    """Return whether an announced file has neither arrived nor failed."""
    query = select(import_files.c.number).where(
        import_files.c.org == org,
        import_files.c.import_id == import_id,
        import_files.c.sha256.is_(None),
        import_files.c.fault.is_(None),
    )
    return connection.execute(query.limit(1)).first() is not None


def count_files(connection: Connection, *, org: str, import_id: str) -> tuple[int, int, int, int]:
    """Count files: all, those that have arrived, those that have failed, and the bytes of all."""
    table = import_files.c
    query = select(
        func.count(),
        func.count(table.sha256),
        func.count(table.fault),
        func.coalesce(func.sum(table.size_bytes), 0),
    ).where(table.org == org, table.import_id == import_id)
    row = connection.execute(query).one()
    return int(row[0]), int(row[1]), int(row[2]), int(row[3])


def remove_files(connection: Connection, *, org: str, import_id: str) -> set[str]:
    """Remove the files of an import that has ended; return their blobs."""
    found = list_received_hashes(connection, org=org, import_id=import_id)
    connection.execute(
        delete(import_files).where(import_files.c.org == org, import_files.c.import_id == import_id)
    )
    return found


def list_ids(connection: Connection, *, org: str) -> set[str]:
    """Return the id of every import with a row."""
    return set(connection.execute(select(imports.c.id).where(imports.c.org == org)).scalars())
