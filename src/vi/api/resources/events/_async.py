"""``client.events``: what happens in the organization, each change once and in order.

The server numbers events in the order in which it commits them. A reader continues after the last
number that it has processed, so neither a lost connection nor a restart of the server or of the
reader loses or repeats one.
"""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Literal

from vi._http._async import AsyncHttp
from vi._http.requests import QueryValue
from vi._http.retry import NO_RETRY
from vi.api._arguments import check_event_number, check_id, check_seconds
from vi.api._availability._async import retry_while_unavailable
from vi.api.resources.events.responses import Event, EventPage
from vi.errors import PaginationError

_PAUSE_S = 0.1
_LONG_POLL_S = 15
RESET = "reset"
LATEST = "latest"


class AsyncEvents:
    """Events of the organization."""

    def __init__(
        self, http: AsyncHttp, organization_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._path = f"/workspaces/{organization_id}/events"
        self._clock = clock

    async def list(
        self,
        after: int | Literal["latest"] | None = None,
        *,
        run_id: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
        wait: float | None = None,
    ) -> EventPage:
        """Return events in order, up to 1,000.

        Args:
            after: Number of the last event to skip; None begins with the oldest that is kept.
                ``"latest"`` skips all, so that ``next`` of the page is where what follows begins.
            run_id: Return events of this run only.
            kind: Return events of this kind only, such as ``"run"`` or ``"dataset"``.
            limit: Maximum number of events.
            wait: Seconds to wait for an event if there is none, at most 30.

        Raises:
            ViInvalidParameterError: An argument is malformed.
        """
        check_seconds(wait, name="wait")
        params: dict[str, QueryValue] = {
            "after": _check_after(after),
            "run": None if run_id is None else check_id(run_id, name="run_id"),
            "kind": kind,
            "limit": limit,
            "wait": wait,
        }
        return await self._http.call(
            "GET", self._path, params=params, decode_as=EventPage, retry=NO_RETRY if wait else None
        )

    async def iterate(
        self,
        after: int | Literal["latest"] | None = None,
        *,
        run_id: str | None = None,
        kind: str | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Event]:
        """Iterate over events in order, up to the newest, or without end.

        With ``follow`` a server that is unavailable for up to two minutes is waited for. If events
        after the last one are lost, because they are older than 30 days or a backup was restored,
        an event whose ``what`` is ``"reset"`` says so: read again what you follow.

        Args:
            after: Number of the last event to skip; None begins with the oldest that is kept,
                ``"latest"`` with those that are still to come.
            run_id: Yield events of this run only.
            kind: Yield events of this kind only.
            follow: Keep yielding new events, without end.

        Raises:
            ViInvalidParameterError: An argument is malformed.
        """
        while True:
            page = await self._read_page(
                after, run_id, kind, wait=_LONG_POLL_S if follow and after != LATEST else None
            )
            if page.reset:
                yield Event(number=page.next, what=RESET)
            elif isinstance(after, int):
                check_page(page, after=after)
            for event in page.items:
                yield event
            if not page.items and not page.reset:
                if not follow:
                    return
                await self._http.sleep(_PAUSE_S)  # for servers that ignore the long poll
            after = page.next

    async def _read_page(
        self,
        after: int | Literal["latest"] | None,
        run_id: str | None,
        kind: str | None,
        *,
        wait: float | None,
    ) -> EventPage:
        request = partial(self.list, after, run_id=run_id, kind=kind, wait=wait)
        return await retry_while_unavailable(self._http, request, clock=self._clock)


def _check_after(after: object) -> str | int | None:
    return LATEST if after == LATEST else check_event_number(after, name="after")


def check_page(page: EventPage, *, after: int) -> EventPage:
    """Check that a page continues after a number, and that its events are in order.

    Raises:
        PaginationError: It does not.
    """
    numbers = [event.number for event in page.items]
    is_in_order = all(a < b for a, b in zip([after, *numbers], numbers, strict=False))
    if page.reset or (is_in_order and page.next >= max((after, *numbers))):
        return page
    raise PaginationError(
        f"the server returned the events {numbers[:3]} and {page.next} as the next number after "
        f"{after}, expected: larger numbers in order"
    )
