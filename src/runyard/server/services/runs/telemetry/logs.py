"""Log lines of a run: pages in both directions, filters and search, and the log as a file.

A page is read in parts of some milliseconds, each on a reader's thread, so that a long search does
not keep other reads waiting. After ``BUDGET_S`` the response says how far the search has come
(``searchedTo``), and the client continues there.
"""

import asyncio
import functools
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs.runs import decode_run
from runyard.server.services.runs.runs import get as get_run
from runyard.server.services.runs.telemetry.levels import LEVELS, derive_level
from runyard.server.services.runs.telemetry.log_index import BlockFilter, order_ranges
from runyard.server.services.runs.telemetry.log_search import SLICE_BYTES, Search
from runyard.store.tables import AnyRow
from runyard.store.telemetry import logs as rows
from runyard.store.telemetry.log_blocks import LINES
from runyard.store.telemetry.logs import LineFilter
from vi.api.resources.runs.responses import LogLine

LONGEST_WAIT_S = 30.0
MOST = 1000
BUDGET_S = 0.4  # of one request that searches
PART_S = 0.05  # of one turn on a reader's thread
PART_LINES = 256 * LINES  # whose summaries are read at once
RANGE_LINES = 8 * LINES  # that one query looks at
FETCHED_LINES = 1000  # that one query returns
FILE_LINES = 4000  # of one part of the log as a file


class LogPage(msgspec.Struct, rename="camel"):
    """A page of log lines, oldest first.

    ``next`` is the number to continue from with ``since``, ``previous`` the one to pass as
    ``before`` for the page above, null at the top. ``ended`` says that no line will follow.
    ``hasMore``: further lines match, or have not been searched, in the direction of the request.
    ``searchedTo`` is the last number that a request with filters has come to. ``last`` is the
    number of the newest line.
    """

    items: list[LogLine]
    next: int
    ended: bool
    previous: int | None = None
    has_more: bool = False
    searched_to: int | None = None
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class LogQuery:
    """What a page shall have.

    With ``tail`` or ``before`` it is read backward, from the newest line that is meant; otherwise
    forward. Times are epoch milliseconds, both inclusive; ``level`` is the least one.
    """

    since: int | None = None
    until: int | None = None
    before: int | None = None
    tail: int | None = None
    limit: int = MOST
    stream: str | None = None
    attempt: int | None = None
    search: Search | None = None
    level: int | None = None
    time_from: int | None = None
    time_to: int | None = None

    @property
    def is_backward(self) -> bool:
        return self.tail is not None or self.before is not None

    @property
    def is_filtered(self) -> bool:
        chosen = (self.stream, self.attempt, self.search, self.time_from, self.time_to)
        return bool(self.level) or any(value is not None for value in chosen)

    @property
    def size(self) -> int:
        return self.limit if self.tail is None else min(self.limit, self.tail)

    @property
    def line_filter(self) -> LineFilter:
        return LineFilter(
            stream=self.stream,
            attempt=self.attempt,
            time_from=self.time_from,
            time_to=self.time_to,
            literals=() if self.search is None else self.search.literals,
        )

    @property
    def block_filter(self) -> BlockFilter:
        return BlockFilter(
            time_from=self.time_from, time_to=self.time_to, level=self.level, search=self.search
        )


async def read_log_page(
    services: Services,
    *,
    org: str,
    run_id: str,
    query: LogQuery,
    wait_s: float = 0.0,
    gone: "asyncio.Future[None] | None" = None,
) -> bytes:
    """Return a ``LogPage`` as JSON.

    With ``wait_s``, wait for a line after ``since`` unless the run has ended. ``gone`` is done when
    the client has disconnected; then nothing is waited for.

    Raises:
        Refusal: NotFound.
    """
    clock = services.clock
    deadline = clock.monotonic_s() + min(wait_s, LONGEST_WAIT_S)
    while True:
        event = services.notifier.watch(run_topic(org, run_id))
        # State before lines: if the run ends in between, the loop repeats and misses no line.
        has_ended = _has_ended(services, org, run_id)
        page = await _read_page(services, org, run_id, query)
        page.ended = has_ended and not page.has_more
        remaining_s = deadline - clock.monotonic_s()
        if (
            page.items
            or page.has_more
            or has_ended
            or query.is_backward
            or remaining_s <= 0
            or services.notifier.is_closed
            or (gone is not None and gone.done())
        ):
            return msgspec.json.encode(page)
        query = replace(query, since=page.next)  # what was searched is not searched again
        await services.notifier.wait(event, timeout_s=remaining_s, gone=gone)


async def _read_page(services: Services, org: str, run_id: str, query: LogQuery) -> LogPage:
    clock = services.clock
    reader = _PageReader(query, org=org, run_id=run_id, now_s=clock.monotonic_s)
    deadline = clock.monotonic_s() + BUDGET_S
    while not await services.store.read_in_thread(reader.read_part):
        if clock.monotonic_s() >= deadline:
            break
    return reader.build_page()


class _PageReader:
    """A page while it is read: lines from one end of a range of numbers toward the other."""

    def __init__(
        self, query: LogQuery, *, org: str, run_id: str, now_s: Callable[[], float]
    ) -> None:
        self._query, self._org, self._run_id, self._now_s = query, org, run_id, now_s
        self._line_filter, self._block_filter = query.line_filter, query.block_filter
        self._is_for_blocks = query.search is not None and query.search.is_for_blocks
        self._items: list[bytes] = []
        self._size_bytes = 0
        self._last_item = 0  # number of the last line taken
        self._is_full = False  # a further line matches
        self._parts: deque[tuple[int, int]] = deque()  # ranges to read next
        self._bounds: tuple[int, int] | None = None  # numbers of the log's first and last line
        self._above = self._up_to = 0  # the range that is not read yet

    def read_part(self, tx: Connection) -> bool:
        """Read on for about ``PART_S``; return whether the page is complete."""
        until_s = self._now_s() + PART_S
        if self._bounds is None:
            self._begin(tx)
        while not self._is_complete:
            # Each turn makes progress, however little time there is.
            if self._parts or self._find_parts(tx):
                self._read_range(tx, *self._parts.popleft(), until_s=until_s)
            if self._now_s() >= until_s:
                break
        return self._is_complete

    def build_page(self) -> LogPage:
        """Return the page of what has been read."""
        query, (first, last) = self._query, self._bounds or (0, 0)
        has_more = self._is_full or self._above < self._up_to
        items: list[Any] = [msgspec.Raw(item) for item in self._items]
        page = LogPage(items=items, next=0, ended=False, has_more=has_more, last=last)
        if query.is_backward:
            page.items.reverse()
            page.next = self._newest
            position = self._last_item if self._is_full else self._up_to + 1
            page.previous = position if has_more else None
        else:
            position = page.next = self._last_item if self._is_full else self._above
            since = min(query.since or 0, last)
            page.previous = since + 1 if first and since >= first else None
        page.searched_to = position if query.is_filtered else None
        return page

    @property
    def _is_complete(self) -> bool:
        return self._is_full or self._above >= self._up_to

    def _begin(self, tx: Connection) -> None:
        query = self._query
        self._bounds = first, last = rows.get_bounds(tx, org=self._org, run_id=self._run_id)
        ends = (last, query.until, None if query.before is None else query.before - 1)
        self._up_to = min(end for end in ends if end is not None)
        since = query.since or 0
        # No line has a number below that of the first; ``next`` is still never below ``since``.
        self._above = max(since, min(first - 1, self._up_to)) if first else since
        self._newest = max(self._up_to, since)

    def _find_parts(self, tx: Connection) -> bool:
        """Find the ranges to read next, or skip lines that need not be read.

        Return whether there are ranges; without filters that is all of the lines.
        """
        above, up_to = self._above, self._up_to
        if not self._query.is_filtered:
            self._parts.append((above, up_to))
            return True
        if self._query.is_backward:
            above = max(above, up_to - PART_LINES)
        else:
            up_to = min(up_to, above + PART_LINES)
        found = self._block_filter.list_candidates(
            tx, org=self._org, run_id=self._run_id, above=above, up_to=up_to
        )
        most_lines = LINES if self._is_for_blocks else RANGE_LINES
        parts = order_ranges(found, most_lines=most_lines, newest_first=self._query.is_backward)
        self._parts.extend(parts)
        if not parts:
            self._advance(above, up_to)
        return bool(parts)

    def _read_range(self, tx: Connection, above: int, up_to: int, *, until_s: float) -> None:
        """Read lines of a range; put back what is left of it when time or rows run out."""
        query = self._query
        if self._is_for_blocks and not self._may_match(tx, above, up_to):
            self._advance(above, up_to)
            return
        limit = FETCHED_LINES
        if not query.is_filtered:
            limit = min(limit, query.size + 1 - len(self._items))
        found = rows.list_lines(
            tx,
            org=self._org,
            run_id=self._run_id,
            above=above,
            up_to=up_to,
            filter=self._line_filter,
            newest_first=query.is_backward,
            limit=limit,
        )
        for some in _slice_rows(found):
            if not self._take(some):
                return
            if self._now_s() >= until_s and some[-1] is not found[-1]:
                self._put_back(above, up_to, some[-1].number)
                return
        if len(found) == limit:
            self._put_back(above, up_to, found[-1].number)
        else:
            self._advance(above, up_to)

    def _may_match(self, tx: Connection, above: int, up_to: int) -> bool:
        lines = rows.join_texts(tx, org=self._org, run_id=self._run_id, above=above, up_to=up_to)
        return self._query.search is None or self._query.search.may_match(lines)

    def _take(self, some: Sequence[AnyRow]) -> bool:
        """Take those of these lines that match; return whether the page has space for more."""
        search, level = self._query.search, self._query.level
        matches = None if search is None else search.match([row.text for row in some])
        for index, row in enumerate(some):
            if matches is not None and not matches[index]:
                continue
            derived = derive_level(row.stream, row.text)
            if level is not None and derived < level:
                continue
            item = _encode_line(row, derived)
            is_long = self._items and self._size_bytes + len(item) > limits.PAGE.value
            if len(self._items) == self._query.size or is_long:
                self._is_full = True
                return False
            self._items.append(item)
            self._size_bytes += len(item)
            self._last_item = row.number
        return True

    def _put_back(self, above: int, up_to: int, number: int) -> None:
        """Continue a range after the line ``number``."""
        if self._query.is_backward:
            self._advance(number - 1, up_to)
            rest = (above, number - 1)
        else:
            self._advance(above, number)
            rest = (number, up_to)
        if rest[0] < rest[1]:
            self._parts.appendleft(rest)

    def _advance(self, above: int, up_to: int) -> None:
        """Count a range, and what was skipped before it, as read."""
        if self._query.is_backward:
            self._up_to = above
        else:
            self._above = up_to


def _slice_rows(found: Sequence[AnyRow]) -> list[Sequence[AnyRow]]:
    """Cut rows into slices of about ``SLICE_BYTES``, between which a reader looks at the clock."""
    slices: list[Sequence[AnyRow]] = []
    start = size = 0
    for index, row in enumerate(found):
        size += len(row.text)
        if size >= SLICE_BYTES:
            slices.append(found[start : index + 1])
            start, size = index + 1, 0
    return [*slices, found[start:]] if start < len(found) else slices


def _encode_line(row: AnyRow, level: int) -> bytes:
    line = LogLine(
        number=row.number,
        time=row.time,
        attempt=row.attempt,
        stream=row.stream,
        text=row.text,
        level=LEVELS[level],
    )
    return msgspec.json.encode(line)


def _has_ended(services: Services, org: str, run_id: str) -> bool:
    run = decode_run(get_run(services, org=org, run_id=run_id)[0])
    return run.condition is not None and run.condition.is_final


async def iterate_log_file(
    services: Services, *, org: str, run_id: str, is_compressed: bool
) -> AsyncIterator[bytes]:
    """Yield the log as text, one line each: time, stream, text; compressed by gzip if asked for.

    Raises:
        Refusal: NotFound, before the first part.
    """
    _has_ended(services, org, run_id)
    return _iterate_parts(services, org, run_id, is_compressed=is_compressed)


async def _iterate_parts(
    services: Services, org: str, run_id: str, *, is_compressed: bool
) -> AsyncIterator[bytes]:
    compressor = zlib.compressobj(1, wbits=31) if is_compressed else None  # fast; gzip
    position, last = 0, None

    def read_part(tx: Connection, above: int, up_to: int | None) -> tuple[bytes, int, int]:
        if up_to is None:
            up_to = rows.get_bounds(tx, org=org, run_id=run_id)[1]
        found = rows.list_lines(
            tx,
            org=org,
            run_id=run_id,
            above=above,
            up_to=up_to,
            filter=LineFilter(),
            newest_first=False,
            limit=FILE_LINES,
        )
        text = "".join(map(_format_line, found)).encode()
        data = text if compressor is None else compressor.compress(text)
        return data, found[-1].number if found else up_to, up_to

    while last is None or position < last:
        data, position, last = await services.store.read_in_thread(
            functools.partial(read_part, above=position, up_to=last)
        )
        if data:
            yield data
    if compressor is not None:
        yield compressor.flush()


def _format_line(row: AnyRow) -> str:
    second = _format_second(row.time // 1000)
    return f"{second}.{row.time % 1000:03d}Z {row.stream:<6} {row.text}\n"


@functools.lru_cache(maxsize=64)
def _format_second(epoch_s: int) -> str:
    """Return a second of UTC; the same for many lines in a row."""
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%dT%H:%M:%S}"
