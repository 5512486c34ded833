"""The blobs and folders that the database refers to, for comparison with the disk."""

from collections.abc import Sequence

from sqlalchemy import Connection, literal, select, union_all

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
