"""Archives, exports and pictures by signed link: HEAD with the exact length, GET whole or one byte range, no key.

The published client fetches ranges in parallel and takes an error answer for zero bytes, reporting success over a
damaged file. So once a link has been good, a range of it is never refused with a status: the answer begins as if it
were coming and the connection closes, which that client retries and then reports. The same happens when a blob turns
out damaged half-way: too few bytes on the wire can be noticed, wrong ones cannot.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from runyard.server.http.capacity import decimal
from runyard.server.http.request import SERVICES
from runyard.server.http.responses import StreamedResponse
from runyard.server.services import files
from runyard.server.services.access.signing import FileLink, Link
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import models

PREFIX = "/downloads/"
RANGE = re.compile(rb"bytes=([0-9]*)-([0-9]*)")
# So many bytes are promised when there is nothing to say how many there were.
UNKNOWN_LENGTH = 1


@dataclass(frozen=True)
class _Opened:
    """What a link opens: how long, how it is told, and how its bytes are had. ``None`` bytes: it is gone."""

    expires_at: int
    what: str
    size_bytes: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    read: Callable[[int, int], Iterator[bytes]] | None = None


async def download(scope: Any, receive: Any, send: Any) -> None:
    """Answer one request for an archive, an export or a picture."""
    services: Services = scope[SERVICES]
    method, headers = scope["method"], dict(scope["headers"])
    if method not in ("GET", "HEAD"):
        raise Refusal("MethodNotAllowed", "a download link takes GET and HEAD", allow=("GET", "HEAD"))
    # Behind the link may stand a name, for clients that call the file so.
    opened = _open(services, scope["path"].removeprefix(PREFIX).partition("/")[0])
    if opened is None:
        raise _no_link()
    has_expired = services.clock.now_ms() >= opened.expires_at
    if opened.size_bytes is None or opened.read is None or has_expired:
        if method == "GET" and b"range" in headers:
            await _break_off(send, opened.size_bytes or UNKNOWN_LENGTH)
            return
        raise _no_link()
    wanted = _range(headers.get(b"range"), opened.size_bytes)
    if wanted is None:
        raise Refusal("RangeNotSatisfiable", f"the range lies outside the {opened.size_bytes} bytes of the file")
    start, end, is_part = wanted
    content_range = f"bytes {start}-{end - 1}/{opened.size_bytes}".encode()
    response = StreamedResponse(
        opened.read(start, end),
        size_bytes=end - start,
        status=206 if is_part else 200,
        headers=[*opened.headers, (b"content-range", content_range)] if is_part else opened.headers,
        what=f"download of {opened.what}",
    )
    await response(scope, receive, send)


def _open(services: Services, token: str) -> _Opened | None:
    """What a token opens; None when it is not one of ours."""
    if (link := services.signer.opened(token)) is not None:
        return _opened_archive(services, link)
    if (file_link := services.signer.opened_file(token)) is not None:
        return _opened_file(services, file_link)
    return None


def _opened_archive(services: Services, link: Link) -> _Opened:
    what, found = f"{link.run_id}/{link.output_id}", models.opened_link(services, link)
    if found is None:
        return _Opened(link.expires_at, what)
    archive, row = found
    return _Opened(
        link.expires_at,
        what,
        archive.size_bytes,
        _headers("application/x-tar", row.archive_sha256, f"{row.run_id}-{row.id}.tar"),
        lambda start, end: archive.read(services.blobs(link.org), start, end),
    )


def _opened_file(services: Services, link: FileLink) -> _Opened:
    what, file = f"{link.kind} {link.id}", files.opened(services, link)
    if file is None:
        return _Opened(link.expires_at, what)
    return _Opened(
        link.expires_at,
        what,
        file.size_bytes,
        _headers(file.mime, file.content, file.name),
        lambda start, end: file.read(services, start, end),
    )


def _headers(mime: str, sha256: str, name: str) -> tuple[tuple[bytes, bytes], ...]:
    # What a file is called was chosen by whoever sent it: percent-encoded, it cannot end the header early.
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return (
        (b"content-type", mime.encode("ascii", "replace")),
        (b"accept-ranges", b"bytes"),
        (b"etag", f'"{sha256}"'.encode()),
        (b"content-disposition", disposition.encode()),
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
        suffix = min(decimal(last), size_bytes)
        return (size_bytes - suffix, size_bytes, True) if suffix else None
    start, end = decimal(first), min(decimal(last) + 1, size_bytes) if last else size_bytes
    return (start, end, True) if start < end else None


async def _break_off(send: Any, size_bytes: int) -> None:
    """Promise bytes, send none: the server closes the connection."""
    headers = [(b"content-length", str(max(1, size_bytes)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 206, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": True})


def _no_link() -> Refusal:
    return Refusal(
        "NotFound", "this link is not valid, or no longer; ask for the model, export or picture again to get a new one"
    )
