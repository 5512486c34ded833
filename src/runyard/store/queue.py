"""The queue: runs that wait for a machine, of every organization, looked up by what they require.

Nothing here costs more because runs wait that nobody can take: the distinct requirements are found by one index seek
each, and the first run of a requirement by another.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, func, select

from runyard.store.tables import AnyRow, attempts, runs

KEYS_ONE_BY_ONE = 32
KEYS_TOGETHER = 500

_IS_QUEUED = (runs.c.condition == "Pending", runs.c.deleted.is_(False), runs.c.killed.is_(False))
_OF_RUN = (attempts.c.org == runs.c.org, attempts.c.run_id == runs.c.id)
_IS_HELD = select(attempts.c.number).where(*_OF_RUN, attempts.c.closed.is_(False)).exists()
IS_WAITING = (*_IS_QUEUED, ~_IS_HELD)

_newer = attempts.alias()
# The newest attempt went silent on this machine, which has not reported what became of it. A finished training may be
# there: its supervisor, or the next one, reports that first. Another machine may take the run.
_IS_UNSETTLED_HERE = (
    select(attempts.c.number)
    .where(
        *_OF_RUN,
        attempts.c.lost_pulse.is_not(None),
        attempts.c.machine_id == bindparam("of_machine"),
        ~select(_newer.c.number)
        .where(_newer.c.org == runs.c.org, _newer.c.run_id == runs.c.id, _newer.c.number > attempts.c.number)
        .exists(),
    )
    .exists()
)
_MAY_TAKE = (*IS_WAITING, ~_IS_UNSETTLED_HERE)
_ORDER = (runs.c.priority.desc(), runs.c.time_created, runs.c.id)
_PLACE = (runs.c.org, runs.c.id, runs.c.requirements, runs.c.priority, runs.c.time_created)

_least = select(func.min(runs.c.requirements)).where(*_IS_QUEUED, runs.c.requirements > bindparam("of_key"))
_keys = select(_least.scalar_subquery().label("key")).cte("keys", recursive=True)
_next = select(func.min(runs.c.requirements)).where(*_IS_QUEUED, runs.c.requirements > _keys.c.key)
_keys = _keys.union_all(select(_next.scalar_subquery()).where(_keys.c.key.is_not(None)))
_KEYS = select(_keys.c.key).where(_keys.c.key.is_not(None)).limit(bindparam("most"))

_OF_KEY = runs.c.requirements == bindparam("of_key")
_OF_KEYS = runs.c.requirements.in_(bindparam("of_keys", expanding=True))
_FIRST = select(*_PLACE).where(*_MAY_TAKE, _OF_KEY).order_by(*_ORDER).limit(1)
_FIRST_OF_MANY = select(*_PLACE).where(*_MAY_TAKE, _OF_KEYS).order_by(*_ORDER).limit(1)
# Where there is one writer (SQLite) the lock says nothing and is left out of the statement.
_LOCK_FIRST = (
    select(runs).where(*_MAY_TAKE, _OF_KEY).order_by(*_ORDER).limit(1).with_for_update(skip_locked=True, of=runs)
)
_DOCUMENT = select(runs.c.document).where(*_IS_QUEUED, _OF_KEY).limit(1)

_LOST = (
    select(*_PLACE, attempts.c.number)
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

# Two ranges of the index, since one condition with "or" would read every run of the requirement.
_CODE_BELOW, _CODE_ABOVE = (
    select(runs.c.org, runs.c.id).where(*IS_WAITING, _OF_KEY, is_another).limit(bindparam("most"))
    for is_another in (runs.c.waits < bindparam("of_code"), runs.c.waits > bindparam("of_code"))
)
_CODE_BELOW_AND_EXPLAINED = _CODE_BELOW.where(runs.c.waits > "")
_WAITS = select(runs).where(runs.c.org == bindparam("of_org"), runs.c.id == bindparam("of_run"), *IS_WAITING)
_BUSY = select(attempts.c.machine_id, func.count()).where(attempts.c.closed.is_(False)).group_by(attempts.c.machine_id)


def requirements(connection: Connection, *, after: str = "", limit: int = -1) -> Sequence[str]:
    """Distinct keys of runs that wait, in their order from behind ``after`` on; all of them without a limit."""
    most = limit if limit >= 0 else 1 << 31
    return connection.execute(_KEYS, {"of_key": after, "most": most}).scalars().all()


def document_of(connection: Connection, *, key: str) -> bytes | None:
    """The document of any waiting run with these requirements."""
    return connection.execute(_DOCUMENT, {"of_key": key}).scalar()


def in_turn(connection: Connection, *, keys: Sequence[str], machine_id: str) -> list[AnyRow]:
    """The first waiting run of each requirement that the machine may take now, those to be taken first in front.

    Of many requirements, only the first runs of all are certain to be there. Columns org, id, requirements, priority,
    time_created.
    """
    place = {"of_machine": machine_id}
    if len(keys) <= KEYS_ONE_BY_ONE:
        found = [connection.execute(_FIRST, {**place, "of_key": key}).first() for key in keys]
    else:
        parts = [keys[start : start + KEYS_TOGETHER] for start in range(0, len(keys), KEYS_TOGETHER)]
        found = [connection.execute(_FIRST_OF_MANY, {**place, "of_keys": part}).first() for part in parts]
    return sorted((row for row in found if row is not None), key=order)


def order(row: AnyRow) -> tuple[int, int, str]:
    """By which runs are sorted: priority, then age."""
    return -row.priority, row.time_created, row.id


def lock_first(connection: Connection, *, key: str, machine_id: str) -> AnyRow | None:
    """Take hold of the first run of a requirement until the transaction ends; what somebody else holds is left out."""
    return connection.execute(_LOCK_FIRST, {"of_key": key, "of_machine": machine_id}).first()


def lost_elsewhere(connection: Connection, *, machine_id: str) -> Sequence[AnyRow]:
    """Runs whose open attempt went silent on another machine, those to be taken first in front; with its number."""
    return connection.execute(_LOST, {"of_machine": machine_id}).all()


def lock_lost(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """Take hold of such a run until the transaction ends; None when somebody else does, or it is no longer one."""
    return connection.execute(_LOCK_LOST, {"of_org": org, "of_run": run_id}).first()


def explained_otherwise(
    connection: Connection, *, key: str, code: str, with_unexplained: bool, limit: int
) -> Sequence[AnyRow]:
    """Waiting runs of a requirement whose reason is another than that of ``code``; columns org, id.

    ``with_unexplained`` takes those in as well whose reason does not follow from the machines, such as ``Retrying``.
    """
    less = _CODE_BELOW if with_unexplained else _CODE_BELOW_AND_EXPLAINED
    values = {"of_key": key, "of_code": code}
    found = connection.execute(less, {**values, "most": limit}).all()
    return [*found, *connection.execute(_CODE_ABOVE, {**values, "most": limit - len(found)}).all()]


def still_waiting(connection: Connection, *, org: str, run_id: str) -> AnyRow | None:
    """A run's row if it still waits for a machine."""
    return connection.execute(_WAITS, {"of_org": org, "of_run": run_id}).first()


def busy(connection: Connection) -> Mapping[str, int]:
    """How many open attempts each machine has."""
    return {machine_id: int(count) for machine_id, count in connection.execute(_BUSY)}
