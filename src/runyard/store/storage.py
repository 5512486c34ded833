"""The blobs and folders that the database refers to, for comparison with the disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, literal, select, union_all

from runyard.store import tombstones
from runyard.store.datasets.imports import ACTIVE_STATES
from runyard.store.tables import (
    AnyRow,
    attempts,
    contents,
    dataset_exports,
    dataset_versions,
    import_files,
    imports,
    output_files,
    resume_files,
    runs,
    weight_files,
)

# Served as ``modelId`` of a storage report, so the texts stay as they are.
RESUME_FILES_LABEL, WEIGHT_FILES_LABEL = "what it resumes from", "the weights it begins from"


def list_files(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Return all files of outputs, resumes and weights; columns run_id, output_id, path, sha256."""
    found = output_files.c
    queries = [
        select(found.run_id, found.output_id, found.path, found.sha256).where(found.org == org)
    ]
    for table, what in ((resume_files, RESUME_FILES_LABEL), (weight_files, WEIGHT_FILES_LABEL)):
        found = table.c
        queries.append(
            select(found.run_id, literal(what).label("output_id"), found.path, found.sha256).where(
                found.org == org
            )
        )
    query = union_all(*queries)
    return connection.execute(query.order_by("run_id", "output_id", "path")).all()


def list_dataset_blobs(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Return every reference of a dataset to a blob; columns dataset_id, what, id, sha256.

    Images are shared by all datasets of an organization, so their rows name no dataset.
    """
    of_files = import_files.c
    queries = [
        select(
            literal("").label("dataset_id"),
            literal("pictures").label("what"),
            literal("").label("id"),
            contents.c.sha256,
        )
        .where(contents.c.org == org)
        .distinct()
    ]
    queries.append(
        select(
            imports.c.dataset_id, literal("import").label("what"), imports.c.id, of_files.sha256
        ).where(
            imports.c.org == org,
            of_files.org == org,
            of_files.import_id == imports.c.id,
            of_files.sha256.is_not(None),
        )
    )
    for table, what in (
        (imports, "report"),
        (dataset_versions, "version"),
        (dataset_exports, "export"),
    ):
        queries.append(
            select(
                table.c.dataset_id, literal(what).label("what"), table.c.id, table.c.sha256
            ).where(table.c.org == org, table.c.sha256.is_not(None))
        )
    return connection.execute(
        union_all(*queries).order_by("dataset_id", "what", "id", "sha256")
    ).all()


def list_run_ids(connection: Connection, *, org: str) -> set[str]:
    """Return the id of every run with a row, also of runs that are being deleted."""
    return set(connection.execute(select(runs.c.id).where(runs.c.org == org)).scalars())


@dataclass(frozen=True)
class RunRecords:
    """What the store knows of some runs of an organization, by id.

    ``rows`` has those with a row, and whether they are deleted. ``tombstones`` were deleted lately.
    ``open_attempts`` have an attempt on one machine that is not closed.
    """

    rows: Mapping[str, bool]
    tombstones: frozenset[str]
    open_attempts: frozenset[str]


def read_run_records(
    connection: Connection, *, org: str, run_ids: Sequence[str], machine_id: str, now_ms: int
) -> RunRecords:
    """Return the records of up to ``limits.RUN_FOLDERS`` runs, and their attempts on a machine."""
    of_runs = select(runs.c.id, runs.c.deleted).where(runs.c.org == org, runs.c.id.in_(run_ids))
    of_attempts = select(attempts.c.run_id).where(
        attempts.c.org == org,
        attempts.c.run_id.in_(run_ids),
        attempts.c.machine_id == machine_id,
        attempts.c.closed.is_(False),
    )
    return RunRecords(
        rows={row.id: row.deleted for row in connection.execute(of_runs)},
        tombstones=frozenset(
            tombstones.list_valid(connection, org=org, kind="run", ids=run_ids, now_ms=now_ms)
        ),
        open_attempts=frozenset(connection.execute(of_attempts).scalars()),
    )


def may_be_uploading(connection: Connection, *, org: str) -> bool:
    """Return whether an attempt or an import is open, whose blobs arrive before their rows."""
    open_attempt = (
        select(attempts.c.number)
        .where(attempts.c.org == org, attempts.c.closed.is_(False))
        .limit(1)
    )
    open_import = (
        select(imports.c.id)
        .where(imports.c.org == org, imports.c.state.in_(ACTIVE_STATES))
        .limit(1)
    )
    return any(
        connection.execute(query).first() is not None for query in (open_attempt, open_import)
    )
