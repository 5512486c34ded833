"""Rows of events: what happened in an organization, numbered in the order of commits.

``record`` only remembers an event. ``write_recorded`` inserts all of a transaction at its end: the
numbers come from a counter row of the organization, which stays locked until the commit. So no
event becomes visible after one with a higher number, also with several writers on PostgreSQL, and
a group of transactions that commit together pays for one counter.

``kept_after`` of the counter is the highest number up to which events may be missing: they were
removed for their age, or a restore replaced what had happened since the backup.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, text, update

from runyard.store.engines.prepared import Prepared
from runyard.store.tables import AnyRow, event_counters, events

# A restore skips this many numbers: more than a store can assign between a backup and its loss, so
# no number stands for two events, whichever instance restores the backup.
RESTORE_GAP = 2**32
_RECORDED = "runyard.events"

_ADD = Prepared(insert(events))
_ASSIGN = Prepared(
    text(
        "INSERT INTO event_counters (org, number, kept_after) VALUES (:org, :count, 0) "
        "ON CONFLICT (org) DO UPDATE SET number = event_counters.number + excluded.number "
        "RETURNING number"
    )
)
_COUNTER = select(event_counters.c.number, event_counters.c.kept_after).where(
    event_counters.c.org == bindparam("of_org")
)
_PAGE = (
    select(events)
    .where(events.c.org == bindparam("of_org"), events.c.number > bindparam("after"))
    .order_by(events.c.number)
    .limit(bindparam("most"))
)
_PAGE_OF_TARGET = _PAGE.where(events.c.target == bindparam("of_target"))


def record(connection: Connection, event: Mapping[str, Any]) -> None:
    """Remember an event, a row without its number, until the end of the transaction."""
    connection.info.setdefault(_RECORDED, []).append(dict(event))


def list_recorded(connection: Connection) -> list[dict[str, Any]]:
    """Return a copy of what the transaction has recorded so far."""
    return list(connection.info.get(_RECORDED, ()))


def replace_recorded(connection: Connection, recorded: Sequence[dict[str, Any]]) -> None:
    """Set what the transaction has recorded: a part of it was rolled back."""
    connection.info[_RECORDED] = list(recorded)


def write_recorded(connection: Connection) -> Collection[str]:
    """Insert what the transaction has recorded; return the organizations that have new events."""
    recorded: list[dict[str, Any]] = connection.info.pop(_RECORDED, [])
    if not recorded:
        return ()
    counts = Counter(event["org"] for event in recorded)
    numbers = {org: _assign_numbers(connection, org, counts[org]) for org in sorted(counts)}
    for event in recorded:
        event["number"] = numbers[event["org"]] = numbers[event["org"]] + 1
    _ADD.run_many(connection, recorded)
    return counts.keys()


def _assign_numbers(connection: Connection, org: str, count: int) -> int:
    """Advance the counter of an organization; return its value before."""
    return int(_ASSIGN.find(connection, {"org": org, "count": count})[0]) - count


def get_counter(connection: Connection, *, org: str) -> tuple[int, int]:
    """Return the number of the newest event, and the number after which all are kept."""
    row = connection.execute(_COUNTER, {"of_org": org}).one_or_none()
    return (0, 0) if row is None else (int(row.number), int(row.kept_after))


def page(
    connection: Connection,
    *,
    org: str,
    after: int,
    limit: int,
    target: str | None = None,
    kind: str | None = None,
) -> Sequence[AnyRow]:
    """Return events with a number above ``after``, by number."""
    query, values = _PAGE, {"of_org": org, "after": after, "most": limit}
    if target is not None:
        query, values = _PAGE_OF_TARGET, {**values, "of_target": target}
    if kind is not None:
        query = query.where(events.c.kind == kind)
    return connection.execute(query, values).all()


def list_counters(connection: Connection) -> Sequence[AnyRow]:
    """Return the counters of every organization."""
    return connection.execute(select(event_counters)).all()


def has_prunable(connection: Connection, *, org: str, before_ms: int, most: int) -> bool:
    """Return whether an organization has events from before a time, or more than ``most``."""
    of_org = events.c.org == org
    oldest = select(events.c.time).where(of_org).order_by(events.c.number).limit(1)
    time_ms = connection.execute(oldest).scalar()
    if time_ms is None:
        return False
    return time_ms < before_ms or _find_last_beyond(connection, org, most) > 0


def prune(connection: Connection, *, org: str, before_ms: int, most: int, limit: int) -> bool:
    """Remove the oldest events: those from before a time, and those beyond the newest ``most``.

    Remove at most ``limit``; return whether more may be left.
    """
    of_org = events.c.org == org
    last_beyond = _find_last_beyond(connection, org, most)
    first = select(events.c.number, events.c.time).where(of_org).order_by(events.c.number)
    gone = [
        row.number
        for row in connection.execute(first.limit(limit))
        if row.number <= last_beyond or row.time < before_ms
    ]
    if not gone:
        return False
    # Up to the last of them, whatever a clock that went back wrote in between.
    connection.execute(delete(events).where(of_org, events.c.number <= gone[-1]))
    counter = event_counters.c
    connection.execute(
        update(event_counters)
        .where(counter.org == org, counter.kept_after < gone[-1])
        .values(kept_after=gone[-1])
    )
    return len(gone) == limit


def _find_last_beyond(connection: Connection, org: str, most: int) -> int:
    """Return the highest number beyond the newest ``most`` events; 0 if there are not that many."""
    numbers = select(events.c.number).where(events.c.org == org)
    query = numbers.order_by(events.c.number.desc()).offset(most).limit(1)
    return int(connection.execute(query).scalar() or 0)


def skip_numbers(connection: Connection, own: Sequence[AnyRow], orgs: Collection[str]) -> None:
    """Let the numbers continue above those of a backup and of the store that it replaced.

    ``own`` are the counters of that store. A reader at a number from before the restore
    is below ``kept_after``, so is asked to begin again.
    """
    restored = {row.org: row.number for row in list_counters(connection)}
    replaced = {row.org: row.number for row in own}
    newest = {
        row.org: row.number
        for row in connection.execute(
            select(events.c.org, func.max(events.c.number).label("number")).group_by(events.c.org)
        )
    }
    connection.execute(delete(event_counters))
    for org in sorted({*orgs, *restored, *replaced, *newest}):
        last = max(restored.get(org, 0), replaced.get(org, 0), newest.get(org, 0)) + RESTORE_GAP
        connection.execute(insert(event_counters), {"org": org, "number": last, "kept_after": last})
