"""The list of runs as a CSV file: all runs that a filter matches, in the order of the list.

Rows are read page by page while they are sent, so the size of the list does not matter. A text that
a spreadsheet would take for a formula gets an apostrophe in front, as spreadsheets write it.
"""

import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

from runyard.server.http.request import Query, Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages.runs.rows import find_dataset
from runyard.server.pages.runs.table import find_problem, read_state
from runyard.server.pages.views import format_iso
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import listing
from vi.api.resources.runs.responses import Run, RunProgress

HEADER = (
    *("id", "name", "condition", "reason", "message", "flow", "dataset", "dataset version"),
    *("step", "total steps", "loss", "metric", "metric name", "seconds", "created", "tags"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
PAGE_SIZE = 500
HEADERS = [
    (b"content-type", b"text/csv; charset=utf-8"),
    (b"content-disposition", b'attachment; filename="runs.csv"'),
]


async def export_runs(request: Request) -> Response:
    """Send the runs that a filter matches."""
    state = read_state(Query(request))
    problem, filter = find_problem(state.q)
    if problem is not None:
        raise Refusal("InvalidFilter", problem.message)
    services, org = get_services(request), get_actor(request).org

    async def iterate_lines() -> AsyncIterator[bytes]:
        yield write_lines([HEADER])
        token = None
        while True:
            page = await listing.list_runs(
                services,
                org=org,
                filter=filter,
                order_by=state.sort or "-created",
                size=PAGE_SIZE,
                token=token,
            )
            now_ms = services.clock.now_ms()
            yield write_lines([list_values(run, now_ms) for run in page.items])
            token = page.next_page
            if token is None:
                return

    return FileResponse(iterate_lines())


class FileResponse(Response):
    """A file whose length is not known before it is sent."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        super().__init__(headers=HEADERS)
        self.headers = list(HEADERS)  # no length
        self.chunks = chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        if scope["method"] != "HEAD":
            async for chunk in self.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def list_values(run: Run, now_ms: int) -> list[object]:
    """Return the cells of a run."""
    latest = run.status.conditions[-1] if run.status.conditions else None
    progress, created = run.status.progress or RunProgress(), run.metadata.time_created
    has_ended = latest is not None and latest.condition.is_final
    ended_ms = latest.last_transition_time if latest and has_ended else now_ms
    attributes = sorted(run.metadata.attributes.items())
    return [
        run.run_id,
        run.name,
        latest.condition.value if latest else "",
        (latest.reason or "") if latest else "",
        (latest.message or "") if latest else "",
        run.spec.flow.name,
        *find_dataset(run),
        progress.step,
        progress.total_steps,
        progress.loss,
        progress.metric,
        progress.metric_name or "",
        round((ended_ms - created) / 1000),
        format_iso(created),
        " ".join(f"{key}={value}" for key, value in attributes),
    ]


def write_lines(rows: Sequence[Sequence[object]]) -> bytes:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows([[escape_formula(value) for value in row] for row in rows])
    return text.getvalue().encode()


def escape_formula(value: object) -> object:
    """Return a text that no spreadsheet runs as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
