"""``/ui/stream``: the events and hints of the organization; one connection per browser.

It begins with ``hello``, by which a page notices that another version answers. Pages fetch anew
what they show, so it carries no state of theirs.
"""

from collections.abc import AsyncGenerator

import msgspec

from runyard.server.http.endpoints.events import parse_number
from runyard.server.http.event_streams import EventStream
from runyard.server.http.request import Request, get_actor, get_services
from runyard.server.pages import assets
from runyard.server.services import event_stream
from runyard.server.services.context import Services
from runyard.server.version import VERSION


async def get_stream(request: Request) -> EventStream:
    """Stream what changes in the organization, from the browser's last event or from now on."""
    last = request.headers.get("last-event-id", "")
    after = parse_number("Last-Event-ID", last) if last else None
    return EventStream(_iterate(get_services(request), get_actor(request).org, after))


async def _iterate(services: Services, org: str, after: int | None) -> AsyncGenerator[bytes]:
    yield encode_event("hello", {"version": VERSION, "assets": assets.load().hash})
    async for chunk in event_stream.iterate(services, org, after):
        # A comment would be invisible to the script that watches whether the stream is alive.
        yield encode_event("alive", {}) if chunk == event_stream.HEARTBEAT else chunk


def encode_event(name: str, value: object) -> bytes:
    """Return an event of the stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
