# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.runs.watch``: the state of runs whenever it changes, without loss or repetition."""

from collections.abc import Callable, Iterator
from functools import partial

from vi._http._sync import Http
from vi._http.retry import NO_RETRY
from vi.api._availability._sync import retry_while_unavailable
from vi.api._pages._sync import fetch_page
from vi.api._pages.page import Page
from vi.api.resources.events._sync import Events, check_page
from vi.api.resources.events.responses import EventPage
from vi.api.resources.runs._outcome import is_finished
from vi.api.resources.runs.responses import Run, RunChange
from vi.api.types import PaginationParams
from vi.errors import ViNotFoundError

_LONG_POLL_S = 15
_PAUSE_S = 0.1


class RunWatch:
    """Watch of one run, or of those that a filter matches."""

    def __init__(self, http: Http, organization_id: str, *, clock: Callable[[], float]) -> None:
        self._http, self._clock = http, clock
        self._runs = f"/workspaces/{organization_id}/runs"
        self._events = Events(http, organization_id, clock=clock)

    def watch_one(self, run_id: str, after: int | None) -> Iterator[RunChange]:
        """Yield the changes of a run until it has ended or is deleted."""
        number = self._get_newest_number() if after is None else after
        run: Run | None
        if after is None:
            run = self._get_run(run_id)
            yield RunChange(run=run, number=number)
        else:
            run = self._find_run(run_id)
        while True:
            is_over = run is None or is_finished(run)
            page = self._read_page(number, run_id, wait=not is_over)
            if page.items or page.reset:
                run = self._find_run(run_id)
            yield from _to_changes(page, run)
            number = page.next
            if is_over and not page.items:
                return

    def watch_all(self, filter: str | None, after: int | None) -> Iterator[RunChange]:
        """Yield the changes of the runs that a filter matches, without end."""
        number = self._get_newest_number() if after is None else after
        matching = set[str]() if filter is None else self._list_matching(filter)
        while True:
            page = self._read_page(number, None, wait=True)
            if page.reset:
                yield RunChange(number=page.next, is_reset=True)
            runs: dict[str, Run | None] = {}
            for event in page.items:
                run_id = event.target
                if run_id not in runs:
                    runs[run_id] = self._find_matching(run_id, filter)
                run = runs[run_id]
                if run is not None:
                    matching.add(run_id)
                if run_id in matching or filter is None:
                    yield RunChange(run=run, event=event, number=event.number)
            if not page.items and not page.reset:
                self._http.sleep(_PAUSE_S)  # for servers that ignore the long poll
            matching -= {run_id for run_id, run in runs.items() if run is None}
            number = page.next

    def _list_matching(self, filter: str) -> set[str]:
        request = partial(
            fetch_page,
            self._http,
            self._runs,
            item=Run,
            pagination=PaginationParams(page_size=1000),
            filters=[("filter", filter)],
        )
        page = retry_while_unavailable(self._http, request, clock=self._clock)
        return {run.run_id for run in page.all_items()}

    def _get_newest_number(self) -> int:
        request = partial(self._events.list, "latest")
        return (retry_while_unavailable(self._http, request, clock=self._clock)).next

    def _read_page(self, after: int, run_id: str | None, *, wait: bool) -> EventPage:
        request = partial(
            self._events.list,
            after,
            run_id=run_id,
            kind="run",
            wait=_LONG_POLL_S if wait else None,
        )
        page = retry_while_unavailable(self._http, request, clock=self._clock)
        return check_page(page, after=after)

    def _get_run(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            ViNotFoundError: It does not exist.
        """
        path = f"{self._runs}/{run_id}"
        return retry_while_unavailable(
            self._http,
            lambda: self._http.call("GET", path, decode_as=Run, retry=NO_RETRY),
            clock=self._clock,
        )

    def _find_run(self, run_id: str) -> Run | None:
        """Return a run; None if it does not exist any more."""
        try:
            return self._get_run(run_id)
        except ViNotFoundError:
            return None

    def _find_matching(self, run_id: str, filter: str | None) -> Run | None:
        """Return a run if it exists and the filter matches it."""
        if filter is None:
            return self._find_run(run_id)
        request = partial(
            self._http.call,
            "GET",
            self._runs,
            params={"filter": f"{filter} id:{run_id}"},
            decode_as=Page[Run],
            retry=NO_RETRY,
        )
        page = retry_while_unavailable(self._http, request, clock=self._clock)
        return next((run for run in page.items if run.run_id == run_id), None)


def _to_changes(page: EventPage, run: Run | None) -> list[RunChange]:
    if page.reset:
        return [RunChange(run=run, number=page.next, is_reset=True)]
    return [RunChange(run=run, event=event, number=event.number) for event in page.items]
