"""The page *Runs*: the list with its filter, and the rows that changed since.

Everything that the list shows is in its address, so Back and a copied address give the same view.
htmx gets the parts that a filter, an order or a page changes; a browser gets the page.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from runyard.server.http.request import Query, Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.runs import summaries
from runyard.server.pages.runs.rows import (
    NO_COLUMNS,
    PATH,
    FilterProblem,
    ListState,
    RunsPage,
    RunsTable,
    ViewLink,
    build_chips,
    build_headings,
    build_row,
    build_url,
    describe_order,
    find_condition,
    find_key_metric,
    format_total,
    mark_problem,
    write_list_snippet,
    write_start_snippet,
)
from runyard.server.pages.views import SHAPES
from runyard.server.services import documents
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs import listing, runs
from runyard.server.services.runs.filters import parse_filter
from runyard.server.services.saved_views import VIEW
from vi.api.resources.runs.responses import Run, RunCount
from vi.api.resources.views.responses import SavedView

SIZE = 50
MOST_FRESH = 200  # rows that one request renews, and new runs that it counts
MOST_VIEWS = 50


async def get_home(request: Request) -> Response:
    """Go to the runs."""
    return Response(status=303, headers=[(b"location", PATH.encode())])


async def list_runs(request: Request) -> Response:
    """Show the list, or for htmx its parts."""
    state, is_fragment = read_state(Query(request)), templates.is_fragment(request)
    problem, filter = find_problem(state.q)
    if problem is not None and is_fragment:
        # The list stays as it is: a filter is not valid while it is being typed.
        page = RunsProblem(problem=problem, is_fragment=True)
        return templates.render_fragment(request, "parts/_runs_problem.html", page)
    table = await build_table(request, state, filter)
    shown = RunsPage(
        table=table,
        problem=problem,
        views=await list_views(request, state),
        is_fragment=is_fragment,
    )
    if is_fragment:
        return templates.render_fragment(request, "parts/_runs_fragment.html", shown)
    return templates.render_page(request, "runs.html", shown)


class RunsProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Mistake in a filter, for the line below it."""

    problem: FilterProblem
    is_fragment: bool


class FreshRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows as they are now, the ids of runs that are gone, and the chips."""

    table: RunsTable
    gone: tuple[str, ...]
    width: int
    is_counted: bool


async def renew_rows(request: Request) -> Response:
    """Return the rows of the runs that are named; with ``count`` also how many runs match.

    Of the runs that are named as new, those count that the filter matches. More match than were
    ``shown`` if the page has missed some, or if they match only now.
    """
    query = Query(request)
    state = read_state(query)
    problem, filter = find_problem(state.q)
    if problem is not None:
        return Response(status=204)
    ids = list(dict.fromkeys(query.all("id")))[:MOST_FRESH]
    found = read_runs(request, ids)
    is_counted = query.text("count") == "true"
    new = await count_new(request, state, query.all("new")) if is_counted else 0
    table = await build_table(
        request, state, filter, rows=found, new_count=new, is_counted=is_counted
    )
    known = {run.run_id for run in found}
    if is_counted and not table.is_total_open:
        missed = table.total - (query.integer("shown", table.total) or 0)
        table = msgspec.structs.replace(table, new_count=max(new, missed))
    page = FreshRows(
        table=table,
        gone=tuple(run_id for run_id in ids if run_id not in known and run_id.isascii()),
        width=len(table.headings) + 1,
        is_counted=is_counted,
    )
    return templates.render_fragment(request, "parts/_runs_fresh.html", page)


async def count_new(request: Request, state: ListState, ids: Sequence[str]) -> int:
    """Return how many of these runs the filter matches."""
    distinct = list(dict.fromkeys(ids))[:MOST_FRESH]
    if not state.q:
        return len(distinct)
    services, org = get_services(request), get_actor(request).org
    total = 0
    for run_id in distinct:
        found = await listing.count_runs(
            services, org=org, filter=parse_filter(f"{state.q} id:{run_id}")
        )
        total += min(1, found.total)
    return total


def read_state(query: Query) -> ListState:
    """Return what the address asks for."""
    return ListState(
        q=(query.text("q") or "").strip(),
        sort=query.text("sort") or "",
        columns=normalize_columns(query.all("columns")),
        p=query.text("p") or "",
        before=query.text("before") or "",
    )


def normalize_columns(given: Sequence[str]) -> str:
    """Return the chosen columns as the address has them; nothing for all of them."""
    names = [name for value in given for name in value.split(",") if name]
    if not names:
        return ""
    chosen = ListState(columns=",".join(names)).list_columns()
    is_default = chosen == ListState().list_columns()
    return "" if is_default else ",".join(chosen) or NO_COLUMNS


def find_problem(q: str) -> tuple[FilterProblem | None, Any]:
    """Return what is wrong with a filter, and the filter; that of every run if it is not valid."""
    try:
        return None, parse_filter(q)
    except Refusal as refusal:
        if refusal.code != "InvalidFilter":
            raise
        entry = refusal.problems[0] if refusal.problems else None
        position = entry.path.rpartition("/")[2] if entry else ""
        problem = mark_problem(
            q,
            refusal.message,
            int(position) if position.isdecimal() else 0,
            str(entry.given) if entry else "",
        )
        return problem, parse_filter("")


def read_runs(request: Request, ids: Sequence[str]) -> list[Run]:
    """Return the runs of these ids that exist."""
    services, org = get_services(request), get_actor(request).org
    found: list[Run] = []
    for run_id in ids:
        try:
            document, _ = runs.get(services, org=org, run_id=run_id)
        except Refusal:
            continue
        found.append(runs.decode_run(document))
    return found


async def build_table(
    request: Request,
    state: ListState,
    filter: Any,
    *,
    rows: Sequence[Run] | None = None,
    new_count: int = 0,
    is_counted: bool = True,
) -> RunsTable:
    """Return the table; ``rows`` are given where only these are shown."""
    services, actor = get_services(request), get_actor(request)
    newer = older = None
    if rows is None:
        rows, newer, older = await read_page(services, actor.org, state, filter)
    counts = total = RunCount()
    if is_counted:
        counts, total = await count_matching(request, state, filter)
    columns = state.list_columns()
    found = await summaries.read_summaries(
        services, org=actor.org, runs=rows, has_curves="loss" in columns
    )
    now_ms = services.clock.now_ms()
    metrics = [name for run in rows if (name := find_key_metric(run)[0])]
    metric = max(set(metrics), key=metrics.count, default="")
    return RunsTable(
        state=state,
        rows=tuple(
            build_row(run, now_ms=now_ms, summary=found[run.run_id], q=state.q) for run in rows
        ),
        columns=columns,
        headings=build_headings(state, metric),
        chips=build_chips(state, counts.conditions, more=counts.more),
        total=total.total,
        is_total_open=total.more,
        total_text=format_total(total.total, more=total.more),
        new_count=new_count,
        has_filter=bool(state.q),
        all_url=state.get_url(q=""),
        first_url=state.get_url(p="", before=""),
        older_url=state.get_url(p=older, before="") if older else "",
        newer_url=state.get_url(before=newer, p="") if newer else "",
        order_text=describe_order(state.sort),
        refresh_query=build_url("", q=state.q, sort=state.sort, columns=state.columns),
        may_change=actor.role in ("member", "admin"),
        list_snippet=write_list_snippet(state),
        start_snippet=write_start_snippet(),
        csv_url=build_url(f"{PATH}:export", q=state.q, sort=state.sort),
        json_url=build_url(
            f"/workspaces/{actor.org}/runs", filter=state.q, orderBy=state.sort, s="1000"
        ),
    )


async def read_page(
    services: Services, org: str, state: ListState, filter: Any
) -> tuple[list[Run], str | None, str | None]:
    """Return a page of runs, and the tokens of the pages before and after it.

    A page before another one is read in the opposite order, from where that one begins.
    """
    order = state.sort or listing.DEFAULT_ORDER
    read = functools.partial(listing.list_runs, services, org=org, filter=filter, size=SIZE)
    if state.before:
        page = await read(order_by=listing.reverse_order(order), token=state.before)
        if page.next_page is not None:
            return page.items[::-1], page.next_page, page.way_back
        # The first page, which may have fewer runs before that position: show it in full.
        page = await read(order_by=order)
    else:
        page = await read(order_by=order, token=state.p or None)
    return page.items, page.way_back, page.next_page


async def count_matching(
    request: Request, state: ListState, filter: Any
) -> tuple[RunCount, RunCount]:
    """Return how many runs match apart from their condition, and how many match altogether."""
    services, org = get_services(request), get_actor(request).org
    others = tuple(term for term in filter.terms if term.field != "condition")
    by_condition = await listing.count_runs(
        services, org=org, filter=dataclasses.replace(filter, terms=others)
    )
    if len(others) == len(filter.terms):
        return by_condition, by_condition
    condition = find_condition(state.q)
    if condition in SHAPES:
        total = by_condition.conditions.get(condition, 0)
        return by_condition, RunCount(total=total, conditions={}, more=by_condition.more)
    return by_condition, await listing.count_runs(services, org=org, filter=filter)


async def list_views(request: Request, state: ListState) -> tuple[ViewLink, ...]:
    """Return the saved views of the organization, newest first."""
    page_request = PageRequest(size=MOST_VIEWS, question="views")
    body = await documents.page(
        get_services(request), VIEW, org=get_actor(request).org, page_request=page_request
    )
    views = msgspec.json.decode(body, type=ViewList).items
    return tuple(_build_view_link(view, state) for view in views)


class ViewList(msgspec.Struct, frozen=True):
    """A page of saved views."""

    items: list[SavedView]


def _build_view_link(view: SavedView, state: ListState) -> ViewLink:
    spec = view.spec
    shown = ListState(q=spec.filter, sort=spec.order_by, columns=normalize_columns(spec.columns))
    return ViewLink(
        id=view.view_id,
        name=spec.name,
        filter=spec.filter,
        url=shown.get_url(),
        is_current=(shown.q, shown.sort, shown.columns) == (state.q, state.sort, state.columns),
    )
