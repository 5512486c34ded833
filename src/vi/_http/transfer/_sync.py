# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""Fetch one file from a link, by ranges, over as many connections as it takes.

The link may lie on another host than the API, and is a secret of its own: no header of ours goes along, and no message
shows it.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2

from vi._http._sync import Http
from vi._http.answers import Answer, error_of
from vi._http.requests import error_without_answer, failure_without_answer
from vi._http.retry import Failure, failure_of
from vi._http.transfer.part import PartFile
from vi.errors import ViDownloadError, ViError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_ASKED = "the download"


def download(
    http: Http,
    link: str,
    target: Path,
    *,
    size_bytes: int | None,
    sha256: str | None,
    on_progress: Callable[[int], None],
) -> None:
    """Fetch ``link`` to ``target``, going on from what an earlier call left; ``on_progress`` gets the bytes so far.

    Raises:
        ViDownloadError: the bytes are not those announced, or stopped coming; ``target`` is untouched.
    """
    url = urljoin(http.endpoint + "/", link)
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    source = http.without_key(origin)
    try:
        announced, etag = _measure(source, url.removeprefix(origin))
        if size_bytes is not None and announced != size_bytes:
            raise ViDownloadError(f"the link leads to {announced} bytes, but the model has {size_bytes}")
        with PartFile(target, identity=sha256 or etag, size_bytes=announced) as part:
            _fetch_rest(source, url, part, on_progress=on_progress)
            if part.was_resumed and not part.has_hash(sha256):
                part.restart()  # bytes from before a crash may be damaged; those of one go cannot
                _fetch_rest(source, url, part, on_progress=on_progress)
            if not part.has_hash(sha256):
                part.discard()
                raise ViDownloadError(
                    f"{target.name} arrived damaged: its SHA-256 is not {sha256}; it was thrown away",
                    suggestion="Try again; if it happens again, the server's copy or the way to it is at fault.",
                )
            part.finish()
    finally:
        source.close()


def _measure(source: Http, path: str) -> tuple[int, str | None]:
    """Size and strong etag of what the link leads to."""
    try:
        answer = source.send("HEAD", path, headers={"Accept-Encoding": "identity"}, asked=_ASKED)
    except ViError as error:
        raise _failed(error, arrived_bytes=None) from error
    length = answer.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit() or int(length) == 0:
        raise ViDownloadError(f"the server does not say how long the download is (Content-Length {length!r})")
    etag = answer.headers.get("etag")
    return int(length), etag if etag and not etag.startswith("W/") else None


def _fetch_rest(source: Http, url: str, part: PartFile, *, on_progress: Callable[[int], None]) -> None:
    """Ask for the missing bytes until they are there; each try that brings some earns new patience."""
    earlier: Counter[Failure] = Counter()
    while not part.is_whole:
        before = part.offset
        failure, error = _fetch_some(source, url, part, on_progress=on_progress)
        part.flush()
        if part.is_whole:
            return
        if part.offset > before:
            earlier.clear()
        delay_s = source.retry.delay_s(
            failure, repeatable=True, earlier=earlier, retry_after_s=error.retry_after, random=source.random
        )
        if delay_s is None:
            raise _failed(error, arrived_bytes=part.offset) from error
        earlier[failure] += 1
        source.sleep(delay_s)


def _fetch_some(
    source: Http, url: str, part: PartFile, *, on_progress: Callable[[int], None]
) -> tuple[Failure, ViError]:
    """One try. What it returns is why it ended early, and of no interest if the part is whole now."""
    headers = {"Range": f"bytes={part.offset}-", "Accept-Encoding": "identity"}
    try:
        with source.stream("GET", url, headers=headers) as response:
            if response.status_code >= 300:
                return _refusal(response, part)
            _align(response, part)
            for chunk in response.iter_bytes():
                part.write(chunk)
                on_progress(part.offset)
    except httpx2.RequestError as cause:
        error = error_without_answer(cause, asked=_ASKED, endpoint=source.endpoint, timeout_s=source.timeout_s)
        return failure_without_answer(cause), error
    return Failure.UNKNOWN, ViDownloadError("the server ended the download early")


def _refusal(response: httpx2.Response, part: PartFile) -> tuple[Failure, ViError]:
    body = response.read()
    answer = Answer(status=response.status_code, headers=dict(response.headers), body=body)
    if response.status_code == 416:
        part.restart()  # our part is not one of this file
        return Failure.UNKNOWN, error_of(answer, asked=_ASKED)
    return failure_of(response.status_code), error_of(answer, asked=_ASKED)


def _align(response: httpx2.Response, part: PartFile) -> None:
    """See that the next bytes belong where the part ends."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ViDownloadError("the server re-encodes the download, so its length and hash cannot be proven")
    if response.status_code != 206:
        part.restart()  # the server knows no ranges and begins at the start
        return
    given = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(given)
    if not found or int(found[1]) != part.offset or int(found[3]) != part.size_bytes:
        raise ViDownloadError(
            f"asked for bytes from {part.offset} of {part.size_bytes}, the server sends {given or 'an unnamed range'}"
        )


def _failed(error: ViError, *, arrived_bytes: int | None) -> ViDownloadError:
    so_far = "" if arrived_bytes is None else f" after {arrived_bytes} bytes, which are kept"
    return ViDownloadError(
        f"the download failed{so_far}: {error.message}",
        status_code=error.status_code,
        suggestion="Call it again: it asks for a new link and goes on where it stopped.",
        cause=error,
        details=error.details,
        retry_after=error.retry_after,
    )
