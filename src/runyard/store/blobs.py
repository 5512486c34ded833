"""Which bytes the rows need: files of outputs, resumes, weights and datasets. And which are to be removed."""

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

_NEEDING = (output_files, resume_files, weight_files)
# Nothing that a run owns ever has the bytes of these, except by having the same content.
_DATASETS_NEEDING = (contents, import_files, imports, dataset_versions, dataset_exports)
_AT_ONCE = 500  # hashes in one question: databases bound the number of values


def keep_for_resume(connection: Connection, *, org: str, run_id: str, files: Iterable[AnyRow]) -> None:
    """Make files of an output the run's own: what it goes on from."""
    _keep(connection, resume_files, org, run_id, files)


def keep_weights(connection: Connection, *, org: str, run_id: str, files: Iterable[AnyRow]) -> None:
    """Make files of an output the run's own: what it takes its weights from."""
    _keep(connection, weight_files, org, run_id, files)


def of_resume(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Files a run goes on from; none for one that began from nothing."""
    return _kept(connection, resume_files, org, run_id)


def of_weights(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Return the files a run takes its weights from; none for one that takes them from no other run."""
    return _kept(connection, weight_files, org, run_id)


def needs(connection: Connection, *, org: str, run_id: str, sha256: str) -> bool:
    """Whether a file of the run's outputs, or one that it resumes or takes its weights from, has this hash."""
    for table in _NEEDING:
        query = select(table.c.path).where(table.c.org == org, table.c.run_id == run_id, table.c.sha256 == sha256)
        if connection.execute(query.limit(1)).first() is not None:
            return True
    return False


def of_run(connection: Connection, *, org: str, run_id: str) -> set[str]:
    """Hashes of the run's outputs and of what it resumes or takes its weights from."""
    found = set[str]()
    for table in _NEEDING:
        query = select(table.c.sha256).where(table.c.org == org, table.c.run_id == run_id)
        found |= set(connection.execute(query.distinct()).scalars())
    return found


def of_run_alone(connection: Connection, *, org: str, run_id: str) -> set[str]:
    """Hashes that this run needs and no other."""
    own = of_run(connection, org=org, run_id=run_id)
    return own - _needed(connection, org=org, hashes=own, besides=run_id)


def put_down(connection: Connection, *, org: str, hashes: Collection[str]) -> None:
    """Those of the hashes that no row needs any more are to be removed: to be called once the rows are gone."""
    unneeded = set(hashes) - _needed(connection, org=org, hashes=hashes)
    known = set(connection.execute(select(unneeded_blobs.c.sha256).where(unneeded_blobs.c.org == org)).scalars())
    if new := sorted(unneeded - known):
        connection.execute(insert(unneeded_blobs), [{"org": org, "sha256": sha256} for sha256 in new])


def has_unneeded(connection: Connection, *, org: str) -> bool:
    query = select(unneeded_blobs.c.sha256).where(unneeded_blobs.c.org == org)
    return connection.execute(query.limit(1)).first() is not None


def unneeded(connection: Connection, *, org: str) -> set[str]:
    """What is down for removal and still needed by nobody: bytes may have come back with another checkpoint."""
    down = set(connection.execute(select(unneeded_blobs.c.sha256).where(unneeded_blobs.c.org == org)).scalars())
    return down - _needed(connection, org=org, hashes=down)


def forget_unneeded(connection: Connection, *, org: str) -> None:
    """Nothing is down for removal any more. Only by who has removed it, under the lock of blobs."""
    connection.execute(delete(unneeded_blobs).where(unneeded_blobs.c.org == org))


def _needed(connection: Connection, *, org: str, hashes: Collection[str], besides: str | None = None) -> set[str]:
    """Those of the hashes that rows need, without the rows of the run ``besides``."""
    asked, found = sorted(hashes), set[str]()
    for start in range(0, len(asked), _AT_ONCE):
        for table in (*_NEEDING, *_DATASETS_NEEDING):
            query = select(table.c.sha256).where(
                table.c.org == org, table.c.sha256.in_(asked[start : start + _AT_ONCE])
            )
            if besides is not None and table in _NEEDING:
                query = query.where(table.c.run_id != besides)
            found |= set(connection.execute(query.distinct()).scalars())
    return found


def _keep(connection: Connection, table: Table, org: str, run_id: str, files: Iterable[AnyRow]) -> None:
    rows = [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in files]
    if rows:
        connection.execute(insert(table), [{"org": org, "run_id": run_id, **row} for row in rows])


def _kept(connection: Connection, table: Table, org: str, run_id: str) -> Sequence[AnyRow]:
    query = select(table).where(table.c.org == org, table.c.run_id == run_id)
    return connection.execute(query.order_by(table.c.path)).all()
