"""Routes of sample predictions: pages of samples, and their images."""

import re

from runyard.server.http.request import (
    HEADERS,
    Id,
    Query,
    Request,
    get_services,
    invalid_query,
)
from runyard.server.http.responses import Response, json_response
from runyard.server.services.datasets.thumbnails import SIZES
from runyard.server.services.errors import not_found
from runyard.server.services.runs.telemetry import samples
from runyard.server.services.runs.telemetry.samples import LATEST, ORDERS, SampleQuery

# Of a run's sample: neither the held-out data of a run nor an image of a version ever changes.
IMMUTABLE = b"private, max-age=31536000, immutable"


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
    if request.scope[HEADERS].get(b"if-none-match") == etag:  # type: ignore[literal-required]
        return Response(status=304, headers=headers)
    return Response(image.data, media_type=image.mime.encode(), headers=headers)


def _parse_evaluation(query: Query) -> int | None:
    given = query.text("evaluation")
    if given in (None, LATEST):
        return None
    if not re.fullmatch(r"[0-9]{1,16}", given or ""):
        raise invalid_query("evaluation", given or "", "a step, or latest")
    return int(given or 0)
