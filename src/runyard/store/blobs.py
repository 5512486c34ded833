"""The blobs that rows need, and those to be removed."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, Table, delete, insert, select

from runyard.store.tables import (
    AnyRow,
    contents,
    dataset_exports,
    dataset_versions,
    import_files,
    imports,
    output_files,
    resume_files,
    unneeded_blobs,
    weight_files,
)

_RUN_TABLES = (output_files, resume_files, weight_files)
# Runs share blobs with these only where the content happens to be equal.
_DATASET_TABLES = (contents, import_files, imports, dataset_versions, dataset_exports)
_BATCH_SIZE = 500  # hashes in one query: databases limit the number of values


def keep_for_resume(
    connection: Connection, *, org: str, run_id: str, files: Iterable[AnyRow]
) -> None:
    """Record the files of an output that a run resumes from."""
    _insert_files(connection, resume_files, org, run_id, files)


def keep_weights(connection: Connection, *, org: str, run_id: str, files: Iterable[AnyRow]) -> None:
    """Record the files of an output that a run takes its weights from."""
    _insert_files(connection, weight_files, org, run_id, files)


def list_resume_files(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Return the files that a run resumes from; none for a run that resumes from nothing."""
    return _list_files(connection, resume_files, org, run_id)


def list_weight_files(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Return the files of another run that a run takes its weights from."""
    return _list_files(connection, weight_files, org, run_id)


def is_needed_by_run(connection: Connection, *, org: str, run_id: str, sha256: str) -> bool:
    """Return whether a file of the run's outputs, resume files or weight files has this hash."""
    for table in _RUN_TABLES:
        query = select(table.c.path).where(
            table.c.org == org, table.c.run_id == run_id, table.c.sha256 == sha256
        )
        if connection.execute(query.limit(1)).first() is not None:
            return True
    return False


def list_run_hashes(connection: Connection, *, org: str, run_id: str) -> set[str]:
    """Return the hashes of the run's outputs, resume files and weight files."""
    found = set[str]()
    for table in _RUN_TABLES:
        query = select(table.c.sha256).where(table.c.org == org, table.c.run_id == run_id)
        found |= set(connection.execute(query.distinct()).scalars())
    return found


def list_exclusive_hashes(connection: Connection, *, org: str, run_id: str) -> set[str]:
    """Return the hashes that only this run needs."""
    own = list_run_hashes(connection, org=org, run_id=run_id)
    return own - _find_needed(connection, org=org, hashes=own, except_run=run_id)


def mark_unneeded(connection: Connection, *, org: str, hashes: Collection[str]) -> None:
    """Mark hashes for removal that no row needs any more; call it after the rows are removed."""
    unneeded = set(hashes) - _find_needed(connection, org=org, hashes=hashes)
    known = set(
        connection.execute(
            select(unneeded_blobs.c.sha256).where(unneeded_blobs.c.org == org)
        ).scalars()
    )
    if new := sorted(unneeded - known):
        connection.execute(
            insert(unneeded_blobs), [{"org": org, "sha256": sha256} for sha256 in new]
        )


def has_unneeded(connection: Connection, *, org: str) -> bool:
    query = select(unneeded_blobs.c.sha256).where(unneeded_blobs.c.org == org)
    return connection.execute(query.limit(1)).first() is not None


def list_unneeded(connection: Connection, *, org: str) -> set[str]:
    """Return the marked hashes that are still unneeded: a new row may need one again."""
    marked = set(
        connection.execute(
            select(unneeded_blobs.c.sha256).where(unneeded_blobs.c.org == org)
        ).scalars()
    )
    return marked - _find_needed(connection, org=org, hashes=marked)


def clear_unneeded(connection: Connection, *, org: str) -> None:
    """Clear all marks. Only for the caller that has removed the blobs, under the lock of blobs."""
    connection.execute(delete(unneeded_blobs).where(unneeded_blobs.c.org == org))


def _find_needed(
    connection: Connection, *, org: str, hashes: Collection[str], except_run: str | None = None
) -> set[str]:
    """Return the hashes that rows need, ignoring the rows of the run ``except_run``."""
    ordered, found = sorted(hashes), set[str]()
    for start in range(0, len(ordered), _BATCH_SIZE):
        for table in (*_RUN_TABLES, *_DATASET_TABLES):
            query = select(table.c.sha256).where(
                table.c.org == org, table.c.sha256.in_(ordered[start : start + _BATCH_SIZE])
            )
            if except_run is not None and table in _RUN_TABLES:
                query = query.where(table.c.run_id != except_run)
            found |= set(connection.execute(query.distinct()).scalars())
    return found


def _insert_files(
    connection: Connection, table: Table, org: str, run_id: str, files: Iterable[AnyRow]
) -> None:
    rows = [
        {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in files
    ]
    if rows:
        connection.execute(insert(table), [{"org": org, "run_id": run_id, **row} for row in rows])


def _list_files(connection: Connection, table: Table, org: str, run_id: str) -> Sequence[AnyRow]:
    query = select(table).where(table.c.org == org, table.c.run_id == run_id)
    return connection.execute(query.order_by(table.c.path)).all()
