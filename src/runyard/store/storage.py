"""What the database says about bytes and folders, for the proof that it and the disk agree."""

from collections.abc import Sequence

from sqlalchemy import Connection, literal, select, union_all

from runyard.store.imports import UNDER_WAY
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

GONE_ON_FROM, BEGUN_FROM = "what it goes on from", "the weights it begins from"


def files(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Every file of every output, and those that runs begin from; columns run_id, output_id, path, sha256."""
    found = output_files.c
    queries = [select(found.run_id, found.output_id, found.path, found.sha256).where(found.org == org)]
    for table, what in ((resume_files, GONE_ON_FROM), (weight_files, BEGUN_FROM)):
        found = table.c
        queries.append(
            select(found.run_id, literal(what).label("output_id"), found.path, found.sha256).where(found.org == org)
        )
    query = union_all(*queries)
    return connection.execute(query.order_by("run_id", "output_id", "path")).all()


def dataset_blobs(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Every blob that datasets name, once for each that names it; columns dataset_id, what, id, sha256.

    Pictures belong to all datasets of an organisation together, so theirs name none.
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
        select(imports.c.dataset_id, literal("import").label("what"), imports.c.id, of_files.sha256).where(
            imports.c.org == org,
            of_files.org == org,
            of_files.import_id == imports.c.id,
            of_files.sha256.is_not(None),
        )
    )
    for table, what in ((imports, "report"), (dataset_versions, "version"), (dataset_exports, "export")):
        queries.append(
            select(table.c.dataset_id, literal(what).label("what"), table.c.id, table.c.sha256).where(
                table.c.org == org, table.c.sha256.is_not(None)
            )
        )
    return connection.execute(union_all(*queries).order_by("dataset_id", "what", "id", "sha256")).all()


def run_ids(connection: Connection, *, org: str) -> set[str]:
    """Every run with a row, those whose deletion is under way included."""
    return set(connection.execute(select(runs.c.id).where(runs.c.org == org)).scalars())


def may_be_uploading(connection: Connection, *, org: str) -> bool:
    """Whether an attempt or an import is open, whose bytes come before the rows that need them."""
    open_attempt = select(attempts.c.number).where(attempts.c.org == org, attempts.c.closed.is_(False)).limit(1)
    open_import = select(imports.c.id).where(imports.c.org == org, imports.c.state.in_(UNDER_WAY)).limit(1)
    return any(connection.execute(query).first() is not None for query in (open_attempt, open_import))
