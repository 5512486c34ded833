"""Keep the reasons of waiting runs correct while machines come and go.

``refresh`` runs once a second and walks the distinct requirements of waiting runs, not the runs. It
writes only what is different.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from runyard.server.services import notifications
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import placement
from runyard.server.services.runs.conditions import Transition
from runyard.server.services.runs.runs import decode_run, save, set_waiting_reason
from runyard.store import StoreUnavailable, queue
from runyard.store.requirements import Requirements

KEYS_AT_ONCE, RUNS_AT_ONCE = 50, 200
Outdated = tuple[str, str, Transition]  # organization, run, and the reason that is correct now


async def refresh(services: Services) -> None:
    """Update waiting runs whose reason or message is outdated, some hundred at once."""
    found = services.store.read(lambda tx: _find_outdated(services, tx))
    if found:
        try:
            await services.store.write(lambda tx: _update_reasons(services, tx, found))
        except StoreUnavailable:
            services.waiting_reasons.event = None  # no reason was written, so none is up to date
            raise
        for org, run_id, _ in found:
            services.notifier.notify(run_topic(org, run_id))


def _find_outdated(services: Services, tx: Connection) -> list[Outdated]:
    """Return waiting runs with an outdated reason, and advance the state of the refresh."""
    state = services.waiting_reasons
    found: list[Outdated] = []
    counts = state.busy = queue.count_open_by_machine(tx)
    state.counted_s = services.clock.monotonic_s()
    offers = placement.list_offers(services, counts)
    if state.event is None or state.event.is_set() or offers != state.offers:
        state.event, state.offers = services.notifier.watch(notifications.QUEUE), offers
        state.rounds_left = 2  # the current round, and a whole one
    if state.rounds_left == 0:
        return found
    keys = queue.list_requirements(tx, after=state.after, limit=KEYS_AT_ONCE)
    for key in keys:
        reason = placement.explain_waiting(
            placement.get_requirements(tx, key) or Requirements(), offers
        )
        if placement.is_too_early(services, reason, counts):
            state.event, state.after = None, key  # tried again with the next refresh
            continue
        rows = queue.list_outdated_reasons(
            tx,
            key=key,
            code=placement.hash_reason(reason),
            with_unexplained=reason.reason != "Queued",
            limit=RUNS_AT_ONCE - len(found),
        )
        found.extend((row.org, row.id, reason) for row in rows)
        if len(found) == RUNS_AT_ONCE:
            return found  # this key has more of them: the next refresh begins with it
        state.after = key
    if len(keys) < KEYS_AT_ONCE:
        state.after, state.rounds_left = "", state.rounds_left - 1
    return found


def _update_reasons(services: Services, tx: Connection, outdated: Sequence[Outdated]) -> None:
    for org, run_id, reason in outdated:
        row = queue.get_waiting(tx, org=org, run_id=run_id)
        if row is not None:
            _update_reason(services, tx, row, reason)


def _update_reason(services: Services, tx: Connection, row: Any, reason: Transition) -> None:
    run = decode_run(row.document)
    set_waiting_reason(run, reason, now_ms=services.clock.now_ms())
    save(tx, run, {"waits": placement.hash_reason(reason)})
