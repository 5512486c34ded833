"""Lists and counts of runs: filtered, sorted, page by page."""

from collections import Counter
from dataclasses import dataclass

from runyard.server.services import paging
from runyard.server.services.context import Services
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs.runs import decode_run
from runyard.store import runs as rows
from runyard.store.lists.run_filter import RunFilter
from vi.api.resources.runs.responses import Run


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page of runs; ``next_page`` is the token of the next one, None on the last."""

    items: list[Run]
    next_page: str | None


@dataclass(frozen=True, kw_only=True)
class RunCount:
    """How many runs match, in total and by condition. ``more``: counting stopped at a limit."""

    total: int
    conditions: dict[str, int]
    more: bool = False


async def list_runs(
    services: Services,
    *,
    org: str,
    filter: RunFilter,
    order_by: str = "-created",
    size: int = paging.DEFAULT_SIZE,
    token: str | None = None,
) -> RunPage:
    """Return a page of the runs that match a filter, in the given order.

    Raises:
        Refusal: InvalidQuery (an unknown order), InvalidPageToken.
    """
    page_request = PageRequest(size=size, token=token, question=f"runs {filter} {order_by}")
    after = paging.parse_position(services, org=org, page_request=page_request)
    found = await services.store.read_in_thread(
        lambda tx: rows.page(tx, org=org, filter=filter, after=after, limit=size + 1)
    )
    further = (
        paging.page_token(
            services, paging.position_by_time(found[size - 1]), org=org, page_request=page_request
        )
        if len(found) > size
        else None
    )
    return RunPage(items=[decode_run(row.document) for row in found[:size]], next_page=further)


async def count_runs(services: Services, *, org: str, filter: RunFilter) -> RunCount:
    """Count the runs that match a filter."""
    found = await services.store.read_in_thread(
        lambda tx: rows.page(tx, org=org, filter=filter, after=None, limit=10_000)
    )
    counts = Counter(str(decode_run(row.document).condition) for row in found)
    return RunCount(total=len(found), conditions=dict(counts))
