"""Kill, delete or tag many runs with one request, with one outcome for each run.

The runs are named by their ids, or by the filters of the list. A filter finds at most ``MOST``
runs, newest first, and only those on which there is something to do. ``more`` says that a repeat
would find further ones. Runs are written in transactions of ``AT_ONCE``, so that other writers get
their turn. Every outcome in the response is on disk.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from sqlalchemy import Connection

from runyard.server.services import notifications
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import deletion, runs
from runyard.store import runs as rows
from runyard.store import tombstones
from runyard.store.lists import run_query
from runyard.store.lists.run_filter import RunFilter
from vi.api.resources.runs.responses import RunOutcome, RunOutcomes
from vi.api.responses import ConditionKind

MOST = 1000
AT_ONCE = 100


async def kill(
    services: Services,
    actor: Actor,
    *,
    ids: Sequence[str] | None,
    filter: RunFilter | None,
    grace_s: float | None,
    dry_run: bool,
) -> RunOutcomes:
    """Kill runs. Those that have ended by themselves stay as they are."""
    now_ms = services.clock.now_ms()

    def kill_one(tx: Connection, run_id: str) -> RunOutcome:
        row = rows.get(tx, org=actor.org, run_id=run_id)
        if row is None or row.deleted:
            raise not_found("run", run_id)
        condition = ConditionKind(row.condition)
        if dry_run:
            if condition.is_final and not row.killed:
                raise runs.run_finished(run_id, condition.value)
            return RunOutcome(run_id=run_id, outcome="WouldKill", condition=condition)
        document, _ = runs.apply_update(
            services, tx, actor, run_id, kill=True, grace_s=grace_s, now_ms=now_ms
        )
        return RunOutcome(
            run_id=run_id, outcome="Killed", condition=runs.decode_run(document).condition
        )

    answer = await _apply_to_each(
        services, actor, kill_one, ids=ids, filter=filter, dry_run=dry_run, only_killable=True
    )
    if not dry_run:
        for outcome in answer.items:
            services.notifier.notify(run_topic(actor.org, outcome.run_id))
    return answer


async def delete(
    services: Services,
    actor: Actor,
    *,
    ids: Sequence[str] | None,
    filter: RunFilter | None,
    dry_run: bool,
) -> RunOutcomes:
    """Delete runs. They disappear from the API at once; their bytes follow."""
    now_ms = services.clock.now_ms()

    def delete_one(tx: Connection, run_id: str) -> RunOutcome:
        row = rows.get(tx, org=actor.org, run_id=run_id)
        if row is None or row.deleted:
            # A repeat of a request whose response was lost finds the run deleted, as intended.
            if tombstones.exists(tx, org=actor.org, kind="run", id=run_id):
                return RunOutcome(run_id=run_id, outcome="AlreadyDeleted")
            raise not_found("run", run_id)
        if not dry_run:
            deletion.mark_deleted(services, tx, actor, run_id, now_ms=now_ms)
        return RunOutcome(run_id=run_id, outcome="WouldDelete" if dry_run else "Deleted")

    answer = await _apply_to_each(
        services, actor, delete_one, ids=ids, filter=filter, dry_run=dry_run
    )
    gone = [outcome.run_id for outcome in answer.items if outcome.outcome == "Deleted"]
    for run_id in gone:
        services.notifier.notify(run_topic(actor.org, run_id))
    if gone:
        services.notifier.notify(notifications.QUEUE)
        # The sweep would purge them within a minute; nothing is lost if this task ends early.
        services.jobs.start(
            ("purge", actor.org, uuid.uuid4().hex), lambda: _purge_runs(services, actor.org, gone)
        )
    return answer


async def tag(
    services: Services,
    actor: Actor,
    *,
    ids: Sequence[str] | None,
    filter: RunFilter | None,
    attributes: Mapping[str, str | None],
    dry_run: bool,
) -> RunOutcomes:
    """Set attributes of runs, or remove those with None."""
    now_ms = services.clock.now_ms()

    def tag_one(tx: Connection, run_id: str) -> RunOutcome:
        row = rows.get(tx, org=actor.org, run_id=run_id)
        if row is None or row.deleted:
            raise not_found("run", run_id)
        if not dry_run:
            runs.apply_update(services, tx, actor, run_id, attributes=attributes, now_ms=now_ms)
        return RunOutcome(run_id=run_id, outcome="WouldTag" if dry_run else "Tagged")

    answer = await _apply_to_each(
        services, actor, tag_one, ids=ids, filter=filter, dry_run=dry_run, untagged=attributes
    )
    for outcome in answer.items:
        if outcome.outcome == "Tagged":
            services.notifier.notify(run_topic(actor.org, outcome.run_id))
    return answer


async def _apply_to_each(
    services: Services,
    actor: Actor,
    act: Callable[[Connection, str], RunOutcome],
    *,
    ids: Sequence[str] | None,
    filter: RunFilter | None,
    dry_run: bool,
    only_killable: bool = False,
    untagged: Mapping[str, str | None] = MappingProxyType({}),
) -> RunOutcomes:
    """Apply an action to each run, several in one transaction.

    A run that is refused changes nothing for the others.
    """
    more = False
    if filter is not None:
        found = await services.store.read_in_thread(
            lambda tx: run_query.list_ids(
                tx,
                org=actor.org,
                filter=filter,
                only_killable=only_killable,
                untagged=untagged,
                limit=MOST + 1,
                now_ms=services.clock.now_ms(),
            )
        )
        ids, more = found[:MOST], len(found) > MOST
    outcomes: list[RunOutcome] = []
    distinct = list(dict.fromkeys(ids or ()))
    for start in range(0, len(distinct), AT_ONCE):
        some = distinct[start : start + AT_ONCE]

        def apply_to_runs(tx: Connection, some: Sequence[str] = some) -> list[RunOutcome]:
            return [_apply_to_run(tx, run_id, act) for run_id in some]

        outcomes += (
            services.store.read(apply_to_runs)
            if dry_run
            else await services.store.write(apply_to_runs)
        )
    return RunOutcomes(items=outcomes, more=more)


def _apply_to_run(
    tx: Connection, run_id: str, act: Callable[[Connection, str], RunOutcome]
) -> RunOutcome:
    try:
        return act(tx, run_id)
    except Refusal as refusal:  # raised before anything of this run is written
        return RunOutcome(
            run_id=run_id, outcome="Refused", code=refusal.code, message=refusal.message
        )


async def _purge_runs(services: Services, org: str, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        await deletion.purge_if_due(services, org=org, run_id=run_id)
