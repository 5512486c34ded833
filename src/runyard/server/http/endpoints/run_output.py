"""Routes of what a run's trainer has printed and predicted: its log, and sample predictions."""

import re

from runyard.server.http.capacity import hold_wait_slot
from runyard.server.http.request import (
    HEADERS,
    Id,
    Query,
    Request,
    get_services,
    invalid_query,
)
from runyard.server.http.responses import ACCEPTS_GZIP, ChunkedResponse, Response, json_response
from runyard.server.services.datasets.thumbnails import SIZES
from runyard.server.services.errors import not_found
from runyard.server.services.runs.telemetry import logs, samples
from runyard.server.services.runs.telemetry.levels import LEVELS
from runyard.server.services.runs.telemetry.log_search import Search, parse_search
from runyard.server.services.runs.telemetry.logs import MOST, LogQuery
from runyard.server.services.runs.telemetry.samples import LATEST, ORDERS, SampleQuery

STREAMS = ("events", "stdout", "stderr")
BOOLEANS = ("true", "false")
LOG_QUERY = (
    *("since", "until", "before", "tail", "limit", "wait", "block", "attempt"),
    *("search", "regex", "case", "level", "after", "to"),
)

# Of a run's sample: neither the held-out data of a run nor an image of a version ever changes.
IMMUTABLE = b"private, max-age=31536000, immutable"


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
    given: dict[bytes, bytes] = request.scope[HEADERS]
    is_compressed = ACCEPTS_GZIP.search(given.get(b"accept-encoding", b"")) is not None
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


async def list_samples(request: Request, org: Id, run_id: Id) -> Response:
    query = Query(request)
    sample_query = SampleQuery(
        step=_parse_evaluation(query),
        index=query.integer("index"),
        order="index" if query.one_of("orderBy", ORDERS) == "index" else "score",
    )
    page = await samples.read_sample_page(
        get_services(request),
        org=org,
        run_id=run_id,
        query=sample_query,
        page_request=query.page(f"samples {run_id} {sample_query}"),
    )
    return json_response(page)


async def get_sample_image(request: Request, org: Id, run_id: Id, index: str) -> Response:
    if not re.fullmatch(r"[0-9]{1,9}", index):
        raise not_found("sample", index[:80])
    given = Query(request).one_of("size", tuple(map(str, SIZES)))
    image = await samples.read_image(
        get_services(request),
        org=org,
        run_id=run_id,
        index=int(index),
        size=None if given is None else int(given),
    )
    etag = f'"{image.tag}"'.encode()
    headers = [(b"etag", etag), (b"cache-control", IMMUTABLE)]
    if request.scope[HEADERS].get(b"if-none-match") == etag:
        return Response(status=304, headers=headers)
    return Response(image.data, media_type=image.mime.encode(), headers=headers)


def _parse_search(query: Query) -> Search | None:
    pattern = query.text("search")
    if pattern is None:
        return None
    return parse_search(
        pattern,
        is_regex=query.one_of("regex", BOOLEANS) == "true",
        is_case_sensitive=query.one_of("case", BOOLEANS) == "true",
    )


def _parse_evaluation(query: Query) -> int | None:
    given = query.text("evaluation")
    if given in (None, LATEST):
        return None
    if not re.fullmatch(r"[0-9]{1,16}", given or ""):
        raise invalid_query("evaluation", given or "", "a step, or latest")
    return int(given or 0)
