"""Log lines of a run, page by page."""

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec
from sqlalchemy import Connection

from runyard.server.services import paging
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs.runs import decode_run
from runyard.server.services.runs.runs import get as get_run
from runyard.store.tables import AnyRow
from runyard.store.telemetry import logs as rows
from vi.api.resources.runs.responses import LogLine

LONGEST_WAIT_S = 30.0
MOST = 1000


class LogPage(msgspec.Struct):
    """A page of log lines.

    ``next`` is the number to continue from; ``ended`` says that it is the last.
    """

    items: list[LogLine]
    next: int
    ended: bool


async def read_log_page(
    services: Services,
    *,
    org: str,
    run_id: str,
    since: int,
    until: int | None = None,
    stream: str | None = None,
    limit: int = MOST,
    wait_s: float = 0.0,
    gone: "asyncio.Future[None] | None" = None,
) -> bytes:
    """Return a ``LogPage`` as JSON: lines numbered above ``since``.

    With ``wait_s``, wait for one unless the run has ended. ``gone`` is done when the client has
    disconnected; then nothing is waited for.

    Raises:
        Refusal: NotFound.
    """

    def fetch(tx: Connection, after: int, limit: int) -> Sequence[AnyRow]:
        return rows.log_page(
            tx, org=org, run_id=run_id, since=after, until=until, stream=stream, limit=limit
        )

    def read_lines(tx: Connection, ended: bool) -> tuple[bool, bytes]:
        items, last, has_more = paging.gather(
            partial(fetch, tx),
            after=since,
            size=limit,
            encode=_encode_line,
            get_position=_get_number,
        )
        page = LogPage(
            items=[msgspec.Raw(item) for item in items],  # type: ignore[misc]
            next=last.number if last else since,
            ended=ended and not has_more,
        )
        return bool(items), msgspec.json.encode(page)

    clock = services.clock
    deadline = clock.monotonic_s() + min(wait_s, LONGEST_WAIT_S)
    while True:
        event = services.notifier.watch(run_topic(org, run_id))
        # State before lines: if the run ends in between, the loop repeats and misses no line.
        ended = _has_ended(services, org, run_id)
        has_lines, page = await services.store.read_in_thread(partial(read_lines, ended=ended))
        remaining_s = deadline - clock.monotonic_s()
        if (
            has_lines
            or ended
            or remaining_s <= 0
            or services.notifier.is_closed
            or (gone is not None and gone.done())
        ):
            return page
        await services.notifier.wait(event, timeout_s=remaining_s, gone=gone)


def _get_number(row: AnyRow) -> int:
    return int(row.number)


def _encode_line(row: AnyRow) -> bytes:
    line = LogLine(
        number=row.number, time=row.time, attempt=row.attempt, stream=row.stream, text=row.text
    )
    return msgspec.json.encode(line)


def _has_ended(services: Services, org: str, run_id: str) -> bool:
    run = decode_run(get_run(services, org=org, run_id=run_id)[0])
    return run.condition is not None and run.condition.is_final
