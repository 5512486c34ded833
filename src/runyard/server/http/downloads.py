"""Archives by signed link: HEAD with the exact length, GET whole or one byte range, no key.

The published client fetches ranges in parallel and takes an error answer for zero bytes, reporting success over a
damaged file. So once a link has been good, a range of it is never refused with a status: the answer begins as if it
were coming and the connection closes, which that client retries and then reports. The same happens when a blob turns
out damaged half-way: too few bytes on the wire can be noticed, wrong ones cannot.
"""

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

from runyard.blobs import Archive, BlobError
from runyard.server.http.asking import SERVICES
from runyard.server.services import models
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal

log = logging.getLogger(__name__)

PREFIX = "/downloads/"
RANGE = re.compile(rb"bytes=([0-9]*)-([0-9]*)")
# So many bytes are promised when there is nothing to say how many there were.
UNKNOWN_LENGTH = 1


async def download(scope: Any, receive: Any, send: Any) -> None:
    """Answer one request for an archive."""
    services: Services = scope[SERVICES]
    method, headers = scope["method"], dict(scope["headers"])
    if method not in ("GET", "HEAD"):
        raise Refusal("MethodNotAllowed", "a download link takes GET and HEAD")
    link = services.signer.opened(scope["path"].removeprefix(PREFIX))
    if link is None:
        raise _no_link()
    opened = models.opened_link(services, link)
    has_expired = services.clock.now_ms() >= link.expires_at
    if opened is None or has_expired:
        if method == "GET" and b"range" in headers:
            await _break_off(send, opened[0].size_bytes if opened else UNKNOWN_LENGTH)
            return
        raise _no_link()
    archive, row = opened
    wanted = _range(headers.get(b"range"), archive.size_bytes)
    if wanted is None:
        raise Refusal("RangeNotSatisfiable", f"the range lies outside the {archive.size_bytes} bytes of the file")
    start, end, is_part = wanted
    await _start(send, archive, row, start, end, is_part)
    if method == "HEAD":
        await send({"type": "http.response.body", "body": b""})
        return
    await send_bytes(
        send, archive.read(services.blobs(link.org), start, end), what=f"download of {link.run_id}/{link.output_id}"
    )


def _range(given: bytes | None, size_bytes: int) -> tuple[int, int, bool] | None:
    """First byte, byte after the last, whether it is a part; None when it lies outside. More than one range: all."""
    if given is None or b"," in given:
        return 0, size_bytes, False
    found = RANGE.fullmatch(given.strip())
    if found is None or found.group(1) == found.group(2) == b"":
        return 0, size_bytes, False
    first, last = found.groups()
    if not first:
        return max(0, size_bytes - int(last)), size_bytes, True
    start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    return (start, end, True) if start < end else None


async def _start(send: Any, archive: Archive, row: Any, start: int, end: int, is_part: bool) -> None:
    headers = [
        (b"content-type", b"application/x-tar"),
        (b"content-length", str(end - start).encode()),
        (b"accept-ranges", b"bytes"),
        (b"etag", f'"{row.archive_sha256}"'.encode()),
        (b"content-disposition", f'attachment; filename="{row.run_id}-{row.id}.tar"'.encode()),
    ]
    if is_part:
        headers.append((b"content-range", f"bytes {start}-{end - 1}/{archive.size_bytes}".encode()))
    await send({"type": "http.response.start", "status": 206 if is_part else 200, "headers": headers})


async def send_bytes(send: Any, chunks: Iterator[bytes], *, what: str) -> None:
    """Send a body whose length has been promised; too few bytes are sent when they cannot be had."""
    try:
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except (BlobError, EOFError, OSError) as error:
        # Returning without the promised bytes closes the connection, which every client notices.
        log.error("%s broke off: %s", what, error)
        return
    await send({"type": "http.response.body", "body": b""})


async def _break_off(send: Any, size_bytes: int) -> None:
    """Promise bytes, send none: the server closes the connection."""
    headers = [(b"content-length", str(max(1, size_bytes)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 206, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": True})


def _no_link() -> Refusal:
    return Refusal("NotFound", "this link is not valid, or no longer; ask for the model again to get a new one")
