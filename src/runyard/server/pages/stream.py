"""``/ui/stream``: what has changed, as server-sent events; one connection per browser.

It is the stream of ``/workspaces/{org}/events`` with three events more: ``hello`` says which
version serves it, ``alive`` that it is still there, and ``points`` brings the new points of the
runs in ``?watch=``, whose curves are on the screen. Pages fetch again whatever else they show.
"""

import contextlib
from collections.abc import AsyncGenerator, Collection
from typing import Any

import msgspec

from runyard.server.http.event_streams import EventStream
from runyard.server.http.request import HEADERS, SESSION, Query, Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import assets
from runyard.server.services import event_stream, events
from runyard.server.services.access import session_lifecycle
from runyard.server.services.access.sessions import Session
from runyard.server.services.context import Services
from runyard.version import VERSION

HINT_EVERY_S = 2.0  # what each page then fetches costs more than the hint
MOST_WATCHED = 20  # runs
ALIVE = b"event: alive\ndata: {}\n\n"


class Hello(msgspec.Struct, rename="camel"):
    """The first event: the server's version, its static files, and the newest event's number."""

    version: str
    assets: str
    number: int


async def get_stream(request: Request) -> Response:
    """Stream what changes in the organization, from the last event that the browser has seen.

    A browser that opens another stream to watch more runs gives that event as ``?after=``.
    """
    services, org = get_services(request), get_actor(request).org
    last = request.scope[HEADERS].get(b"last-event-id", b"").decode("latin-1")
    query = Query(request)
    last = last or query.text("after") or ""
    after = int(last) if last.isascii() and last.isdigit() and len(last) <= 16 else None
    watched = (query.text("watch") or "").split(",")[:MOST_WATCHED]
    session: Session | None = request.scope.get(SESSION)
    return EventStream(_iterate(services, org, after, session, watched=frozenset(watched)))


async def _iterate(
    services: Services,
    org: str,
    after: int | None,
    session: Session | None,
    *,
    watched: Collection[str],
) -> AsyncGenerator[bytes]:
    newest = events.read_newest_number(services, org=org)
    yield encode_event("hello", Hello(VERSION, assets.load().hash, newest))
    after = newest if after is None else after
    stream = event_stream.iterate(services, org, after, watched=watched, hint_every_s=HINT_EVERY_S)
    async with contextlib.aclosing(stream) as chunks:
        async for chunk in chunks:
            if session is not None and not await session_lifecycle.recheck(services, session):
                return  # another server ended it
            yield ALIVE if chunk == event_stream.HEARTBEAT else chunk


def encode_event(name: str, value: Any) -> bytes:
    """Return an event of the stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
