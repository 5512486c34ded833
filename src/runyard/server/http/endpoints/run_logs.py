"""Routes of a run's log: pages of lines, and the whole log as a file."""

from runyard.server.http.capacity import hold_wait_slot
from runyard.server.http.request import HEADERS, Id, Query, Request, get_services
from runyard.server.http.responses import ChunkedResponse, Response, json_response
from runyard.server.services.runs.telemetry import logs
from runyard.server.services.runs.telemetry.levels import LEVELS
from runyard.server.services.runs.telemetry.log_search import Search, parse_search
from runyard.server.services.runs.telemetry.logs import MOST, LogQuery

STREAMS = ("events", "stdout", "stderr")
BOOLEANS = ("true", "false")
LOG_QUERY = (
    *("since", "until", "before", "tail", "limit", "wait", "block", "attempt"),
    *("search", "regex", "case", "level", "after", "to"),
)


async def get_logs(request: Request, org: Id, run_id: Id) -> Response:
    query = Query(request)
    wait_s = query.seconds("wait")
    level = query.one_of("level", LEVELS)
    log_query = LogQuery(
        since=query.integer("since"),
        until=query.integer("until"),
        before=query.integer("before"),
        tail=query.integer("tail", minimum=1),
        limit=query.integer("limit", MOST, minimum=1, maximum=MOST) or MOST,
        stream=query.one_of("block", STREAMS),
        attempt=query.integer("attempt", maximum=2**31 - 1),
        search=_parse_search(query),
        level=None if level is None else LEVELS.index(level),
        time_from=query.integer("after"),
        time_to=query.integer("to"),
    )
    async with hold_wait_slot(request.scope, wait_s) as disconnect:
        page = await logs.read_log_page(
            get_services(request),
            org=org,
            run_id=run_id,
            query=log_query,
            wait_s=wait_s,
            gone=disconnect,
        )
    return json_response(page)


async def get_log_file(request: Request, org: Id, run_id: Id) -> Response:
    is_compressed = _accepts_gzip(request.scope[HEADERS])  # type: ignore[literal-required]
    parts = await logs.iterate_log_file(
        get_services(request), org=org, run_id=run_id, is_compressed=is_compressed
    )
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-disposition", b'attachment; filename="%b.log"' % run_id.encode()),
        (b"vary", b"accept-encoding"),
    ]
    if is_compressed:
        headers.append((b"content-encoding", b"gzip"))
    return ChunkedResponse(parts, headers=headers)


def _parse_search(query: Query) -> Search | None:
    pattern = query.text("search")
    if pattern is None:
        return None
    return parse_search(
        pattern,
        is_regex=query.one_of("regex", BOOLEANS) == "true",
        is_case_sensitive=query.one_of("case", BOOLEANS) == "true",
    )


def _accepts_gzip(headers: dict[bytes, bytes]) -> bool:
    for given in headers.get(b"accept-encoding", b"").lower().split(b","):
        name, _, parameters = given.partition(b";")
        if name.strip() == b"gzip":
            return parameters.replace(b" ", b"") not in (b"q=0", b"q=0.0")
    return False
