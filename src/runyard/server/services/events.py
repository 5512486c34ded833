"""Events: what happened in an organization, recorded with the change, read in order.

A change and its event are one transaction, and the numbers have the order of the commits. So
a reader of events by number sees each change once and in order, whatever was interrupted in
between; notifications only say when to look. A reader whose next events are no longer kept gets
``reset``: it must read again what it follows.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.server.services import paging
from runyard.server.services.context import Actor, Services
from runyard.store import events as rows
from runyard.store.tables import AnyRow
from vi.api.resources.events.responses import Event, EventPage

# Every event by the kind of what has changed; docs/events.md has the same table.
_DOCUMENT = {
    "created": "was created",
    "updated": "was changed",
    "deleted": "was deleted",
}
MEANINGS: dict[str, dict[str, str]] = {
    "run": {
        "created": "was created, with its first condition",
        "condition": "entered another condition",
        "reason": "has another reason in the same condition; a new message alone makes no event",
        "attempt-started": "has a supervisor, on the machine named",
        "attempt-ended": "has an attempt less, with its cause, exit code and signal",
        "attempt-reopened": "has heard again of an attempt that was considered lost",
        "checkpoint": "has another checkpoint that can be downloaded",
        "evaluation": "was evaluated, with the step and the values",
        "warning": "has a warning of the trainer",
        "updated": "was renamed, tagged or assigned; `changed` names the fields",
        "kill": "is to end, with the grace period requested",
        "deleted": "was deleted",
    },
    "dataset": {
        "created": "was created",
        "updated": "was changed; `changed` names the fields, or `assets` or `annotations`",
        "version-created": "has another version, which runs can be pinned to",
        "deleted": "was deleted",
    },
    "import": {
        "started": "waits for its files",
        "ended": "is over, with its state, the reason of a failure, and the version it made",
    },
    "flow": _DOCUMENT,
    "trainingProject": _DOCUMENT,
    "view": _DOCUMENT,
}
KINDS = tuple(MEANINGS)
LONGEST_WAIT_S = 30.0
# Another server on the same database does not notify this one.
POLL_S = 5.0
MOST = 1000
KEPT_DAYS, MOST_KEPT, PRUNED_AT_ONCE = 30, 100_000, 1000
DAY_MS = 24 * 3600 * 1000
NO_DETAILS = b"{}"


def record(
    tx: Connection,
    *,
    org: str,
    now_ms: int,
    kind: str,
    target: str,
    what: str,
    actor: str = "",
    document: Mapping[str, Any] | None = None,
) -> None:
    """Record an event in the transaction of the change; it is numbered at the commit.

    ``document`` is served as the event's ``details``.
    """
    details = msgspec.json.encode(document) if document else NO_DETAILS
    rows.record(
        tx,
        {
            "org": org,
            "time": now_ms,
            "kind": kind,
            "target": target,
            "what": what,
            "actor": actor,
            "details": details,
        },
    )


def record_by(
    tx: Connection,
    actor: Actor,
    *,
    now_ms: int,
    kind: str,
    target: str,
    what: str,
    document: Mapping[str, Any] | None = None,
) -> None:
    """Record an event of a change that an organization's key has made."""
    record(
        tx,
        org=actor.org,
        now_ms=now_ms,
        kind=kind,
        target=target,
        what=what,
        actor=actor.name,
        document=document,
    )


@dataclass(frozen=True, kw_only=True)
class EventFilter:
    """The requested events of an organization: of one run, or of one kind."""

    run_id: str | None = None
    kind: str | None = None


EVERYTHING = EventFilter()


@dataclass(frozen=True, kw_only=True)
class FoundEvents:
    """Encoded events, and the number to continue after.

    ``is_reset`` says that events before these are lost, so there are none here; ``has_more`` that
    further ones exist already.
    """

    items: Sequence[bytes]
    next: int
    is_reset: bool = False
    has_more: bool = False


async def read_page(
    services: Services,
    *,
    org: str,
    after: int | None,
    limit: int = MOST,
    filter: EventFilter = EVERYTHING,
    wait_s: float = 0.0,
    gone: "asyncio.Future[None] | None" = None,
) -> bytes:
    """Return an ``EventPage`` as JSON: events numbered above ``after``.

    Without ``after``, from the oldest that is kept. With ``wait_s``, wait for an event if there is
    none. ``gone`` is done when the client has disconnected; then nothing is waited for.
    """
    clock = services.clock
    deadline_s = clock.monotonic_s() + min(wait_s, LONGEST_WAIT_S)
    with services.notifier.listen(org) as listener:
        while True:
            listener.changed.clear()
            found = await services.store.read_in_thread(
                partial(find, org=org, after=after, limit=limit, filter=filter)
            )
            remaining_s = deadline_s - clock.monotonic_s()
            is_over = remaining_s <= 0 or services.notifier.is_closed
            if found.items or found.is_reset or is_over or (gone is not None and gone.done()):
                items: Any = [msgspec.Raw(item) for item in found.items]
                page = EventPage(items=items, next=found.next, reset=found.is_reset)
                return msgspec.json.encode(page)
            after = found.next
            await services.notifier.wait(
                listener.changed, timeout_s=min(remaining_s, POLL_S), gone=gone
            )


def read_newest_number(services: Services, *, org: str) -> int:
    """Return the number of the newest event; those above it are new."""
    return services.store.read(partial(rows.get_counter, org=org))[0]


def encode_event(row: AnyRow) -> bytes:
    """Return an event as JSON."""
    details: Any = msgspec.Raw(row.details)
    event = Event(
        number=row.number,
        time=row.time,
        kind=row.kind,
        target=row.target,
        what=row.what,
        actor=row.actor,
        details=details,
    )
    return msgspec.json.encode(event)


def find(
    tx: Connection,
    *,
    org: str,
    after: int | None,
    limit: int,
    filter: EventFilter = EVERYTHING,
    encode: Callable[[AnyRow], bytes] = encode_event,
) -> FoundEvents:
    """Return events above a number; without one, from the oldest that is kept."""
    # Three reads, each of its own state. What is committed in between is found the next time, since
    # the newest number is read first; what is removed in between is noticed, since that is read
    # last.
    newest, _ = rows.get_counter(tx, org=org)
    kind = "run" if filter.run_id is not None else filter.kind

    def fetch(position: int, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, org=org, after=position, limit=limit, target=filter.run_id, kind=kind)

    items, last, has_more = paging.gather(
        fetch,
        after=after or 0,
        size=limit,
        encode=encode,
        get_position=lambda row: int(row.number),
    )
    reached = int(last.number) if last else after or 0
    now, kept_after = rows.get_counter(tx, org=org)
    if after is not None and not kept_after <= after <= now:
        return FoundEvents(items=(), next=now, is_reset=True)
    following = reached if has_more else max(reached, newest)
    return FoundEvents(items=items, next=following, has_more=has_more)


async def sweep(services: Services) -> None:
    """Remove events that are too old or too many."""
    before_ms = services.clock.now_ms() - KEPT_DAYS * DAY_MS
    for counter in services.store.read(rows.list_counters):
        prune = partial(
            rows.prune,
            org=counter.org,
            before_ms=before_ms,
            most=MOST_KEPT,
            limit=PRUNED_AT_ONCE,
        )
        if not await services.store.read_in_thread(
            partial(rows.has_prunable, org=counter.org, before_ms=before_ms, most=MOST_KEPT)
        ):
            continue
        while await services.store.write(prune):
            pass
