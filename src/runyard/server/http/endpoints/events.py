"""The route of events: a page of JSON, or a stream of server-sent events."""

from runyard.server.http.capacity import hold_wait_slot
from runyard.server.http.event_streams import MEDIA_TYPE, EventStream
from runyard.server.http.request import HEADERS, Id, Query, Request, get_services, invalid_query
from runyard.server.http.responses import Response, json_response
from runyard.server.services import event_stream, events
from runyard.server.services.events import EventFilter
from runyard.server.services.validation import check_id

LATEST = "latest"


async def list_events(request: Request, org: Id) -> Response:
    services, query = get_services(request), Query(request)
    run_id = query.text("run")
    filter = EventFilter(
        run_id=None if run_id is None else check_id("run", run_id),
        kind=query.one_of("kind", events.KINDS),
    )
    headers = request.scope[HEADERS]
    is_latest = query.text("after") == LATEST
    after = None if is_latest else query.integer("after")
    if is_stream_requested(headers):
        last = headers.get(b"last-event-id", b"").decode("latin-1")
        if last:
            after, is_latest = parse_number("Last-Event-ID", last), False
        chunks = event_stream.iterate(
            services, org, after, filter=filter, from_oldest=not is_latest
        )
        return EventStream(chunks)
    if is_latest:
        after = events.read_newest_number(services, org=org)
    wait_s = query.seconds("wait")
    limit = query.integer("limit", events.MOST, minimum=1) or events.MOST
    async with hold_wait_slot(request.scope, wait_s) as disconnect:
        page = await events.read_page(
            services,
            org=org,
            after=after,
            limit=min(limit, events.MOST),
            filter=filter,
            wait_s=wait_s,
            gone=disconnect,
        )
    return json_response(page)


def is_stream_requested(headers: dict[bytes, bytes]) -> bool:
    """Return whether the client asks for server-sent events."""
    return MEDIA_TYPE in headers.get(b"accept", b"").lower()


def parse_number(name: str, given: str) -> int:
    """Return the number of an event.

    Raises:
        Refusal: InvalidQuery.
    """
    if not given.isascii() or not given.isdigit() or len(given) > 16:
        raise invalid_query(name, given, "the number of an event")
    return int(given)
