"""The queue: runs of every organization that wait for a machine, looked up by their requirements.

Runs that no machine can take add no cost: one index seek finds each distinct requirement, and
another one its first run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from runyard.store.tables import AnyRow, attempts, machine_failures, runs

MAX_SINGLE_LOOKUPS = 32
KEYS_PER_QUERY = 500

_IS_QUEUED = (runs.c.condition == "Pending", runs.c.deleted.is_(False), runs.c.killed.is_(False))
_OF_RUN = (attempts.c.org == runs.c.org, attempts.c.run_id == runs.c.id)
_IS_HELD = select(attempts.c.number).where(*_OF_RUN, attempts.c.closed.is_(False)).exists()
IS_WAITING = (*_IS_QUEUED, ~_IS_HELD)

_newer = attempts.alias()
# The newest attempt was lost on this machine, which has not reported its outcome. The training may
# have finished there: its supervisor, or the next one, reports that first. Another machine may take
# the run.
_IS_UNSETTLED_HERE = (
    select(attempts.c.number)
    .where(
        *_OF_RUN,
        attempts.c.lost_pulse.is_not(None),
        attempts.c.machine_id == bindparam("of_machine"),
        ~select(_newer.c.number)
        .where(
            _newer.c.org == runs.c.org,
            _newer.c.run_id == runs.c.id,
            _newer.c.number > attempts.c.number,
        )
        .exists(),
    )
    .exists()
)
# It has failed on this machine a moment ago, in a way that points at the machine.
_HAS_FAILED_HERE = (
    select(machine_failures.c.attempt)
    .where(
        machine_failures.c.org == runs.c.org,
        machine_failures.c.run_id == runs.c.id,
        machine_failures.c.machine_id == bindparam("of_machine"),
        machine_failures.c.time >= bindparam("of_time"),
    )
    .exists()
)
_MAY_TAKE = (*IS_WAITING, ~_IS_UNSETTLED_HERE, ~_HAS_FAILED_HERE)
NEVER = 1 << 62  # as a time, so that no failure is avoided
_ORDER = (runs.c.priority.desc(), runs.c.time_created, runs.c.id)
_QUEUE_COLUMNS = (runs.c.org, runs.c.id, runs.c.requirements, runs.c.priority, runs.c.time_created)

_least = select(func.min(runs.c.requirements)).where(
    *_IS_QUEUED, runs.c.requirements > bindparam("of_key")
)
_keys = select(_least.scalar_subquery().label("key")).cte("keys", recursive=True)
_next = select(func.min(runs.c.requirements)).where(*_IS_QUEUED, runs.c.requirements > _keys.c.key)
_keys = _keys.union_all(select(_next.scalar_subquery()).where(_keys.c.key.is_not(None)))
_KEYS = select(_keys.c.key).where(_keys.c.key.is_not(None)).limit(bindparam("max_rows"))

_OF_KEY = runs.c.requirements == bindparam("of_key")
_OF_KEYS = runs.c.requirements.in_(bindparam("of_keys", expanding=True))
_FIRST = select(*_QUEUE_COLUMNS).where(*_MAY_TAKE, _OF_KEY).order_by(*_ORDER).limit(1)
_FIRST_OF_MANY = select(*_QUEUE_COLUMNS).where(*_MAY_TAKE, _OF_KEYS).order_by(*_ORDER).limit(1)
# With one writer (SQLite) the lock is not needed and omitted from the statement.
_LOCK_FIRST = (
    select(runs)
    .where(*_MAY_TAKE, _OF_KEY)
    .order_by(*_ORDER)
    .limit(1)
    .with_for_update(skip_locked=True, of=runs)
)
_DOCUMENT = select(runs.c.document).where(*_IS_QUEUED, _OF_KEY).limit(1)

_LOST = (
    select(*_QUEUE_COLUMNS, attempts.c.number)
    .join(runs, (runs.c.org == attempts.c.org) & (runs.c.id == attempts.c.run_id))
    .where(
        attempts.c.closed.is_(False),
        attempts.c.lost_pulse.is_not(None),
        attempts.c.machine_id != bindparam("of_machine"),
        runs.c.condition == "Running",
        runs.c.deleted.is_(False),
        runs.c.killed.is_(False),
    )
    .order_by(*_ORDER)
)
_LOCK_LOST = (
    select(runs)
    .where(
        runs.c.org == bindparam("of_org"),
        runs.c.id == bindparam("of_run"),
        runs.c.condition == "Running",
        runs.c.deleted.is_(False),
        runs.c.killed.is_(False),
    )
    .with_for_update(skip_locked=True, of=runs)
)

# Two index ranges, since one condition with "or" would read every run of the requirement.
_CODE_BELOW, _CODE_ABOVE = (
    select(runs.c.org, runs.c.id)
    .where(*IS_WAITING, _OF_KEY, is_another)
    .limit(bindparam("max_rows"))
    for is_another in (runs.c.waits < bindparam("of_code"), runs.c.waits > bindparam("of_code"))
)
_CODE_BELOW_AND_EXPLAINED = _CODE_BELOW.where(runs.c.waits > "")
_WAITS = select(runs).where(
    runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run"), *IS_WAITING
)
_BUSY = (
    select(attempts.c.machine_id, func.count())
    .where(attempts.c.closed.is_(False))
    .group_by(attempts.c.machine_id)
)


def list_requirements(connection: Connection, *, after: str = "", limit: int = -1) -> Sequence[str]:
    """Return the distinct keys of waiting runs, sorted, after ``after``.

    All of them without a limit.
    """
    max_keys = limit if limit >= 0 else 1 << 31
    return connection.execute(_KEYS, {"of_key": after, "max_rows": max_keys}).scalars().all()


def find_document(connection: Connection, *, key: str) -> bytes | None:
    """Return the document of any waiting run with these requirements."""
    return connection.execute(_DOCUMENT, {"of_key": key}).scalar()


def list_first_runs(
    connection: Connection,
    *,
    keys: Sequence[str],
    machine_id: str,
    avoid_since_ms: Mapping[str, int] | None = None,
) -> list[AnyRow]:
    """Return the first run of each requirement that the machine may take, in queue order.

    ``avoid_since_ms`` has requirements of which those runs are left out that have failed on this
    machine since a time. Beyond ``MAX_SINGLE_LOOKUPS`` keys only the first run of each batch of
    keys is returned, and none is left out. Columns org, id, requirements, priority, time_created.
    """
    machine: dict[str, Any] = {"of_machine": machine_id, "of_time": NEVER}
    if len(keys) <= MAX_SINGLE_LOOKUPS:
        since = avoid_since_ms or {}
        found = [
            connection.execute(
                _FIRST, {**machine, "of_key": key, "of_time": since.get(key, NEVER)}
            ).first()
            for key in keys
        ]
    else:
        parts = [
            keys[start : start + KEYS_PER_QUERY] for start in range(0, len(keys), KEYS_PER_QUERY)
        ]
        found = [
            connection.execute(_FIRST_OF_MANY, {**machine, "of_keys": part}).first()
            for part in parts
        ]
    return sorted((row for row in found if row is not None), key=sort_key)


def sort_key(row: AnyRow) -> tuple[int, int, str]:
    """Return the sort key of the queue: priority, then age."""
    return -row.priority, row.time_created, row.id


def lock_first(
    connection: Connection, *, key: str, machine_id: str, avoid_since_ms: int = NEVER
) -> AnyRow | None:
    """Lock the first run of a requirement until the transaction ends.

    Skip runs that others have locked, and those that have failed on this machine since a time.
    """
    values = {"of_key": key, "of_machine": machine_id, "of_time": avoid_since_ms}
    return connection.execute(_LOCK_FIRST, values).first()


def list_lost_elsewhere(connection: Connection, *, machine_id: str) -> Sequence[AnyRow]:
    """Return runs whose open attempt was lost elsewhere, in queue order, with its number."""
    return connection.execute(_LOST, {"of_machine": machine_id}).all()


def lock_lost(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Lock a lost run until the transaction ends.

    Return None when it is locked or no longer lost.
    """
    return connection.execute(_LOCK_LOST, {"of_org": org, "of_run": run_id}).first()


def list_outdated_reasons(
    connection: Connection, *, key: str, code: str, with_unexplained: bool, limit: int
) -> Sequence[AnyRow]:
    """Return waiting runs of a requirement whose reason has another code than ``code``.

    Columns org, id.

    ``with_unexplained`` includes those whose reason does not follow from the machines, such as
    ``Retrying``.
    """
    less = _CODE_BELOW if with_unexplained else _CODE_BELOW_AND_EXPLAINED
    values = {"of_key": key, "of_code": code}
    found = connection.execute(less, {**values, "max_rows": limit}).all()
    return [
        *found,
        *connection.execute(_CODE_ABOVE, {**values, "max_rows": limit - len(found)}).all(),
    ]


def get_waiting(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Return a run's row if it still waits for a machine."""
    return connection.execute(_WAITS, {"of_org": org, "of_run": run_id}).first()


def count_open_by_machine(connection: Connection) -> Mapping[str, int]:
    """Count the open attempts of each machine."""
    return {machine_id: int(count) for machine_id, count in connection.execute(_BUSY)}
