"""Responses, each an ASGI application that sends itself.

JSON of 1 KiB or more is compressed for clients that accept gzip. Its entity tag stays: a tag names
what users may change (see ``services.etags``), and serves ``If-Match`` alone.
"""

import asyncio
import logging
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import msgspec

from runyard.blobs import BlobError
from runyard.server.http.request import HEADERS

Headers = Iterable[tuple[bytes, bytes]]

JSON_TYPES = (b"application/json", b"application/problem+json")
MIN_GZIP_BYTES, MIN_THREAD_BYTES = 1024, 64 * 1024
GZIP_LEVEL = 4  # half the time of the default, and 2 % more bytes
GZIP_WINDOW = 31  # of zlib: the largest one, with the header and trailer of gzip
ACCEPTS_GZIP = re.compile(
    rb"(?:^|[,\s])(?:gzip|\*)(?=[\s,;]|$)(?!\s*;\s*q=0(?:\.0*)?(?:[,\s]|$))", re.IGNORECASE
)

log = logging.getLogger(__name__)


class Response:
    """A response whose body is in memory.

    ``media_type`` is that of the body; an empty body has none.
    """

    __slots__ = ("body", "headers", "is_json", "status")

    def __init__(
        self,
        body: bytes = b"",
        *,
        media_type: bytes = b"",
        status: int = 200,
        headers: Headers = (),
    ) -> None:
        self.body, self.status, self.headers = body, status, list(headers)
        self.is_json = media_type in JSON_TYPES
        if media_type:
            self.headers.append((b"content-type", media_type))
        if status != 204:  # RFC 9110, section 8.6
            self.headers.append((b"content-length", b"%d" % len(body)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.is_json and len(self.body) >= MIN_GZIP_BYTES:
            await self._compress(scope)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body}
        )

    async def _compress(self, scope: Any) -> None:
        """Compress the body if the client accepts that; a large one on a thread."""
        self.headers.append((b"vary", b"accept-encoding"))
        if not ACCEPTS_GZIP.search(scope[HEADERS].get(b"accept-encoding", b"")):
            return
        is_large = len(self.body) >= MIN_THREAD_BYTES
        body = self.body
        self.body = await asyncio.to_thread(_gzip, body) if is_large else _gzip(body)
        lengths = {b"content-length": b"%d" % len(self.body)}
        self.headers = [(name, lengths.get(name, value)) for name, value in self.headers]
        self.headers.append((b"content-encoding", b"gzip"))


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    return compressor.compress(body) + compressor.flush()


def json_response(body: bytes, *, etag: str | None = None, status: int = 200) -> Response:
    """Return a response with a body that is encoded as JSON already."""
    headers = ((b"etag", f'"{etag}"'.encode()),) if etag else ()
    return Response(body, media_type=b"application/json", headers=headers, status=status)


def encode_response(document: Any, *, status: int = 200) -> Response:
    """Encode a document as JSON; a document with an ``etag`` sets the header."""
    return json_response(
        msgspec.json.encode(document), etag=getattr(document, "etag", None), status=status
    )


def empty_response(status: int = 204) -> Response:
    return Response(status=status)


class StreamedResponse(Response):
    """A response that is read in chunks while it is sent.

    ``close`` is called in any case; ``what`` names the response in logs.
    """

    __slots__ = ("chunks", "close", "what")

    def __init__(
        self,
        chunks: Iterator[bytes],
        *,
        size_bytes: int,
        what: str,
        status: int = 200,
        headers: Headers = (),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(status=status, headers=headers)
        self.headers[-1] = (b"content-length", b"%d" % size_bytes)
        self.chunks, self.what, self.close = chunks, what, close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(
                {"type": "http.response.start", "status": self.status, "headers": self.headers}
            )
            if scope["method"] != "HEAD":
                await self._send_chunks(send)
            await send({"type": "http.response.body", "body": b""})
        except (BlobError, EOFError, OSError) as error:
            # Returning without the promised bytes closes the connection, which every client
            # notices.
            log.error("%s was not sent completely: %s", self.what, error)
        finally:
            self.close()

    async def _send_chunks(self, send: Any) -> None:
        while (chunk := await asyncio.to_thread(next, self.chunks, None)) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


class ChunkedResponse(Response):
    """A response of unknown length, whose parts are sent as they are made.

    When making a part fails, the connection is closed before the end, which every client notices.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: AsyncIterator[bytes], *, headers: Headers = ()) -> None:
        super().__init__(headers=headers)
        del self.headers[-1]  # the length
        self.parts = parts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        if scope["method"] != "HEAD":
            async for part in self.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
