"""Rows of dataset versions, pins of runs, exports, bulk deletions, and unneeded image contents."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update

from runyard.store.lists import keyset
from runyard.store.tables import (
    AnyRow,
    bulk_deletions,
    contents,
    dataset_exports,
    dataset_versions,
    datasets,
    run_datasets,
)
from runyard.store.tables import unneeded_contents as unneeded


def get(connection: Connection, *, org: str, dataset_id: str, version: str) -> AnyRow | None:
    table = dataset_versions.c
    query = select(dataset_versions).where(
        table.org == org, table.dataset_id == dataset_id, table.id == version
    )
    return connection.execute(query).one_or_none()


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(insert(dataset_versions), dict(values))


def page(
    connection: Connection, *, org: str, dataset_id: str, after: tuple[int, str] | None, limit: int
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (number, id)."""
    table = dataset_versions.c
    query = select(dataset_versions).where(table.org == org, table.dataset_id == dataset_id)
    return keyset.read_page(connection, query, (table.number, table.id), after=after, limit=limit)


def list_all(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Return every version of an organization."""
    return connection.execute(select(dataset_versions).where(dataset_versions.c.org == org)).all()


def list_ids(connection: Connection, *, org: str) -> set[tuple[str, str]]:
    """Return dataset and id of every version of an organization."""
    query = select(dataset_versions.c.dataset_id, dataset_versions.c.id).where(
        dataset_versions.c.org == org
    )
    return {(row.dataset_id, row.id) for row in connection.execute(query)}


def is_pinned(connection: Connection, *, org: str, dataset_id: str, version: str) -> bool:
    table = run_datasets.c
    query = select(table.run_id).where(
        table.org == org, table.dataset_id == dataset_id, table.version == version
    )
    return connection.execute(query.limit(1)).first() is not None


def remove(connection: Connection, *, org: str, dataset_id: str, version: str) -> set[str]:
    """Remove a version; return the blob of its manifest, if there was one."""
    table = dataset_versions.c
    where = (table.org == org, table.dataset_id == dataset_id, table.id == version)
    blobs = set(connection.execute(select(table.sha256).where(*where)).scalars())
    connection.execute(delete(dataset_versions).where(*where))
    is_newest = (datasets.c.org == org, datasets.c.id == dataset_id, datasets.c.version == version)
    connection.execute(update(datasets).where(*is_newest).values(version=None, version_revision=-1))
    return blobs


def pin_run(
    connection: Connection, *, org: str, run_id: str, dataset_id: str, version: str
) -> None:
    row = {"org": org, "run_id": run_id, "dataset_id": dataset_id, "version": version}
    connection.execute(insert(run_datasets), row)


def list_pinned(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Return the dataset versions that a run is pinned to; none for built-in data."""
    query = select(run_datasets).where(run_datasets.c.org == org, run_datasets.c.run_id == run_id)
    return connection.execute(query.order_by(run_datasets.c.dataset_id)).all()


# Exports and bulk deletions are jobs of the same form: an id in an organization, a state, a spec.
JOB_TABLES: tuple[Table, ...] = (dataset_exports, bulk_deletions)


def get_job(connection: Connection, table: Table, *, org: str, id: str) -> AnyRow | None:
    return connection.execute(
        select(table).where(table.c.org == org, table.c.id == id)
    ).one_or_none()


def add_job(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    connection.execute(insert(table), dict(values))


def change_job(
    connection: Connection, table: Table, *, org: str, id: str, values: Mapping[str, Any]
) -> None:
    connection.execute(update(table).where(table.c.org == org, table.c.id == id).values(**values))


def list_active_jobs(connection: Connection, table: Table) -> Sequence[AnyRow]:
    """Return the unfinished jobs of every organization, oldest first."""
    return connection.execute(
        select(table).where(table.c.state == "Waiting").order_by(table.c.time_created)
    ).all()


def job_page(
    connection: Connection,
    table: Table,
    *,
    org: str,
    dataset_id: str,
    after: tuple[int, str] | None,
    limit: int,
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (time, id)."""
    query = select(table).where(table.c.org == org, table.c.dataset_id == dataset_id)
    return keyset.read_page(
        connection, query, (table.c.time_created, table.c.id), after=after, limit=limit
    )


def list_old_exports(connection: Connection, *, before_ms: int) -> Sequence[AnyRow]:
    """Return finished exports of every organization that were last updated before a time."""
    query = select(dataset_exports).where(
        dataset_exports.c.last_updated < before_ms, dataset_exports.c.state != "Waiting"
    )
    return connection.execute(query).all()


def remove_export(connection: Connection, *, org: str, id: str) -> None:
    connection.execute(
        delete(dataset_exports).where(dataset_exports.c.org == org, dataset_exports.c.id == id)
    )


# The bytes of images: which contents nothing needs, and where a blob's contents are.


def list_unneeded_contents(connection: Connection, *, org: str) -> set[str]:
    """Return the contents that wait for a check."""
    query = select(unneeded.c.content).where(unneeded.c.org == org, unneeded.c.is_held.is_(False))
    return set(connection.execute(query).scalars())


def record_content_checks(
    connection: Connection, *, org: str, held: Collection[str], gone: Collection[str]
) -> set[str]:
    """Keep the contents ``held`` for a version of a run, remove those ``gone``.

    Return the blobs of the latter.
    """
    blobs = set[str]()
    for some in _split_batches(gone):
        where = (contents.c.org == org, contents.c.content.in_(some))
        blobs |= set(connection.execute(select(contents.c.sha256).where(*where)).scalars())
        connection.execute(delete(contents).where(*where))
        connection.execute(
            delete(unneeded).where(unneeded.c.org == org, unneeded.c.content.in_(some))
        )
    for some in _split_batches(held):
        connection.execute(
            update(unneeded)
            .where(unneeded.c.org == org, unneeded.c.content.in_(some))
            .values(is_held=True)
        )
    return blobs


def mark_needed(connection: Connection, *, org: str, needed: Collection[str]) -> None:
    """Remove the marks of contents that an asset needs again."""
    for some in _split_batches(needed):
        connection.execute(
            delete(unneeded).where(unneeded.c.org == org, unneeded.c.content.in_(some))
        )


def list_in_blob(connection: Connection, *, org: str, sha256: str) -> Sequence[AnyRow]:
    """Return the contents in a blob, by offset."""
    query = select(contents).where(contents.c.org == org, contents.c.sha256 == sha256)
    return connection.execute(query.order_by(contents.c.offset, contents.c.content)).all()


def move_contents(
    connection: Connection, *, org: str, old: str, new: str, offsets: Mapping[str, int]
) -> None:
    """Record that contents of one blob are in another one now."""
    for content, offset in offsets.items():
        connection.execute(
            update(contents)
            .where(contents.c.org == org, contents.c.content == content, contents.c.sha256 == old)
            .values(sha256=new, offset=offset)
        )


def _split_batches(values: Collection[str]) -> list[list[str]]:
    ordered = sorted(values)
    return [ordered[start : start + 500] for start in range(0, len(ordered), 500)]
