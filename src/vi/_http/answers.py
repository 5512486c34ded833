"""From an HTTP answer, or the lack of one, to a value or an error: pure functions.

Runyard's server answers failures with problem documents: ``message`` is for people, ``code`` for programs, ``problems``
lists every fault of a document with its path. Any other server's answer is still shown as well as it can be: a JSON
object's ``message`` or ``error``, else the text.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
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

_LONGEST_TEXT = 2000
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
    401: "Check secret_key (or DATATURE_VI_SECRET_KEY, or the config file): the server does not know this key.",
    403: "Check organization_id and what the key may do: the server knows the key but forbids this.",
    404: "It may have been deleted, or belong to another organisation.",
}
_SUGGESTIONS_WITHOUT_CODE = {
    412: "Somebody changed it in the meantime: get it again, look, and repeat with the new etag.",
    429: "The server is busy; try again later or send fewer requests at once.",
    503: "The server is there but cannot work now; try again in a moment.",
}


@dataclass(frozen=True)
class Answer:
    """What came back: header names are lower-case. ``tries`` counts the requests it took."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1


def decode(answer: Answer, decode_as: type[T], *, asked: str) -> T:
    """The answer's body as the wanted type.

    Raises:
        ViOperationError: the body is something else.
    """
    decoder = _DECODERS.get(decode_as)
    if decoder is None:
        decoder = _DECODERS[decode_as] = msgspec.json.Decoder(decode_as)
    try:
        return decoder.decode(answer.body)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise ViOperationError(
            f"the answer to {asked} is not what was asked for: {error}",
            suggestion="Check that the endpoint is a Runyard server, and that vi is as new as the server.",
            cause=error,
        ) from error


def error_of(answer: Answer, *, asked: str) -> ViError:
    """The error an answer of status 300 and above stands for."""
    status = answer.status
    document = _problem_document(answer)
    kind, code = _kind_of(status)
    details = {key: value for key, value in document.items() if key not in ("message", "error", "suggestion")}
    return kind(
        _message(document, status=status, asked=asked),
        error_code=code,
        status_code=status,
        suggestion=_suggestion(document, answer),
        details=details,
        retry_after=retry_after_s(answer.headers, now_s=time.time()),
        trace_id=answer.headers.get("x-request-id")
        or answer.headers.get("x-cloud-trace-context", "").split("/")[0]
        or None,
    )


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """How long the server asks to wait, given in seconds or as a date; None if it does not say, or not readably."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
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


def _problem_document(answer: Answer) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = None
    if isinstance(document, dict):
        return document
    text = answer.body[:_LONGEST_TEXT].decode("utf-8", errors="replace").strip()
    return {"message": text} if text else {}


def _message(document: dict[str, Any], *, status: int, asked: str) -> str:
    texts = (document.get(key) for key in ("message", "error", "detail", "title"))
    message = next(
        (text for text in texts if isinstance(text, str) and text), f"{asked} was answered with status {status}"
    )
    return "\n".join([message, *(f"  {_problem_line(problem)}" for problem in _problems_not_in(message, document))])


def _problems_not_in(message: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The problems the message does not tell by itself."""
    problems = document.get("problems")
    if not isinstance(problems, list):
        return []
    texts = ((problem, problem.get("message")) for problem in problems if isinstance(problem, dict))
    return [problem for problem, text in texts if not (isinstance(text, str) and text and text in message)]


def _problem_line(problem: dict[str, Any]) -> str:
    path, text = problem.get("path") or "/", problem.get("message")
    if not text:
        text = f"{problem.get('given')!r} was given, allowed is {problem.get('allowed')}"
    return text if str(text).startswith(str(path)) else f"{path}: {text}"


def _suggestion(document: dict[str, Any], answer: Answer) -> str | None:
    given = document.get("suggestion")
    if isinstance(given, str):
        return given
    if 300 <= answer.status < 400:
        elsewhere = answer.headers.get("location", "the address it redirects to")
        return f"The endpoint points elsewhere; if that is right, use it as endpoint: {elsewhere}"
    general = {} if "code" in document else _SUGGESTIONS_WITHOUT_CODE  # a problem document says itself what to do
    return _SUGGESTIONS.get(answer.status) or general.get(answer.status)
