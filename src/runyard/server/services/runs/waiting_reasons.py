"""Keeps the reasons of waiting runs right while machines come and go.

``update`` runs once a second and goes through the distinct requirements of waiting runs, not through the runs; it
writes only what is different.
"""

from typing import Any

from sqlalchemy import Connection

from runyard.server.services import notifications
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import waiting
from runyard.server.services.runs.conditions import Move
from runyard.server.services.runs.runs import decoded, save, wait
from runyard.store import StoreUnavailable, queue

KEYS_AT_ONCE, RUNS_AT_ONCE = 50, 200


async def update(services: Services) -> None:
    """Explain waiting runs whose reason or message is no longer right; at most some hundred of them a time."""
    state = services.explained
    found: list[tuple[str, str, Move]] = []

    def look(connection: Connection) -> None:
        counts = state.busy = queue.count_open_by_machine(connection)
        state.counted_s = services.clock.monotonic_s()
        offers = waiting.offers_now(services, counts)
        if state.event is None or state.event.is_set() or offers != state.offers:
            state.event, state.offers = services.changes.watch(notifications.QUEUE), offers
            state.rounds_left = 2  # the one under way, and a whole one
        if state.rounds_left == 0:
            return
        keys = queue.list_requirements(connection, after=state.after, limit=KEYS_AT_ONCE)
        for key in keys:
            reason = waiting.explain(waiting.wanted_labels(connection, key) or {}, offers)
            if waiting.is_too_early(services, reason, counts):
                state.event, state.after = None, key  # looked at again with the next beat
                continue
            rows = queue.list_outdated_reasons(
                connection,
                key=key,
                code=waiting.code_of(reason),
                with_unexplained=reason.reason != "Queued",
                limit=RUNS_AT_ONCE - len(found),
            )
            found.extend((row.org, row.id, reason) for row in rows)
            if len(found) == RUNS_AT_ONCE:
                return  # this key has more of them: it is the first of the next time
            state.after = key
        if len(keys) < KEYS_AT_ONCE:
            state.after, state.rounds_left = "", state.rounds_left - 1

    def work(connection: Connection) -> None:
        for org, run_id, reason in found:
            row = queue.get_waiting(connection, org=org, run_id=run_id)
            if row is not None:
                _write(services, connection, row, reason)

    services.store.read(look)
    if found:
        try:
            await services.store.write(work)
        except StoreUnavailable:
            state.event = None  # nothing was written, so nothing is right yet
            raise
        for org, run_id, _ in found:
            services.changes.tell(run_topic(org, run_id))


def _write(services: Services, connection: Connection, row: Any, reason: Move) -> None:
    run = decoded(row.document)
    wait(run, reason, now_ms=services.clock.now_ms())
    save(connection, run, {"waits": waiting.code_of(reason)})
