"""Routes of runs: each parses its request, calls one service, and encodes the response."""

import re
from typing import Any

from msgspec import UNSET

from runyard import limits
from runyard.server.http import compat
from runyard.server.http.endpoints import bodies
from runyard.server.http.request import (
    Id,
    Query,
    Request,
    convert_body,
    get_actor,
    get_if_match,
    get_services,
    invalid_query,
    parse_json_body,
)
from runyard.server.http.responses import Response, empty_response, encode_response, json_response
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import bulk_runs, deletion, listing, runs
from runyard.server.services.runs.filters import CONDITIONS, parse_filter
from runyard.server.services.runs.telemetry import series
from runyard.server.services.validation import check_id
from runyard.store.lists.run_filter import RunFilter
from runyard.store.telemetry.series import Window

_EMPTY_FILTER = (
    'the filter is empty or combines "all" with others; try: one condition, or {"all": true} for '
    "every run"
)


async def list_runs(request: Request, org: Id) -> Response:
    query = Query(request)
    filter = _parse_filter(query)
    order_by = query.text("orderBy") or listing.DEFAULT_ORDER
    page = await listing.read_page(
        get_services(request),
        org=org,
        filter=filter,
        order_by=order_by,
        page_request=query.page(listing.describe_list(filter, order_by)),
    )
    return json_response(page)


async def count_runs(request: Request, org: Id) -> Response:
    filter = _parse_filter(Query(request))
    return encode_response(await listing.count_runs(get_services(request), org=org, filter=filter))


async def get_run(request: Request, org: Id, run_id: Id) -> Response:
    document, etag = runs.get(get_services(request), org=org, run_id=run_id)
    return json_response(document, etag=etag)


async def put_run(request: Request, org: Id, run_id: Id) -> Response:
    body, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.NewRun)
    origin = given.spec.resume_from
    document, etag, is_new = await runs.create(
        get_services(request),
        get_actor(request),
        run_id,
        body=body,
        flow=given.spec.flow,
        flow_id=given.spec.flow_id,
        training_project=given.spec.training_project,
        resume_from=None if origin is None else (origin.run_id, origin.checkpoint),
        attributes=bodies.get_attributes(given.metadata),
        name=None if given.metadata is None else given.metadata.name,
    )
    return json_response(document, etag=etag, status=201 if is_new else 200)


async def patch_run(request: Request, org: Id, run_id: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.ChangedRun)
    spec = given.spec or bodies.ChangedRunSpec()
    document, etag = await runs.update(
        get_services(request),
        get_actor(request),
        run_id,
        kill=spec.killed_at is not UNSET,
        grace_s=spec.grace_seconds or (0.0 if spec.grace_seconds == 0 else None),
        training_project=spec.training_project,
        attributes=bodies.get_attributes(given.metadata),
        name=UNSET if given.metadata is None else given.metadata.name,
        if_match=get_if_match(request),
    )
    return json_response(document, etag=etag)


async def delete_run(request: Request, org: Id, run_id: Id) -> Response:
    await deletion.delete(
        get_services(request), get_actor(request), run_id, if_match=get_if_match(request)
    )
    return empty_response()


async def kill_runs(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.KilledRuns)
    ids, filter = _parse_named_runs(given)
    grace_s = given.grace_seconds
    outcomes = await bulk_runs.kill(
        get_services(request),
        get_actor(request),
        ids=ids,
        filter=filter,
        grace_s=grace_s,
        dry_run=given.dry_run,
    )
    return encode_response(outcomes)


async def delete_runs(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.DeletedRuns)
    ids, filter = _parse_named_runs(given)
    outcomes = await bulk_runs.delete(
        get_services(request), get_actor(request), ids=ids, filter=filter, dry_run=given.dry_run
    )
    return encode_response(outcomes)


async def tag_runs(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.TaggedRuns)
    ids, filter = _parse_named_runs(given)
    outcomes = await bulk_runs.tag(
        get_services(request),
        get_actor(request),
        ids=ids,
        filter=filter,
        attributes=given.set,
        dry_run=given.dry_run,
    )
    return encode_response(outcomes)


async def get_metrics(request: Request, org: Id, run_id: Id) -> Response:
    query = Query(request)
    page = await series.read_metric_page(
        get_services(request),
        org=org,
        run_id=run_id,
        since=query.integer("since", 0) or 0,
        limit=query.integer("limit", series.MOST, minimum=1, maximum=10 * series.MOST)
        or series.MOST,
    )
    return json_response(page)


async def get_metric_series(request: Request, org: Id, run_id: Id) -> Response:
    return await _respond_with_series(request, org, [run_id], Query(request))


async def get_metric_series_of_runs(request: Request, org: Id) -> Response:
    query = Query(request)
    ids = list(dict.fromkeys(query.all("id")))
    if not 1 <= len(ids) <= series.MOST_RUNS:
        raise invalid_query("id", f"{len(ids)} ids", f"given 1 to {series.MOST_RUNS} times")
    for run_id in ids:
        check_id("run", run_id)
    return await _respond_with_series(request, org, ids, query)


async def _respond_with_series(
    request: Request, org: str, run_ids: list[str], query: Query
) -> Response:
    given = query.text("keys")
    keys = None if given is None else list(dict.fromkeys(given.split(",")))
    if keys is not None and len(keys) > series.MOST_KEYS:
        allowed = f"at most {series.MOST_KEYS} names, separated by commas"
        raise invalid_query("keys", f"{len(keys)} names", allowed)
    page = await series.read_series(
        get_services(request),
        org=org,
        run_ids=run_ids,
        keys=keys,
        window=Window(
            first=query.integer("from"),
            last=query.integer("to"),
            points=query.integer(
                "points", series.DEFAULT_POINTS, minimum=1, maximum=series.MOST_POINTS
            )
            or series.DEFAULT_POINTS,
            bits=_parse_bucket_bits(query),
            since=query.integer("since"),
        ),
    )
    return json_response(page)


def _parse_bucket_bits(query: Query) -> int | None:
    """Return the logarithm of ``bucketSteps``, a power of two."""
    steps = query.integer("bucketSteps", minimum=1)
    if steps is None:
        return None
    if steps & (steps - 1):
        raise invalid_query("bucketSteps", str(steps), "a power of two, such as 1, 64 or 4096")
    return steps.bit_length() - 1


def _parse_filter(query: Query) -> RunFilter:
    return RunFilter(
        condition=query.one_of("condition", CONDITIONS),
        flow_id=query.text("flow"),
        training_project=query.text("trainingProject"),
        attributes=_parse_attributes(query.all("attribute")),
        created_after=query.integer("createdAfter"),
        created_before=query.integer("createdBefore"),
        terms=parse_filter(query.text("filter") or "").terms,
    )


def _parse_attributes(given: list[str]) -> tuple[tuple[str, str], ...]:
    """Parse the attribute filters; drop duplicates."""
    allowed = limits.ATTRIBUTE_FILTERS.value
    if len(given) > allowed:
        raise invalid_query("attribute", f"{len(given)} filters", f"given at most {allowed} times")
    return tuple(dict.fromkeys(_parse_attribute(one) for one in given))


def _parse_named_runs(given: bodies.DeletedRuns) -> tuple[list[str] | None, RunFilter | None]:
    """Return the ids or the filter that a body names runs by; exactly one of them is not None.

    Raises:
        Refusal: InvalidBody, InvalidId.
    """
    if (given.ids is None) == (given.filter is None):
        raise Refusal(
            "InvalidBody",
            "the body must name runs either by ids or by a filter; try: give exactly one of the "
            "two",
        )
    if given.filter is None:
        for run_id in given.ids or ():
            check_id("run", run_id)
        return given.ids, None
    named = given.filter
    if isinstance(named, str):
        filter = parse_filter(named)
        if filter.is_empty:
            raise Refusal("InvalidBody", _EMPTY_FILTER)
        return None, filter
    if named.condition is not None and named.condition not in CONDITIONS:
        message = (
            f"/filter/condition is {named.condition[:80]!r}; it must be one of "
            f"{', '.join(CONDITIONS)}"
        )
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
        raise Refusal("InvalidBody", _EMPTY_FILTER)
    return None, filter


def _parse_attribute(given: str) -> tuple[Any, Any]:
    found = re.fullmatch(r"([^:]+):(.*)", given, re.DOTALL)
    if found is None:
        raise invalid_query("attribute", given, "key:value, once for each attribute")
    return found.group(1), found.group(2)
