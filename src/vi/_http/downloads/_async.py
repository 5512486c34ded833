"""Download of one file from a signed link, by range requests, with retries.

The link may belong to another host than the API, and is itself a secret. It is therefore requested
without our headers, and no message shows it.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from vi._http._async import AsyncHttp
from vi._http.downloads.part_file import PartFile
from vi._http.requests import classify_transport_error, error_from_transport
from vi._http.response import Response, error_from_response
from vi._http.retry import Failure, classify_status
from vi.errors import ViDownloadError, ViError

if TYPE_CHECKING:
    import httpx2

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_REQUEST_NAME = "the download"


async def download_file(
    http: AsyncHttp,
    link: str,
    target: Path,
    *,
    size_bytes: int | None,
    sha256: str | None,
    on_progress: Callable[[int], None],
) -> None:
    """Download ``link`` to ``target``, resuming a partial file of an earlier call.

    ``on_progress`` is called with the number of bytes on disk.

    Raises:
        ViDownloadError: The download failed, or size or hash differ; ``target`` is unchanged.
    """
    url = urljoin(http.endpoint + "/", link)
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    source = http.without_credentials(origin)
    try:
        announced, etag = await _read_size_and_etag(source, url.removeprefix(origin))
        if size_bytes is not None and announced != size_bytes:
            raise ViDownloadError(f"the download has {announced} bytes, expected: {size_bytes}")
        with PartFile(target, identity=sha256 or etag, size_bytes=announced) as part:
            await _fetch_remaining(source, url, part, on_progress=on_progress)
            if part.was_resumed and not part.has_hash(sha256):
                part.restart()  # bytes written before a crash may be damaged
                await _fetch_remaining(source, url, part, on_progress=on_progress)
            if not part.has_hash(sha256):
                part.discard()
                raise ViDownloadError(
                    f"the download of {target.name} is damaged: its SHA-256 is not {sha256}; it "
                    "was discarded",
                    suggestion="try: again; if the error repeats, the server's copy or the network "
                    "is defective",
                )
            part.finish()
    finally:
        await source.close()


async def _read_size_and_etag(source: AsyncHttp, path: str) -> tuple[int, str | None]:
    """Return the size in bytes and the strong etag of the linked file.

    None without such an etag.
    """
    try:
        response = await source.send(
            "HEAD", path, headers={"Accept-Encoding": "identity"}, request_name=_REQUEST_NAME
        )
    except ViError as error:
        raise _download_error(error, arrived_bytes=None) from error
    length = response.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit() or int(length) == 0:
        raise ViDownloadError(
            f"the server does not state the size of the download (Content-Length {length!r})"
        )
    etag = response.headers.get("etag")
    return int(length), etag if etag and not etag.startswith("W/") else None


async def _fetch_remaining(
    source: AsyncHttp, url: str, part: PartFile, *, on_progress: Callable[[int], None]
) -> None:
    """Request the missing bytes until the file is complete; progress resets the retry count."""
    earlier: Counter[Failure] = Counter()
    while not part.is_whole:
        before = part.offset
        failure, error = await _fetch_once(source, url, part, on_progress=on_progress)
        part.flush()
        if part.is_whole:
            return
        if part.offset > before:
            earlier.clear()
        delay_s = source.retry.delay_s(
            failure,
            repeatable=True,
            earlier=earlier,
            retry_after_s=error.retry_after,
            random=source.random,
        )
        if delay_s is None:
            raise _download_error(error, arrived_bytes=part.offset) from error
        earlier[failure] += 1
        await source.sleep(delay_s)


async def _fetch_once(
    source: AsyncHttp, url: str, part: PartFile, *, on_progress: Callable[[int], None]
) -> tuple[Failure, ViError]:
    """Request the missing bytes once.

    Return why the response ended, which matters only if incomplete.
    """
    import httpx2

    headers = {"Range": f"bytes={part.offset}-", "Accept-Encoding": "identity"}
    try:
        async with source.stream("GET", url, headers=headers) as response:
            if response.status_code >= 300:
                return await _classify_error_response(response, part)
            _check_range(response, part)
            async for chunk in response.aiter_bytes():
                part.write(chunk)
                on_progress(part.offset)
    except httpx2.RequestError as cause:
        error = error_from_transport(
            cause,
            request_name=_REQUEST_NAME,
            endpoint=source.endpoint,
            timeout_s=source.timeout_s,
            trust=source.trust,
        )
        return classify_transport_error(cause), error
    return Failure.UNKNOWN, ViDownloadError("the server ended the download early")


async def _classify_error_response(
    response: "httpx2.Response", part: PartFile
) -> tuple[Failure, ViError]:
    body = await response.aread()
    refused = Response(status=response.status_code, headers=dict(response.headers), body=body)
    if response.status_code == 416:
        part.restart()  # the partial file belongs to another file
        return Failure.UNKNOWN, error_from_response(refused, request_name=_REQUEST_NAME)
    return classify_status(response.status_code), error_from_response(
        refused, request_name=_REQUEST_NAME
    )


def _check_range(response: "httpx2.Response", part: PartFile) -> None:
    """Check that the response starts where the partial file ends.

    Restart it if ranges are unsupported.
    """
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ViDownloadError(
            "the server re-encodes the download, so its size and hash cannot be verified"
        )
    if response.status_code != 206:
        part.restart()  # the server ignores ranges and sends the whole file
        return
    given = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(given)
    if not found or int(found[1]) != part.offset or int(found[3]) != part.size_bytes:
        raise ViDownloadError(
            f"requested bytes from {part.offset} of {part.size_bytes}, received: "
            f"{given or 'an unnamed range'}"
        )


def _download_error(error: ViError, *, arrived_bytes: int | None) -> ViDownloadError:
    so_far = (
        "" if arrived_bytes is None else f" after {arrived_bytes} bytes, which are kept for a retry"
    )
    return ViDownloadError(
        f"the download failed{so_far}: {error.message}",
        status_code=error.status_code,
        suggestion="try: call it again; it requests a new link and resumes the download",
        cause=error,
        details=error.details,
        retry_after=error.retry_after,
    )
