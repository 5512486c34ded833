"""Rows of ``run_list``: written with each run, and rebuilt after an upgrade and a restore."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from runyard import limits
from runyard.limits import clean_text
from runyard.store.engines.prepared import Prepared
from runyard.store.lists import triggers
from runyard.store.lists.duration import encode_duration
from runyard.store.lists.texts import build_sort_key, build_texts
from runyard.store.tables import (
    AnyRow,
    run_attributes,
    run_counts,
    run_list,
    run_metrics,
    runs,
)

TIME_SHIFT = 20  # of the time of creation in a number
MAX_TIME_MS = (1 << 43) - 1
FIRST_OF_TIME = 1 << TIME_SHIFT
BATCH_ROWS = 500
FINAL = ("Succeeded", "Failed", "Error", "Cancelled")

_COLUMNS = tuple(column.name for column in run_list.columns if column.name != "number")
_ADD_STATEMENT = text(
    f"INSERT INTO run_list (number, {', '.join(_COLUMNS)}) VALUES (coalesce((SELECT "  # noqa: S608
    "max(number) + 1 FROM run_list WHERE number >= :low AND number < :high), :low), "
    f"{', '.join(':' + name for name in _COLUMNS)}) RETURNING number"
)
_ADD = Prepared(_ADD_STATEMENT)
_OF_RUN = (run_list.c.org == bindparam("of_org"), run_list.c.run_id == bindparam("of_run"))
_NUMBER = select(run_list.c.number).where(*_OF_RUN)
_DESCRIBE = update(run_list).where(*_OF_RUN)
_REMOVE_ATTRIBUTES = delete(run_attributes).where(
    run_attributes.c.org == bindparam("of_org"), run_attributes.c.run_id == bindparam("of_run")
)
_ADD_ATTRIBUTES = Prepared(insert(run_attributes))
_UNINDEXED = select(run_list.c.number).where(run_list.c.is_indexed.is_(False))
_INDEX_SOME = (
    update(run_list)
    .where(run_list.c.number.in_(_UNINDEXED.limit(bindparam("max_rows"))))
    .values(is_indexed=True)
)


def get_first_number(time_ms: int) -> int:
    """Return the lowest number of a run created at a time."""
    return max(0, min(time_ms, MAX_TIME_MS)) << TIME_SHIFT


def add(
    connection: Connection,
    row: Mapping[str, Any],
    *,
    time_created: int,
    attributes: Mapping[str, str],
) -> None:
    """Add a run to the list; ``row`` comes from ``build_row``."""
    low = get_first_number(time_created)
    number = _ADD.find(connection, {**row, "low": low, "high": low + FIRST_OF_TIME})[0]
    _add_attributes(connection, row["org"], row["run_id"], attributes, number=number)


def describe(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    name: str,
    flow_name: str,
    attributes: Mapping[str, str],
) -> None:
    """Change the name and attributes of a run."""
    place = {"of_org": org, "of_run": run_id}
    name_text, rest = build_texts(
        name=name, flow_name=flow_name, attributes=attributes, run_id=run_id
    )
    values = {"name_key": build_sort_key(name), "name_text": name_text, "text": rest}
    connection.execute(_DESCRIBE, {**values, **place})
    connection.execute(_REMOVE_ATTRIBUTES, place)
    number = connection.execute(_NUMBER, place).scalar() or 0
    _add_attributes(connection, org, run_id, attributes, number=number)


def build_row(
    run: Mapping[str, Any], *, name: str, flow_name: str, attributes: Mapping[str, str]
) -> dict[str, Any]:
    """Return a run's row in the list, without its number."""
    name_text, rest = build_texts(
        name=name, flow_name=flow_name, attributes=attributes, run_id=run["id"]
    )
    return {
        "org": run["org"],
        "run_id": run["id"],
        "condition": run["condition"],
        "flow_id": run.get("flow_id"),
        "flow_name": clean_text(flow_name, limits.RUN_NAME),
        "training_project": run.get("training_project"),
        "name_key": build_sort_key(name),
        "duration": run.get("duration", 0),
        "name_text": name_text,
        "text": rest,
        "is_indexed": False,
    }


def _add_attributes(
    connection: Connection, org: str, run_id: str, attributes: Mapping[str, str], *, number: int
) -> None:
    if attributes:
        rows = [
            {"org": org, "run_id": run_id, "key": key, "value": value, "number": number}
            for key, value in attributes.items()
        ]
        _ADD_ATTRIBUTES.run_many(connection, rows)


def count_unindexed(connection: Connection, *, limit: int) -> int:
    """Count the runs whose texts wait for the search index, up to a limit."""
    some = _UNINDEXED.limit(limit).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def index_texts(connection: Connection, *, limit: int) -> bool:
    """Add the texts of some runs to the search index; return whether more may be left."""
    return connection.execute(_INDEX_SOME, {"max_rows": limit}).rowcount == limit


class _Name(msgspec.Struct):
    name: str = ""


class _FlowSpec(msgspec.Struct):
    flow: _Name = msgspec.field(default_factory=_Name)


class _Metadata(msgspec.Struct):
    name: str = ""
    attributes: dict[str, str] = {}


class _Attempt(msgspec.Struct, rename="camel"):
    time_started: int = 0


class _Condition(msgspec.Struct, rename="camel"):
    last_transition_time: int = 0


class _Status(msgspec.Struct):
    attempts: list[_Attempt] = []
    conditions: list[_Condition] = []


class _Document(msgspec.Struct):
    """What the list needs of a run's document."""

    spec: _FlowSpec = msgspec.field(default_factory=_FlowSpec)
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    status: _Status = msgspec.field(default_factory=_Status)


def rebuild(connection: Connection) -> None:
    """Fill the list, the counts and the search index from ``runs``; rows are streamed.

    For rows of an older version, and for a backup, which has none of them.
    """
    triggers.drop(connection)
    connection.execute(delete(run_list))
    query = (
        select(
            *(runs.c.org, runs.c.id, runs.c.document, runs.c.condition, runs.c.flow_id),
            *(runs.c.training_project, runs.c.time_created),
        )
        .where(runs.c.deleted.is_(False))
        .order_by(runs.c.time_created, runs.c.id)
    )
    number = 0
    for batch in _stream(connection, query):
        rows, durations = [], []
        for row in batch:
            number = max(number + 1, get_first_number(row.time_created))
            listed, duration = _read_row(row)
            rows.append({**listed, "number": number})
            if duration:
                durations.append({"of_org": row.org, "of_run": row.id, "duration": duration})
        connection.execute(insert(run_list), rows)
        if durations:
            connection.execute(_SET_DURATION, durations)
    recount(connection)
    for table in (run_attributes, run_metrics):
        found = select(run_list.c.number).where(
            run_list.c.org == table.c.org, run_list.c.run_id == table.c.run_id
        )
        connection.execute(
            update(table).values(number=func.coalesce(found.scalar_subquery(), literal(0)))
        )
    triggers.create(connection)
    triggers.fill_search(connection)


_SET_DURATION = update(runs).where(
    runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run")
)


def recount(connection: Connection) -> None:
    """Recount all runs, for rows that were inserted without triggers."""
    connection.execute(delete(run_counts))
    counts = select(run_list.c.org, run_list.c.condition, func.count()).group_by(
        run_list.c.org, run_list.c.condition
    )
    connection.execute(insert(run_counts).from_select(["org", "condition", "runs"], counts))


def _stream(connection: Connection, query: Any) -> Iterator[Sequence[AnyRow]]:
    options = {"stream_results": True, "yield_per": BATCH_ROWS}
    with connection.execute(query, execution_options=options) as result:
        yield from result.partitions(BATCH_ROWS)


def _read_row(row: AnyRow) -> tuple[dict[str, Any], int]:
    """Return a run's row in the list, and its duration; a defect in its document is ignored."""
    try:
        document = msgspec.json.decode(row.document, type=_Document)
    except (msgspec.MsgspecError, ValueError):
        document = _Document()
    status, flow_name = document.status, document.spec.flow.name
    duration = encode_duration(
        started_ms=status.attempts[0].time_started if status.attempts else None,
        ended_ms=status.conditions[-1].last_transition_time
        if status.conditions and row.condition in FINAL
        else None,
    )
    values = {**row._asdict(), "duration": duration}
    listed = build_row(
        values,
        name=document.metadata.name or flow_name,
        flow_name=flow_name,
        attributes=document.metadata.attributes,
    )
    return {**listed, "is_indexed": True}, duration
