"""``/ui/stream``: what has changed, as server-sent events; one connection per browser.

It carries no state: pages fetch anew what they show. So a lost message costs nothing once the
browser has connected again, and after each connection everything shown is fetched anew.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from runyard.server.http.access import has_key_ended
from runyard.server.http.capacity import hold_wait_slot
from runyard.server.http.request import Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import assets
from runyard.server.services.context import Services
from runyard.server.version import VERSION

HEARTBEAT_S = 15.0
HINT_INTERVAL_S = 1.0
HEADERS = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]


async def get_stream(request: Request) -> Response:
    """Stream what changes in the organization."""
    return EventStream(get_services(request), get_actor(request).org)


class EventStream(Response):
    """A response without end: it ends with the connection, the session, or the server."""

    __slots__ = ("org", "services")

    def __init__(self, services: Services, org: str) -> None:
        super().__init__(headers=HEADERS)
        self.headers = list(HEADERS)  # no length
        self.services, self.org = services, org

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with hold_wait_slot(scope, HEARTBEAT_S) as gone:
            await send({"type": "http.response.start", "status": 200, "headers": self.headers})
            async for message in self._iterate(gone):
                if has_key_ended(scope):
                    break
                await send({"type": "http.response.body", "body": message, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _iterate(self, gone: "asyncio.Future[None] | None") -> AsyncIterator[bytes]:
        hello = {"version": VERSION, "assets": assets.load().hash}
        yield b"retry: 1000\n\n" + encode_event("hello", hello)
        prefix = f"run:{self.org}/"
        changed: dict[str, None] = {}
        wake = asyncio.Event()

        def hear(topic: str) -> None:
            if topic.startswith(prefix):
                changed[topic.removeprefix(prefix)] = None
            wake.set()

        notifier = self.services.notifier
        notifier.listeners.add(hear)
        try:
            while not notifier.is_closed and not (gone is not None and gone.done()):
                if not await notifier.wait(wake, timeout_s=HEARTBEAT_S, gone=gone):
                    yield b": alive\n\n"
                    continue
                for run_id in list(changed):
                    del changed[run_id]
                    yield encode_event("hint", {"run": run_id})
                wake.clear()
                await asyncio.sleep(HINT_INTERVAL_S)
        finally:
            notifier.listeners.discard(hear)


def encode_event(name: str, value: Any) -> bytes:
    """Return an event of the stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
