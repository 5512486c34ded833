"""Rows of runs. The document is the truth that is served; the columns beside it are for lists and queues."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, insert, or_, select, update

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

RARE = 1000  # an attribute that fewer runs have

# Every table whose rows name the run they belong to.
BELONGING = (
    *(run_attributes, attempts_table, stream_offsets, log_lines, metrics),
    *(output_files, outputs, resume_files, weight_files, run_datasets),
)


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """What a list is narrowed to; all given ones must hold."""

    condition: str | None = None
    flow_id: str | None = None
    training_project: str | None = None
    attributes: Sequence[tuple[str, str]] = field(default=())
    created_after: int | None = None
    created_before: int | None = None


# The statements of the hot path, built once: putting one together costs more than running it.
_IS_IT = (runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run"))
_DOCUMENT = select(runs.c.document, runs.c.etag).where(*_IS_IT, runs.c.deleted.is_(False))
_GET = select(runs).where(*_IS_IT)
_ADD, _CHANGE = insert(runs), update(runs).where(*_IS_IT)
_NEW = {"deleted": False, "killed": False, "log_count": 0, "metric_count": 0, "requirements": NOTHING}


def document(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Columns document, etag of a run that is not deleted."""
    return connection.execute(_DOCUMENT, {"of_org": org, "of_run": run_id}).one_or_none()


def get(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Every column, of deleted runs as well."""
    return connection.execute(_GET, {"of_org": org, "of_run": run_id}).one_or_none()


def add(connection: Connection, values: Mapping[str, Any], *, attributes: Mapping[str, str]) -> None:
    connection.execute(_ADD, {**_NEW, **values})
    _add_attributes(connection, org=values["org"], run_id=values["id"], attributes=attributes)


def change(connection: Connection, *, org: str, run_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(_CHANGE, {**values, "of_org": org, "of_run": run_id})


def set_attributes(connection: Connection, *, org: str, run_id: str, attributes: Mapping[str, str]) -> None:
    connection.execute(delete(run_attributes).where(run_attributes.c.org == org, run_attributes.c.run_id == run_id))
    _add_attributes(connection, org=org, run_id=run_id, attributes=attributes)


def _add_attributes(connection: Connection, *, org: str, run_id: str, attributes: Mapping[str, str]) -> None:
    if attributes:
        rows = [{"org": org, "run_id": run_id, "key": key, "value": value} for key, value in attributes.items()]
        connection.execute(insert(run_attributes), rows)


def page(
    connection: Connection, *, org: str, wanted: RunFilter, after: tuple[int, str] | None, limit: int
) -> Sequence[AnyRow]:
    """Newest first, from after the position (time, id) on; columns document, time_created, id."""
    query = _narrowed(connection, select(runs.c.document, runs.c.time_created, runs.c.id), org=org, wanted=wanted)
    if after is not None:
        time_ms, last_id = after
        query = query.where(
            or_(runs.c.time_created < time_ms, and_(runs.c.time_created == time_ms, runs.c.id < last_id))
        )
    return connection.execute(query.order_by(runs.c.time_created.desc(), runs.c.id.desc()).limit(limit)).all()


def matching_ids(
    connection: Connection, *, org: str, wanted: RunFilter, only_killable: bool, limit: int
) -> Sequence[str]:
    """Return ids of runs that match a filter, newest first; of those alone that a kill would change, if asked."""
    query = _narrowed(connection, select(runs.c.id), org=org, wanted=wanted)
    if only_killable:
        query = query.where(runs.c.condition.in_(("Pending", "Running")), runs.c.killed.is_(False))
    query = query.order_by(runs.c.time_created.desc(), runs.c.id.desc()).limit(limit)
    return list(connection.execute(query).scalars())


def _narrowed(connection: Connection, query: Select[Any], *, org: str, wanted: RunFilter) -> Select[Any]:
    query = query.where(runs.c.org == org, runs.c.deleted.is_(False))
    for column, value in (
        (runs.c.condition, wanted.condition),
        (runs.c.flow_id, wanted.flow_id),
        (runs.c.training_project, wanted.training_project),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.created_after is not None:
        query = query.where(runs.c.time_created > wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(runs.c.time_created < wanted.created_before)
    if wanted.attributes:
        query = query.where(*_has_attributes(connection, org, wanted.attributes))
    return query


def _has_attributes(
    connection: Connection, org: str, attributes: Sequence[tuple[str, str]]
) -> list[ColumnElement[bool]]:
    """Return conditions for runs that have all of these attributes, the rarest one first.

    Runs with a rare attribute are found by it; where all are frequent, runs are looked at in the order of the list,
    which soon fills a page. Either way each other attribute costs one look-up by primary key for each run looked at.
    """

    def having(key: str, value: str) -> Select[Any]:
        table = run_attributes.c
        return select(table.run_id).where(table.org == org, table.key == key, table.value == value)

    def count(attribute: tuple[str, str]) -> int:
        some = having(*attribute).limit(RARE).subquery()
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())

    counts = {attribute: count(attribute) for attribute in attributes}
    rarest, *others = sorted(counts, key=lambda attribute: counts[attribute])
    conditions = [having(*attribute).where(run_attributes.c.run_id == runs.c.id).exists() for attribute in others]
    if counts[rarest] < RARE:
        return [runs.c.id.in_(list(connection.execute(having(*rarest)).scalars())), *conditions]
    return [having(*rarest).where(run_attributes.c.run_id == runs.c.id).exists(), *conditions]


def deleted(connection: Connection) -> Sequence[AnyRow]:
    """Deleted runs of every organisation whose rows are still here; columns org, id. For the sweep at start."""
    return connection.execute(select(runs.c.org, runs.c.id).where(runs.c.deleted.is_(True))).all()


def with_log(connection: Connection, *, conditions: Sequence[str], created_before: int) -> Sequence[AnyRow]:
    """Runs in one of these states that were created before a time and have a log; columns org, id, document."""
    query = select(runs.c.org, runs.c.id, runs.c.document).where(
        runs.c.condition.in_(conditions),
        runs.c.deleted.is_(False),
        runs.c.log_bytes > 0,
        runs.c.time_created < created_before,
    )
    return connection.execute(query).all()


def remove(connection: Connection, *, org: str, run_id: str) -> None:
    """Remove a run and everything that belongs to it."""
    for table in BELONGING:
        connection.execute(delete(table).where(table.c.org == org, table.c.run_id == run_id))
    connection.execute(delete(runs).where(runs.c.org == org, runs.c.id == run_id))


def count_rows(connection: Connection, *, org: str, run_id: str) -> dict[str, int]:
    """How many rows of a run each table holds, by the table's name; for the proof that nothing is left."""
    counts = {}
    for table, column in [(runs, runs.c.id), *((table, table.c.run_id) for table in BELONGING)]:
        query = select(func.count()).select_from(table).where(table.c.org == org, column == run_id)
        if number := connection.execute(query).scalar_one():
            counts[table.name] = int(number)
    return counts
