"""``client.runs.watch``: the state of runs whenever it changes, without loss or repetition."""

from collections.abc import AsyncIterator, Callable
from functools import partial

from vi._http._async import AsyncHttp
from vi._http.retry import NO_RETRY
from vi.api._availability._async import retry_while_unavailable
from vi.api._pages._async import fetch_page
from vi.api._pages.page import Page
from vi.api.resources.events._async import AsyncEvents, check_page
from vi.api.resources.events.responses import EventPage
from vi.api.resources.runs._outcome import is_finished
from vi.api.resources.runs.responses import Run, RunChange
from vi.api.types import PaginationParams
from vi.errors import ViNotFoundError

_LONG_POLL_S = 15
_PAUSE_S = 0.1


class AsyncRunWatch:
    """Watch of one run, or of those that a filter matches."""

    def __init__(
        self, http: AsyncHttp, organization_id: str, *, clock: Callable[[], float]
    ) -> None:
        self._http, self._clock = http, clock
        self._runs = f"/workspaces/{organization_id}/runs"
        self._events = AsyncEvents(http, organization_id, clock=clock)

    async def watch_one(self, run_id: str, after: int | None) -> AsyncIterator[RunChange]:
        """Yield the changes of a run until it has ended or is deleted."""
        number = await self._get_newest_number() if after is None else after
        run: Run | None
        if after is None:
            run = await self._get_run(run_id)
            yield RunChange(run=run, number=number)
        else:
            run = await self._find_run(run_id)
        while True:
            is_over = run is None or is_finished(run)
            page = await self._read_page(number, run_id, wait=not is_over)
            if page.items or page.reset:
                run = await self._find_run(run_id)
            for change in _to_changes(page, run):
                yield change
            number = page.next
            if is_over and not page.items:
                return

    async def watch_all(self, filter: str | None, after: int | None) -> AsyncIterator[RunChange]:
        """Yield the changes of the runs that a filter matches, without end."""
        number = await self._get_newest_number() if after is None else after
        matching = set[str]() if filter is None else await self._list_matching(filter)
        while True:
            page = await self._read_page(number, None, wait=True)
            if page.reset:
                yield RunChange(number=page.next, is_reset=True)
            runs: dict[str, Run | None] = {}
            for event in page.items:
                run_id = event.target
                if run_id not in runs:
                    runs[run_id] = await self._find_matching(run_id, filter)
                run = runs[run_id]
                if run is not None:
                    matching.add(run_id)
                if run_id in matching or filter is None:
                    yield RunChange(run=run, event=event, number=event.number)
            if not page.items and not page.reset:
                await self._http.sleep(_PAUSE_S)  # for servers that ignore the long poll
            matching -= {run_id for run_id, run in runs.items() if run is None}
            number = page.next

    async def _list_matching(self, filter: str) -> set[str]:
        request = partial(
            fetch_page,
            self._http,
            self._runs,
            item=Run,
            pagination=PaginationParams(page_size=1000),
            filters=[("filter", filter)],
        )
        page = await retry_while_unavailable(self._http, request, clock=self._clock)
        return {run.run_id async for run in page.all_items()}

    async def _get_newest_number(self) -> int:
        request = partial(self._events.list, "latest")
        return (await retry_while_unavailable(self._http, request, clock=self._clock)).next

    async def _read_page(self, after: int, run_id: str | None, *, wait: bool) -> EventPage:
        request = partial(
            self._events.list,
            after,
            run_id=run_id,
            kind="run",
            wait=_LONG_POLL_S if wait else None,
        )
        page = await retry_while_unavailable(self._http, request, clock=self._clock)
        return check_page(page, after=after)

    async def _get_run(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            ViNotFoundError: It does not exist.
        """
        path = f"{self._runs}/{run_id}"
        return await retry_while_unavailable(
            self._http,
            lambda: self._http.call("GET", path, decode_as=Run, retry=NO_RETRY),
            clock=self._clock,
        )

    async def _find_run(self, run_id: str) -> Run | None:
        """Return a run; None if it does not exist any more."""
        try:
            return await self._get_run(run_id)
        except ViNotFoundError:
            return None

    async def _find_matching(self, run_id: str, filter: str | None) -> Run | None:
        """Return a run if it exists and the filter matches it."""
        if filter is None:
            return await self._find_run(run_id)
        request = partial(
            self._http.call,
            "GET",
            self._runs,
            params={"filter": f"{filter} id:{run_id}"},
            decode_as=Page[Run],
            retry=NO_RETRY,
        )
        page = await retry_while_unavailable(self._http, request, clock=self._clock)
        return next((run for run in page.items if run.run_id == run_id), None)


def _to_changes(page: EventPage, run: Run | None) -> list[RunChange]:
    if page.reset:
        return [RunChange(run=run, number=page.next, is_reset=True)]
    return [RunChange(run=run, event=event, number=event.number) for event in page.items]
