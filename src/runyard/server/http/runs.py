"""Routes of runs: each reads its request, calls one service, answers."""

import re
from typing import Any

from msgspec import UNSET

from runyard import limits
from runyard.server.http import bodies, compat
from runyard.server.http.capacity import waiting
from runyard.server.http.request import (
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    bad_query,
    empty,
    fitted,
    if_match_of,
    json_answer,
    json_body,
    services_of,
)
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import bulk_runs, deletion, runs, telemetry
from runyard.server.services.runs.conditions import REASONS
from runyard.server.services.validation import check_id
from runyard.store.runs import RunFilter

CONDITIONS = tuple(kind.value for kind in REASONS)
STREAMS = ("events", "stdout", "stderr")


async def list_runs(request: Asked, org: Id) -> Answer:
    query = Query(request)
    filter = _filter(query)
    wanted = query.page(f"runs {filter}")
    return json_answer(await runs.page(services_of(request), org=org, filter=filter, wanted=wanted))


async def get_run(request: Asked, org: Id, run_id: Id) -> Answer:
    document, etag = runs.get(services_of(request), org=org, run_id=run_id)
    return json_answer(document, etag=etag)


async def put_run(request: Asked, org: Id, run_id: Id) -> Answer:
    body, value = await json_body(request)
    given = fitted(compat.camel_spec(value), bodies.NewRun)
    origin = given.spec.resume_from
    document, etag, is_new = await runs.create(
        services_of(request),
        actor_of(request),
        run_id,
        body=body,
        flow=given.spec.flow,
        flow_id=given.spec.flow_id,
        training_project=given.spec.training_project,
        resume_from=None if origin is None else (origin.run_id, origin.checkpoint),
        attributes=bodies.attributes_of(given.metadata),
    )
    return json_answer(document, etag=etag, status=201 if is_new else 200)


async def patch_run(request: Asked, org: Id, run_id: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(compat.camel_spec(value), bodies.ChangedRun)
    spec = given.spec or bodies.ChangedRunSpec()
    document, etag = await runs.update(
        services_of(request),
        actor_of(request),
        run_id,
        kill=spec.killed_at is not UNSET,
        grace_s=spec.grace_seconds or (0.0 if spec.grace_seconds == 0 else None),
        training_project=spec.training_project,
        attributes=bodies.attributes_of(given.metadata),
        if_match=if_match_of(request),
    )
    return json_answer(document, etag=etag)


async def delete_run(request: Asked, org: Id, run_id: Id) -> Answer:
    await deletion.delete(services_of(request), actor_of(request), run_id, if_match=if_match_of(request))
    return empty()


async def kill_runs(request: Asked, org: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(value, bodies.KilledRuns)
    ids, filter = _named_runs(given)
    grace_s = given.grace_seconds
    outcomes = await bulk_runs.kill(
        services_of(request), actor_of(request), ids=ids, filter=filter, grace_s=grace_s, dry_run=given.dry_run
    )
    return answer(outcomes)


async def delete_runs(request: Asked, org: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(value, bodies.DeletedRuns)
    ids, filter = _named_runs(given)
    outcomes = await bulk_runs.delete(
        services_of(request), actor_of(request), ids=ids, filter=filter, dry_run=given.dry_run
    )
    return answer(outcomes)


async def get_logs(request: Asked, org: Id, run_id: Id) -> Answer:
    query = Query(request)
    wait_s = query.seconds("wait")
    async with waiting(request.scope, wait_s) as gone:
        page = await telemetry.log_page(
            services_of(request),
            org=org,
            run_id=run_id,
            since=query.integer("since", 0) or 0,
            until=query.integer("until"),
            stream=query.one_of("block", STREAMS),
            limit=query.integer("limit", telemetry.MOST, least=1, most=telemetry.MOST) or telemetry.MOST,
            wait_s=wait_s,
            gone=gone,
        )
    return json_answer(page)


async def get_metrics(request: Asked, org: Id, run_id: Id) -> Answer:
    query = Query(request)
    page = await telemetry.metric_page(
        services_of(request),
        org=org,
        run_id=run_id,
        since=query.integer("since", 0) or 0,
        limit=query.integer("limit", telemetry.MOST, least=1, most=10 * telemetry.MOST) or telemetry.MOST,
    )
    return json_answer(page)


def _filter(query: Query) -> RunFilter:
    return RunFilter(
        condition=query.one_of("condition", CONDITIONS),
        flow_id=query.text("flow"),
        training_project=query.text("trainingProject"),
        attributes=_attributes(query.all("attribute")),
        created_after=query.integer("createdAfter"),
        created_before=query.integer("createdBefore"),
    )


def _attributes(given: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the attribute filters, each once."""
    allowed = limits.ATTRIBUTE_FILTERS.value
    if len(given) > allowed:
        raise bad_query("attribute", f"{len(given)} filters", f"given at most {allowed} times")
    return tuple(dict.fromkeys(_attribute(one) for one in given))


def _named_runs(given: bodies.DeletedRuns) -> tuple[list[str] | None, RunFilter | None]:
    """Which runs a body names; exactly one of the two returned values is not None.

    Raises:
        Refusal: InvalidBody, InvalidId.
    """
    if (given.ids is None) == (given.filter is None):
        raise Refusal("InvalidBody", "the body names the runs twice, or not at all; give either ids or filter")
    if given.filter is None:
        for run_id in given.ids or ():
            check_id("run", run_id)
        return given.ids, None
    named = given.filter
    if named.condition is not None and named.condition not in CONDITIONS:
        message = f"/filter/condition is {named.condition[:80]!r}; it must be one of {', '.join(CONDITIONS)}"
        raise Refusal("InvalidBody", message)
    filter = RunFilter(
        condition=named.condition,
        flow_id=named.flow,
        training_project=named.training_project,
        attributes=tuple(named.attributes.items()),
        created_after=named.created_after,
        created_before=named.created_before,
    )
    if (filter == RunFilter()) is not (named.all is True):
        raise Refusal(
            "InvalidBody", 'the filter must name at least one condition, or every run: {"all": true} and nothing else'
        )
    return None, filter


def _attribute(given: str) -> tuple[Any, Any]:
    found = re.fullmatch(r"([^:]+):(.*)", given, re.DOTALL)
    if found is None:
        raise bad_query("attribute", given, "key:value, once for each attribute")
    return found.group(1), found.group(2)
