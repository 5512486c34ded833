"""Lists and counts of runs: filtered, sorted, page by page."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from runyard import limits
from runyard.server.services import paging
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Services
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs.conditions import REASONS
from runyard.server.services.runs.runs import decode_run
from runyard.store.lists import run_list, run_metrics, run_query
from runyard.store.lists.run_filter import RunFilter
from runyard.store.lists.run_query import OrderField, RunOrder
from runyard.store.tables import AnyRow
from vi.api.resources.runs.responses import Run, RunCount

T = TypeVar("T")

DEFAULT_ORDER = "-created"
ORDERS = ("created", "name", "duration", "metric.KEY")
INDEXED_AT_ONCE = 250  # other writes wait for them
MOST_UNINDEXED = 1_000  # a search reads their texts one by one


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page of runs; ``next_page`` is the token of the next one, None on the last.

    ``way_back`` is the token of the runs before this page, nearest first: of the list in the
    opposite order, see ``reverse_order``. It is None on the first page.
    """

    items: list[Run]
    next_page: str | None
    way_back: str | None = None


def parse_order(text: str) -> RunOrder:
    """Return the order that a text such as ``-created`` or ``metric.loss`` describes.

    Raises:
        Refusal: InvalidQuery.
    """
    field = text.removeprefix("-")
    is_descending = text.startswith("-")
    if field.startswith("metric."):
        metric = field.removeprefix("metric.")
        if metric and limits.METRIC_NAME.find_problem(metric) is None:
            return RunOrder(field="metric", is_descending=is_descending, metric=metric)
    elif field in ORDERS:
        return RunOrder(field=cast(OrderField, field), is_descending=is_descending)
    allowed = f"one of {', '.join(ORDERS)}, with - in front for descending order"
    message = f"query parameter 'orderBy' is {text[:80]!r}; it must be {allowed}"
    problem = Problem(path="?orderBy", given=text[:80], allowed=allowed, message=message)
    raise Refusal("InvalidQuery", message, problems=[problem])


def reverse_order(text: str) -> str:
    """Return the opposite of an order."""
    return text[1:] if text.startswith("-") else f"-{text}"


def describe_list(filter: RunFilter, order_by: str) -> str:
    """Return what the tokens of a list are valid for."""
    return f"runs {filter} {order_by}"


async def list_runs(
    services: Services,
    *,
    org: str,
    filter: RunFilter,
    order_by: str = DEFAULT_ORDER,
    size: int = paging.DEFAULT_SIZE,
    token: str | None = None,
) -> RunPage:
    """Return a page of the runs that match a filter, in the given order.

    Raises:
        Refusal: InvalidQuery (an unknown order), InvalidPageToken.
    """
    page_request = PageRequest(
        size=max(1, min(size, paging.MOST)),
        token=token,
        question=describe_list(filter, order_by),
    )
    back = PageRequest(question=describe_list(filter, reverse_order(order_by)))

    def decode_page(items: list[bytes], next_page: str | None, first: AnyRow | None) -> RunPage:
        return RunPage(
            items=[decode_run(item) for item in items],
            next_page=next_page,
            way_back=_sign_position(services, org, first, back) if first and token else None,
        )

    read = _build_read(services, org, filter, order_by, page_request, decode_page)
    return await services.store.read_in_thread(lambda tx: read(tx, False))


async def read_page(
    services: Services,
    *,
    org: str,
    filter: RunFilter,
    order_by: str = DEFAULT_ORDER,
    page_request: PageRequest,
) -> bytes:
    """Return what ``list_runs`` returns as JSON, from the stored documents."""

    def join_page(items: list[bytes], next_page: str | None, _: AnyRow | None) -> bytes:
        return paging.join(items, next_page)

    read = _build_read(services, org, filter, order_by, page_request, join_page)
    if filter == RunFilter() and order_by.endswith("created"):
        return await paging.run(services, page_request, read, org=org)
    return await services.store.read_in_thread(lambda tx: read(tx, False))


async def read_best_values(
    services: Services, *, org: str, metrics: Mapping[str, str]
) -> dict[str, float]:
    """Return the best value of one metric of each run; ``metrics`` has the metric by run id."""
    if not metrics:
        return {}
    found = await services.store.read_in_thread(
        lambda tx: run_metrics.read_values(
            tx, org=org, run_ids=list(metrics), keys=set(metrics.values())
        )
    )
    return {run_id: value for run_id, key, value in found if metrics[run_id] == key}


def _build_read(
    services: Services,
    org: str,
    filter: RunFilter,
    order_by: str,
    page_request: PageRequest,
    build_page: Callable[[list[bytes], str | None, AnyRow | None], T],
) -> Callable[[Connection, bool], T]:
    """Return the function that reads a page, with whether it is short as its second argument.

    It returns what ``build_page`` makes of documents, token of the next page, and first row.
    """
    order = parse_order(order_by)
    after = _parse_position(services, org, order, page_request)

    def read_documents(tx: Connection, is_short: bool) -> T:
        first: list[AnyRow] = []

        def fetch(position: tuple[Any, int] | None, limit: int) -> Sequence[AnyRow]:
            found = _fetch(tx, services.clock.now_ms(), org, filter, order, position, limit)
            first.extend(found[: 1 - len(first)])
            return found

        items, last, has_more = paging.gather(
            fetch,
            after=after,
            size=page_request.size,
            most_bytes=page_request.most_bytes,
            encode=paging.encode_stored,
            get_position=_get_position,
            is_short=is_short,
        )
        next_page = _sign_position(services, org, last, page_request) if has_more else None
        return build_page(items, next_page, first[0] if first else None)

    return read_documents


def iter_newest(tx: Connection, org: str, filter: RunFilter, *, size: int) -> Iterator[AnyRow]:
    """Yield the rows of every matching run, newest first, in pages of ``size``."""
    after = None
    while rows := _fetch(tx, 0, org, filter, run_query.NEWEST_FIRST, after, size):
        yield from rows
        after = _get_position(rows[-1])


async def count_runs(services: Services, *, org: str, filter: RunFilter) -> RunCount:
    """Count the runs that match a filter, in total and by condition.

    With other terms than conditions counting stops at a limit, see ``more``.
    """
    counts, more = await services.store.read_in_thread(
        lambda tx: run_query.count(tx, org=org, filter=filter, now_ms=services.clock.now_ms())
    )
    conditions = {kind.value: counts.get(kind.value, 0) for kind in REASONS}
    return RunCount(total=sum(counts.values()), conditions=conditions, more=more)


async def index_texts(services: Services) -> None:
    """Add the texts of new runs to the search index, once there are many."""
    waiting = services.store.read(lambda tx: run_list.count_unindexed(tx, limit=MOST_UNINDEXED))
    is_left = waiting >= MOST_UNINDEXED
    while is_left:
        is_left = await services.store.write(
            lambda tx: run_list.index_texts(tx, limit=INDEXED_AT_ONCE)
        )
        await asyncio.sleep(0)


def _fetch(
    tx: Connection,
    now_ms: int,
    org: str,
    filter: RunFilter,
    order: RunOrder,
    after: tuple[Any, int] | None,
    limit: int,
) -> Sequence[AnyRow]:
    return run_query.read_page(
        tx, org=org, filter=filter, order=order, after=after, limit=limit, now_ms=now_ms
    )


def _get_position(row: AnyRow) -> tuple[Any, int]:
    return row.sort_value, row.number


def _sign_position(services: Services, org: str, last: AnyRow, page_request: PageRequest) -> str:
    position = Position(last.number, str(last.sort_value))
    return paging.page_token(services, position, org=org, page_request=page_request)


def _parse_position(
    services: Services, org: str, order: RunOrder, page_request: PageRequest
) -> tuple[Any, int] | None:
    found = paging.parse_position(services, org=org, page_request=page_request)
    if found is None:
        return None
    number, value = found
    return _SORT_VALUES[order.field](value), number


_SORT_VALUES: dict[OrderField, Any] = {
    "created": int,
    "duration": int,
    "metric": float,
    "name": str,
}
