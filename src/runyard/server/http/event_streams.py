"""A response of server-sent events, which lasts until somebody ends it.

That is the client, by disconnecting or by not reading any more; a newer stream of the same key,
where it has too many; the end of the key; or the stop of the server, at which the events end.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

from runyard.server.http.access import KEY_CHECK_S, has_key_ended
from runyard.server.http.capacity import EXCHANGE, Exchange
from runyard.server.http.responses import Headers, Response
from runyard.store import StoreUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = b"text/event-stream"
HEADERS: Headers = (
    (b"content-type", MEDIA_TYPE),
    (b"x-accel-buffering", b"no"),  # or a proxy would keep events until its buffer is full
)


class EventStream(Response):
    """A response whose chunks are sent as they come."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        super().__init__(status=200)
        self.headers = list(HEADERS)  # without a length
        self.chunks = chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange: Exchange = scope[EXCHANGE]
        with exchange.hold_stream() as end:
            await send(
                {"type": "http.response.start", "status": self.status, "headers": self.headers}
            )
            if scope["method"] != "HEAD":
                await self._send_chunks(scope, send, {end, exchange.watch_disconnect()})
            await send({"type": "http.response.body", "body": b""})

    async def _send_chunks(self, scope: Any, send: Any, ends: "set[asyncio.Future[None]]") -> None:
        coming = asyncio.ensure_future(self._next_chunk())
        try:
            while not (any(end.done() for end in ends) or has_key_ended(scope)):
                if not coming.done():
                    both: set[asyncio.Future[Any]] = {coming, *ends}
                    await asyncio.wait(
                        both, timeout=KEY_CHECK_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    continue
                if (chunk := coming.result()) is None:
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                coming = asyncio.ensure_future(self._next_chunk())
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await coming
            await self.chunks.aclose()

    async def _next_chunk(self) -> bytes | None:
        """Return the next chunk; None at the end."""
        try:
            return await anext(self.chunks, None)
        except StoreUnavailable as error:
            log.error("a stream of events ends, so that its reader tries again: %s", error)
            return None
