"""Rows of datasets and of their deletions.

``adjust_counts`` updates counts together with what they count.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from runyard.store.lists import keyset
from runyard.store.tables import (
    AnyRow,
    assets,
    bulk_deletions,
    dataset_deletions,
    dataset_exports,
    dataset_versions,
    datasets,
    import_files,
    imports,
    records,
    run_datasets,
    runs,
    unneeded_contents,
)

_IS_IT = (datasets.c.org == bindparam("of_org"), datasets.c.id == bindparam("of_dataset"))
_GET = select(datasets).where(*_IS_IT)
_CHANGE = update(datasets).where(*_IS_IT)
_NOTHING = {
    "deleted": False,
    "generation": 1,
    "asset_count": 0,
    "annotated_count": 0,
    "record_count": 0,
    "size_bytes": 0,
    "next_number": 1,
    "revision": 0,
    "version": None,
    "version_revision": -1,
    "version_count": 0,
}


def get(connection: Connection, *, org: str, dataset_id: str) -> AnyRow | None:
    """Return every column, also of a deleted dataset."""
    return connection.execute(_GET, {"of_org": org, "of_dataset": dataset_id}).one_or_none()


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(insert(datasets), {**_NOTHING, **values})


def change(connection: Connection, *, org: str, dataset_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(_CHANGE, {**values, "of_org": org, "of_dataset": dataset_id})


def adjust_counts(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    time_ms: int,
    assets: int = 0,
    annotated: int = 0,
    records: int = 0,
    size_bytes: int = 0,
    numbers: int = 0,
) -> None:
    """Add to the counts after a change of content.

    ``numbers`` are record numbers that were assigned.
    """
    table = datasets.c
    connection.execute(
        update(datasets)
        .where(table.org == org, table.id == dataset_id)
        .values(
            asset_count=table.asset_count + assets,
            annotated_count=table.annotated_count + annotated,
            record_count=table.record_count + records,
            size_bytes=table.size_bytes + size_bytes,
            next_number=table.next_number + numbers,
            revision=table.revision + 1,
            last_updated=time_ms,
        )
    )


def page(
    connection: Connection, *, org: str, after: tuple[int, str] | None, limit: int
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (time, id)."""
    query = select(datasets).where(datasets.c.org == org, datasets.c.deleted.is_(False))
    return keyset.read_page(
        connection, query, (datasets.c.time_created, datasets.c.id), after=after, limit=limit
    )


def list_deleted(connection: Connection) -> Sequence[AnyRow]:
    """Return deleted datasets of every organization whose rows still exist; columns org, id.

    For the sweep.
    """
    return connection.execute(
        select(datasets.c.org, datasets.c.id).where(datasets.c.deleted.is_(True))
    ).all()


def list_active_runs(connection: Connection, *, org: str, dataset_id: str, limit: int) -> list[str]:
    """Return at most ``limit`` active runs that are pinned to a version of the dataset."""
    query = (
        select(runs.c.id)
        .join(
            run_datasets, and_(run_datasets.c.org == runs.c.org, run_datasets.c.run_id == runs.c.id)
        )
        .where(
            run_datasets.c.org == org,
            run_datasets.c.dataset_id == dataset_id,
            runs.c.deleted.is_(False),
            runs.c.condition.in_(("Pending", "Running")),
        )
        .order_by(runs.c.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def add_deletion(
    connection: Connection, *, org: str, dataset_id: str, user: str, time_ms: int
) -> None:
    row = {
        "org": org,
        "dataset_id": dataset_id,
        "user": user,
        "time_created": time_ms,
        "time_ended": None,
    }
    connection.execute(insert(dataset_deletions), row)


def complete_deletion(connection: Connection, *, org: str, dataset_id: str, time_ms: int) -> None:
    """Remove the row of a deleted dataset, after everything else of it."""
    connection.execute(delete(datasets).where(datasets.c.org == org, datasets.c.id == dataset_id))
    where = (dataset_deletions.c.org == org, dataset_deletions.c.dataset_id == dataset_id)
    connection.execute(update(dataset_deletions).where(*where).values(time_ended=time_ms))


def get_deletion(connection: Connection, *, org: str, dataset_id: str) -> AnyRow | None:
    query = select(dataset_deletions).where(
        dataset_deletions.c.org == org, dataset_deletions.c.dataset_id == dataset_id
    )
    return connection.execute(query).one_or_none()


def list_active_jobs(connection: Connection, *, org: str, dataset_id: str) -> list[tuple[str, str]]:
    """Return unfinished exports and bulk deletions of a dataset: kind and id."""
    found: list[tuple[str, str]] = []
    for kind, table in (("export", dataset_exports), ("bulk", bulk_deletions)):
        query = select(table.c.id).where(
            table.c.org == org, table.c.dataset_id == dataset_id, table.c.state == "Waiting"
        )
        found += [(kind, id) for id in connection.execute(query).scalars()]
    return found


def remove_batch(connection: Connection, *, org: str, dataset_id: str, limit: int) -> bool:
    """Remove assets or records of a deleted dataset, at most ``limit``.

    Return whether more may be left.
    """
    of_it = (records.c.org == org, records.c.dataset_id == dataset_id)
    query = select(records.c.number).where(*of_it).order_by(records.c.number).limit(limit)
    if numbers := list(connection.execute(query).scalars()):
        connection.execute(delete(records).where(*of_it, records.c.number <= numbers[-1]))
        return True
    rows = connection.execute(
        select(assets.c.id, assets.c.content)
        .where(assets.c.org == org, assets.c.dataset_id == dataset_id)
        .limit(limit)
    ).all()
    if not rows:
        return False
    ids = [row.id for row in rows]
    connection.execute(
        delete(assets).where(
            assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.id.in_(ids)
        )
    )
    mark_unneeded_contents(connection, org=org, hashes={row.content for row in rows})
    return True


def remove(connection: Connection, *, org: str, dataset_id: str) -> set[str]:
    """Remove everything of a deleted dataset but assets, records and its row.

    Return the blobs it named.
    """
    blobs = set[str]()
    of_imports = select(imports.c.id).where(
        imports.c.org == org, imports.c.dataset_id == dataset_id
    )
    in_imports = (import_files.c.org == org, import_files.c.import_id.in_(of_imports))
    blobs |= set(connection.execute(select(import_files.c.sha256).where(*in_imports)).scalars())
    connection.execute(delete(import_files).where(*in_imports))
    for table in (imports, dataset_versions, dataset_exports):
        of_it = (table.c.org == org, table.c.dataset_id == dataset_id)
        blobs |= set(connection.execute(select(table.c.sha256).where(*of_it)).scalars())
        connection.execute(delete(table).where(*of_it))
    for table in (bulk_deletions, run_datasets):
        connection.execute(
            delete(table).where(table.c.org == org, table.c.dataset_id == dataset_id)
        )
    return {sha256 for sha256 in blobs if sha256 is not None}


def list_own_versions(connection: Connection, *, org: str, dataset_id: str) -> set[str]:
    """Return versions that no other dataset has: equal content has the same version id."""
    of_org = select(dataset_versions.c.id).where(dataset_versions.c.org == org)
    mine = connection.execute(of_org.where(dataset_versions.c.dataset_id == dataset_id)).scalars()
    others = connection.execute(of_org.where(dataset_versions.c.dataset_id != dataset_id)).scalars()
    return set(mine) - set(others)


def mark_unneeded_contents(connection: Connection, *, org: str, hashes: set[str]) -> None:
    """Mark contents that an asset no longer uses, for a check by the sweep."""
    candidates = sorted(hashes)
    known = set[str]()
    for start in range(0, len(candidates), 500):
        query = select(unneeded_contents.c.content).where(
            unneeded_contents.c.org == org,
            unneeded_contents.c.content.in_(candidates[start : start + 500]),
        )
        known |= set(connection.execute(query).scalars())
    if new := [content for content in candidates if content not in known]:
        connection.execute(
            insert(unneeded_contents),
            [{"org": org, "content": content, "is_held": False} for content in new],
        )
    if known:
        release_contents(connection, org=org)


def release_contents(connection: Connection, *, org: str) -> None:
    """Let the sweep check contents again that a version needed at its last check."""
    connection.execute(
        update(unneeded_contents)
        .where(unneeded_contents.c.org == org, unneeded_contents.c.is_held.is_(True))
        .values(is_held=False)
    )


def count_rows(connection: Connection, *, org: str, dataset_id: str) -> dict[str, int]:
    """Count the rows of a dataset in each table, to prove that a deletion is complete."""
    counts = {}
    tables = (
        assets,
        records,
        imports,
        dataset_versions,
        dataset_exports,
        bulk_deletions,
        run_datasets,
    )
    for table, column in [
        (datasets, datasets.c.id),
        *((table, table.c.dataset_id) for table in tables),
    ]:
        query = select(column).where(table.c.org == org, column == dataset_id)
        if number := len(connection.execute(query).all()):
            counts[str(table.name)] = number
    return counts
