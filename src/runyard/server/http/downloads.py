"""Downloads by signed link, without a key: archives, exports and images.

HEAD returns the exact length, GET the whole file or one byte range. The published client fetches
ranges in parallel and takes an error response for zero bytes, so it would report success over a
damaged file. Therefore a range of an expired link gets no error status: the response starts and the
connection closes, which that client retries and then reports. The same happens when a blob turns
out damaged half-way: missing bytes are noticed, wrong ones are not.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from runyard.server.http.capacity import parse_decimal
from runyard.server.http.request import SERVICES
from runyard.server.http.responses import StreamedResponse
from runyard.server.services import files
from runyard.server.services.access.signing import FileLink, Link
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import models

PREFIX = "/downloads/"
RANGE = re.compile(rb"bytes=([0-9]*)-([0-9]*)")
# The length that a broken response announces when the real one is unknown.
UNKNOWN_LENGTH = 1


@dataclass(frozen=True)
class _Download:
    """What a link refers to. Without ``size_bytes`` and ``read`` the file is gone."""

    expires_at: int
    what: str
    size_bytes: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    read: Callable[[int, int], Iterator[bytes]] | None = None


async def serve_download(scope: Any, receive: Any, send: Any) -> None:
    """Serve one request for an archive, an export or an image."""
    services: Services = scope[SERVICES]
    method, headers = scope["method"], dict(scope["headers"])
    if method not in ("GET", "HEAD"):
        raise Refusal(
            "MethodNotAllowed", "a download link takes GET and HEAD", allow=("GET", "HEAD")
        )
    # A file name may follow the link, for clients that take it as the name of the download.
    opened = _open_token(services, scope["path"].removeprefix(PREFIX).partition("/")[0])
    if opened is None:
        raise _invalid_link()
    has_expired = services.clock.now_ms() >= opened.expires_at
    if opened.size_bytes is None or opened.read is None or has_expired:
        if method == "GET" and b"range" in headers:
            await _break_off(send, opened.size_bytes or UNKNOWN_LENGTH)
            return
        raise _invalid_link()
    requested = _parse_range(headers.get(b"range"), opened.size_bytes)
    if requested is None:
        raise Refusal(
            "RangeNotSatisfiable", f"the range is outside the {opened.size_bytes} bytes of the file"
        )
    start, end, is_part = requested
    content_range = f"bytes {start}-{end - 1}/{opened.size_bytes}".encode()
    response = StreamedResponse(
        opened.read(start, end),
        size_bytes=end - start,
        status=206 if is_part else 200,
        headers=[*opened.headers, (b"content-range", content_range)] if is_part else opened.headers,
        what=f"download of {opened.what}",
    )
    await response(scope, receive, send)


def _open_token(services: Services, token: str) -> _Download | None:
    """Return the download that a token refers to; None for an invalid token."""
    if (link := services.signer.verify_link(token)) is not None:
        return _open_archive(services, link)
    if (file_link := services.signer.verify_file_link(token)) is not None:
        return _open_file(services, file_link)
    return None


def _open_archive(services: Services, link: Link) -> _Download:
    what, found = f"{link.run_id}/{link.output_id}", models.open_link(services, link)
    if found is None:
        return _Download(link.expires_at, what)
    archive, row = found
    return _Download(
        link.expires_at,
        what,
        archive.size_bytes,
        _build_headers("application/x-tar", row.archive_sha256, f"{row.run_id}-{row.id}.tar"),
        lambda start, end: archive.read(services.blobs(link.org), start, end),
    )


def _open_file(services: Services, link: FileLink) -> _Download:
    what, file = f"{link.kind} {link.id}", files.open_link(services, link)
    if file is None:
        return _Download(link.expires_at, what)
    return _Download(
        link.expires_at,
        what,
        file.size_bytes,
        _build_headers(file.mime, file.content, file.name),
        lambda start, end: file.read(services, start, end),
    )


def _build_headers(mime: str, sha256: str, name: str) -> tuple[tuple[bytes, bytes], ...]:
    # The uploader chose the file's name: percent-encoded, it cannot end the header early.
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return (
        (b"content-type", mime.encode("ascii", "replace")),
        (b"accept-ranges", b"bytes"),
        (b"etag", f'"{sha256}"'.encode()),
        (b"content-disposition", disposition.encode()),
    )


def _parse_range(given: bytes | None, size_bytes: int) -> tuple[int, int, bool] | None:
    """Return first byte, end, and whether it is a part; None for a range outside the file.

    Several ranges count as none: the whole file is returned.
    """
    if given is None or b"," in given:
        return 0, size_bytes, False
    found = RANGE.fullmatch(given.strip())
    if found is None or found.group(1) == found.group(2) == b"":
        return 0, size_bytes, False
    first, last = found.groups()
    if not first:
        suffix = min(parse_decimal(last), size_bytes)
        return (size_bytes - suffix, size_bytes, True) if suffix else None
    start, end = (
        parse_decimal(first),
        min(parse_decimal(last) + 1, size_bytes) if last else size_bytes,
    )
    return (start, end, True) if start < end else None


async def _break_off(send: Any, size_bytes: int) -> None:
    """Announce bytes but send none, so that the server closes the connection."""
    headers = [(b"content-length", str(max(1, size_bytes)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 206, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": True})


def _invalid_link() -> Refusal:
    return Refusal(
        "NotFound",
        "this link is invalid or has expired; try: get the model, export or image again for a new "
        "one",
    )
