"""Rows of runs. The document is what is served; the other columns are for lists and the queue."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from runyard.store.lists.run_filter import RunFilter
from runyard.store.requirements import NOTHING
from runyard.store.tables import (
    AnyRow,
    log_lines,
    metrics,
    output_files,
    outputs,
    resume_files,
    run_attributes,
    run_datasets,
    runs,
    stream_offsets,
    weight_files,
)
from runyard.store.tables import attempts as attempts_table

RARE_COUNT = 1000  # an attribute that fewer runs have counts as rare

# Every table whose rows name the run they belong to.
CHILD_TABLES = (
    *(run_attributes, attempts_table, stream_offsets, log_lines, metrics),
    *(output_files, outputs, resume_files, weight_files, run_datasets),
)


# The statements of the hot path, built once: building one costs more than running it.
_IS_IT = (runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run"))
_DOCUMENT = select(runs.c.document, runs.c.etag).where(*_IS_IT, runs.c.deleted.is_(False))
_GET = select(runs).where(*_IS_IT)
_ADD, _CHANGE = insert(runs), update(runs).where(*_IS_IT)
_NEW = {
    "deleted": False,
    "killed": False,
    "log_count": 0,
    "metric_count": 0,
    "requirements": NOTHING,
}


def get_document(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Return document and etag of a run that is not deleted."""
    return connection.execute(_DOCUMENT, {"of_org": org, "of_run": run_id}).one_or_none()


def get(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Return every column, also of a deleted run."""
    return connection.execute(_GET, {"of_org": org, "of_run": run_id}).one_or_none()


def add(
    connection: Connection, values: Mapping[str, Any], *, attributes: Mapping[str, str]
) -> None:
    connection.execute(_ADD, {**_NEW, **values})
    _add_attributes(connection, org=values["org"], run_id=values["id"], attributes=attributes)


def change(connection: Connection, *, org: str, run_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(_CHANGE, {**values, "of_org": org, "of_run": run_id})


def set_attributes(
    connection: Connection, *, org: str, run_id: str, attributes: Mapping[str, str]
) -> None:
    connection.execute(
        delete(run_attributes).where(run_attributes.c.org == org, run_attributes.c.run_id == run_id)
    )
    _add_attributes(connection, org=org, run_id=run_id, attributes=attributes)


def _add_attributes(
    connection: Connection, *, org: str, run_id: str, attributes: Mapping[str, str]
) -> None:
    if attributes:
        rows = [
            {"org": org, "run_id": run_id, "key": key, "value": value}
            for key, value in attributes.items()
        ]
        connection.execute(insert(run_attributes), rows)


def page(
    connection: Connection,
    *,
    org: str,
    filter: RunFilter,
    after: tuple[int, str] | None,
    limit: int,
) -> Sequence[AnyRow]:
    """Return a page, newest first, after the position (time, id).

    Columns document, time_created, id.
    """
    query = _apply_filter(
        connection, select(runs.c.document, runs.c.time_created, runs.c.id), org=org, filter=filter
    )
    if after is not None:
        time_ms, last_id = after
        query = query.where(
            or_(
                runs.c.time_created < time_ms,
                and_(runs.c.time_created == time_ms, runs.c.id < last_id),
            )
        )
    return connection.execute(
        query.order_by(runs.c.time_created.desc(), runs.c.id.desc()).limit(limit)
    ).all()


def list_matching_ids(
    connection: Connection, *, org: str, filter: RunFilter, only_killable: bool, limit: int
) -> Sequence[str]:
    """Return ids of runs that match a filter, newest first.

    Optionally only of those that can be killed.
    """
    query = _apply_filter(connection, select(runs.c.id), org=org, filter=filter)
    if only_killable:
        query = query.where(runs.c.condition.in_(("Pending", "Running")), runs.c.killed.is_(False))
    query = query.order_by(runs.c.time_created.desc(), runs.c.id.desc()).limit(limit)
    return list(connection.execute(query).scalars())


def _apply_filter(
    connection: Connection, query: Select[Any], *, org: str, filter: RunFilter
) -> Select[Any]:
    query = query.where(runs.c.org == org, runs.c.deleted.is_(False))
    for column, value in (
        (runs.c.condition, filter.condition),
        (runs.c.flow_id, filter.flow_id),
        (runs.c.training_project, filter.training_project),
    ):
        if value is not None:
            query = query.where(column == value)
    if filter.created_after is not None:
        query = query.where(runs.c.time_created > filter.created_after)
    if filter.created_before is not None:
        query = query.where(runs.c.time_created < filter.created_before)
    if filter.attributes:
        query = query.where(*_match_attributes(connection, org, filter.attributes))
    return query


def _match_attributes(
    connection: Connection, org: str, attributes: Sequence[tuple[str, str]]
) -> list[ColumnElement[bool]]:
    """Return conditions for runs that have all of these attributes, the rarest one first.

    A rare attribute is looked up first. If all are frequent, runs are scanned in the order of the
    list, which soon fills a page. Either way each other attribute costs one look-up by primary key
    for each scanned run.
    """

    def having(key: str, value: str) -> Select[Any]:
        table = run_attributes.c
        return select(table.run_id).where(table.org == org, table.key == key, table.value == value)

    def count(attribute: tuple[str, str]) -> int:
        some = having(*attribute).limit(RARE_COUNT).subquery()
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())

    counts = {attribute: count(attribute) for attribute in attributes}
    rarest, *others = sorted(counts, key=lambda attribute: counts[attribute])
    conditions = [
        having(*attribute).where(run_attributes.c.run_id == runs.c.id).exists()
        for attribute in others
    ]
    if counts[rarest] < RARE_COUNT:
        return [runs.c.id.in_(list(connection.execute(having(*rarest)).scalars())), *conditions]
    return [having(*rarest).where(run_attributes.c.run_id == runs.c.id).exists(), *conditions]


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
    query = select(runs.c.org, runs.c.id, runs.c.document).where(
        runs.c.condition.in_(conditions),
        runs.c.deleted.is_(False),
        runs.c.log_bytes > 0,
        runs.c.time_created < created_before,
    )
    return connection.execute(query).all()


def remove(connection: Connection, *, org: str, run_id: str) -> None:
    """Remove a run and everything that belongs to it."""
    for table in CHILD_TABLES:
        connection.execute(delete(table).where(table.c.org == org, table.c.run_id == run_id))
    connection.execute(delete(runs).where(runs.c.org == org, runs.c.id == run_id))


def count_rows(connection: Connection, *, org: str, run_id: str) -> dict[str, int]:
    """Count the rows of a run in each table, to prove that a deletion is complete."""
    counts = {}
    for table, column in [(runs, runs.c.id), *((table, table.c.run_id) for table in CHILD_TABLES)]:
        query = select(func.count()).select_from(table).where(table.c.org == org, column == run_id)
        if number := connection.execute(query).scalar_one():
            counts[table.name] = int(number)
    return counts
