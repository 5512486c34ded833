"""Rows of runs. The document is what is served; the other columns are for lists and the queue."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from runyard.store.engines.prepared import Prepared
from runyard.store.lists import run_list as run_list_rows
from runyard.store.requirements import NOTHING
from runyard.store.tables import (
    AnyRow,
    evaluations,
    log_blocks,
    log_lines,
    metric_buckets,
    metric_chunks,
    metric_keys,
    metric_values,
    metrics,
    output_files,
    outputs,
    resume_files,
    run_attributes,
    run_datasets,
    run_list,
    run_metrics,
    runs,
    sample_images,
    samples,
    stream_offsets,
    weight_files,
)
from runyard.store.tables import attempts as attempts_table

# Every table whose rows name the run they belong to.
CHILD_TABLES = (
    *(run_attributes, attempts_table, stream_offsets, log_lines, log_blocks, metrics),
    *(evaluations, samples, sample_images),
    *(metric_keys, metric_chunks, metric_values, metric_buckets),
    *(output_files, outputs, resume_files, weight_files, run_datasets),
    *(run_list, run_metrics),
)


# The statements of the hot path, built once: building one costs more than running it.
_IS_IT = (runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run"))
_DOCUMENT = Prepared(select(runs.c.document, runs.c.etag).where(*_IS_IT, runs.c.deleted.is_(False)))
_GET = select(runs).where(*_IS_IT)
_CHANGE = update(runs).where(*_IS_IT)
_FIND_ORIGIN = Prepared(
    select(runs.c.document, runs.c.etag, runs.c.body_sha256, runs.c.deleted).where(*_IS_IT)
)
_NEW = {
    "deleted": False,
    "killed": False,
    "log_count": 0,
    "metric_count": 0,
    "metric_packed": 0,
    "duration": 0,
    "requirements": NOTHING,
    "flow_id": None,
    "training_project": None,
    "waits": "",
}


# Other columns have a default in the database.
_ADD = Prepared(
    insert(runs),
    [
        column.name
        for column in runs.columns
        if column.server_default is None or column.name in _NEW
    ],
)
_REMOVE = (
    *(
        delete(table).where(
            table.c.org == bindparam("of_org"), table.c.run_id == bindparam("of_run")
        )
        for table in CHILD_TABLES
    ),
    delete(runs).where(*_IS_IT),
)


def get_document(connection: Connection, *, org: str, run_id: str) -> Any:
    """Return document and etag of a run that is not deleted; None if there is none."""
    return _DOCUMENT.find(connection, {"of_org": org, "of_run": run_id})


def get(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Return every column, also of a deleted run."""
    return connection.execute(_GET, {"of_org": org, "of_run": run_id}).one_or_none()


def add(
    connection: Connection,
    values: Mapping[str, Any],
    *,
    attributes: Mapping[str, str],
    listed: Mapping[str, Any] | None = None,
) -> None:
    """Insert a run and list it; ``listed`` is what ``run_list.build_row`` returned for it."""
    if listed is None:
        listed = run_list_rows.build_row(values, name="", flow_name="", attributes=attributes)
    _ADD.run(connection, {**_NEW, **values})
    run_list_rows.add(
        connection, listed, time_created=values["time_created"], attributes=attributes
    )


def find_origin(
    connection: Connection, *, org: str, run_id: str
) -> tuple[bytes, str, bytes, bool] | None:
    """Return document, etag, hash of the body that created it, and whether it is deleted."""
    found = _FIND_ORIGIN.find(connection, {"of_org": org, "of_run": run_id})
    return None if found is None else (found[0], found[1], found[2], bool(found[3]))


def change(connection: Connection, *, org: str, run_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(_CHANGE, {**values, "of_org": org, "of_run": run_id})


def list_deleted(connection: Connection) -> Sequence[AnyRow]:
    """Return deleted runs of every organization whose rows still exist; columns org, id.

    For the sweep.
    """
    return connection.execute(select(runs.c.org, runs.c.id).where(runs.c.deleted.is_(True))).all()


def list_with_log(
    connection: Connection, *, conditions: Sequence[str], created_before: int
) -> Sequence[AnyRow]:
    """Return runs with these conditions and a log, created before a time.

    Columns org, id, document.
    """
    query = (
        select(runs.c.org, runs.c.id, runs.c.document)
        .join(run_list, (run_list.c.org == runs.c.org) & (run_list.c.run_id == runs.c.id))
        .where(
            run_list.c.number < run_list_rows.get_first_number(created_before),
            run_list.c.condition.in_(conditions),
            runs.c.log_bytes > 0,
        )
    )
    return connection.execute(query).all()


def remove(connection: Connection, *, org: str, run_id: str) -> None:
    """Remove a run and everything that belongs to it."""
    place = {"of_org": org, "of_run": run_id}
    for statement in _REMOVE:
        connection.execute(statement, place)


def count_rows(connection: Connection, *, org: str, run_id: str) -> dict[str, int]:
    """Count the rows of a run in each table, to prove that a deletion is complete."""
    counts = {}
    for table, column in [(runs, runs.c.id), *((table, table.c.run_id) for table in CHILD_TABLES)]:
        query = select(func.count()).select_from(table).where(table.c.org == org, column == run_id)
        if number := connection.execute(query).scalar_one():
            counts[table.name] = int(number)
    return counts
