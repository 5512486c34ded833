"""Conversion of HTTP responses to values or exceptions: pure functions.

Runyard's server reports failures as problem documents: ``message`` is for people, ``code`` for
programs, and ``problems`` lists each problem of the request with its path. From any other server,
the message is the ``message`` or ``error`` of a JSON object, else the text of the body.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from vi.errors import (
    ViAuthenticationError,
    ViConflictError,
    ViError,
    ViErrorCode,
    ViNotFoundError,
    ViOperationError,
    ViRateLimitError,
    ViServerError,
    ViTimeoutError,
    ViValidationError,
)

T = TypeVar("T")

_MAX_TEXT_LENGTH = 2000
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}

_BY_STATUS: dict[int, tuple[type[ViError], ViErrorCode]] = {
    401: (ViAuthenticationError, ViErrorCode.AUTHENTICATION_FAILED),
    403: (ViAuthenticationError, ViErrorCode.PERMISSION_DENIED),
    404: (ViNotFoundError, ViErrorCode.RESOURCE_NOT_FOUND),
    408: (ViTimeoutError, ViErrorCode.TIMEOUT_ERROR),
    409: (ViConflictError, ViErrorCode.RESOURCE_CONFLICT),
    412: (ViConflictError, ViErrorCode.RESOURCE_CONFLICT),
    413: (ViValidationError, ViErrorCode.FILE_TOO_LARGE),
    429: (ViRateLimitError, ViErrorCode.RATE_LIMIT_EXCEEDED),
    502: (ViServerError, ViErrorCode.NETWORK_ERROR),
    503: (ViServerError, ViErrorCode.SERVICE_UNAVAILABLE),
    504: (ViServerError, ViErrorCode.TIMEOUT_ERROR),
}
_SUGGESTIONS = {
    401: "The server does not know this key. try: check secret_key, DATATURE_VI_SECRET_KEY or the "
    "config file",
    403: "The key is not permitted to do this. try: check organization_id and the role of the key",
    404: "The resource may have been deleted, or belong to another organization.",
}
_SUGGESTIONS_WITHOUT_CODE = {
    412: "The resource was changed in the meantime. try: get it again and repeat with its new etag",
    429: "The server is busy. try: again later, or with fewer concurrent requests",
    503: "The server is temporarily unavailable. try: again in a moment",
}


@dataclass(frozen=True)
class Response:
    """Response with lower-case header names.

    ``tries`` counts the requests sent, retries included.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1


def decode(response: Response, decode_as: type[T], *, request_name: str) -> T:
    """Return the response body as an instance of ``decode_as``.

    Raises:
        ViOperationError: The body does not match the type.
    """
    decoder = _DECODERS.get(decode_as)
    if decoder is None:
        decoder = _DECODERS[decode_as] = msgspec.json.Decoder(decode_as)
    try:
        return decoder.decode(response.body)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise ViOperationError(
            f"the response to {request_name} is not the expected document: {error}",
            suggestion="try: check that the endpoint is a Runyard server, and upgrade vi to the "
            "server's version",
            cause=error,
        ) from error


def error_from_response(response: Response, *, request_name: str) -> ViError:
    """Return the exception for a response with status 300 or above."""
    status = response.status
    document = _problem_document(response)
    kind, code = _kind_of(status)
    details = {
        key: value
        for key, value in document.items()
        if key not in ("message", "error", "suggestion")
    }
    return kind(
        _message(document, status=status, request_name=request_name),
        error_code=code,
        status_code=status,
        suggestion=_suggestion(document, response),
        details=details,
        retry_after=retry_after_s(response.headers, now_s=time.time()),
        trace_id=response.headers.get("x-request-id")
        or response.headers.get("x-cloud-trace-context", "").split("/")[0]
        or None,
    )


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """Return the seconds to wait according to ``Retry-After``.

    None if it is missing or malformed.
    """
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _kind_of(status: int) -> tuple[type[ViError], ViErrorCode]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return ViServerError, ViErrorCode.SERVER_ERROR
    if status >= 400:
        return ViValidationError, ViErrorCode.VALIDATION_FAILED
    return ViOperationError, ViErrorCode.OPERATION_FAILED


def _problem_document(response: Response) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = None
    if isinstance(document, dict):
        return document
    text = response.body[:_MAX_TEXT_LENGTH].decode("utf-8", errors="replace").strip()
    return {"message": text} if text else {}


def _message(document: dict[str, Any], *, status: int, request_name: str) -> str:
    texts = (document.get(key) for key in ("message", "error", "detail", "title"))
    message = next(
        (text for text in texts if isinstance(text, str) and text),
        f"{request_name} returned status {status}",
    )
    return "\n".join(
        [
            message,
            *(f"  {_problem_line(problem)}" for problem in _problems_not_in(message, document)),
        ]
    )


def _problems_not_in(message: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the problems that the message does not mention."""
    problems = document.get("problems")
    if not isinstance(problems, list):
        return []
    texts = ((problem, problem.get("message")) for problem in problems if isinstance(problem, dict))
    return [
        problem
        for problem, text in texts
        if not (isinstance(text, str) and text and text in message)
    ]


def _problem_line(problem: dict[str, Any]) -> str:
    path, text = problem.get("path") or "/", problem.get("message")
    if not text:
        text = f"{problem.get('given')!r}, expected: {problem.get('allowed')}"
    return text if str(text).startswith(str(path)) else f"{path}: {text}"


def _suggestion(document: dict[str, Any], response: Response) -> str | None:
    given = document.get("suggestion")
    if isinstance(given, str):
        return given
    if 300 <= response.status < 400:
        location = response.headers.get("location", "the address that it redirects to")
        return f"The endpoint redirects. try: endpoint={location}, if you trust it"
    # A problem document with a code carries its own suggestion.
    general = {} if "code" in document else _SUGGESTIONS_WITHOUT_CODE
    return _SUGGESTIONS.get(response.status) or general.get(response.status)
