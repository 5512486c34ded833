"""Problem documents (RFC 9457): every response that is not a success, from any layer.

``message`` is the sentence for people: the published client shows that field and no other. ``code``
is the word that programs compare. Nothing internal is sent: no stack, no SQL, no path of this
machine.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from litestar.exceptions import HTTPException

from runyard.server.http.request import REQUEST_ID, Request
from runyard.server.http.responses import Headers, Response
from runyard.server.services.errors import Problem, Refusal
from runyard.store import StoreUnavailable

log = logging.getLogger(__name__)

# After these the rest of the request body is not read, so the connection serves no other request.
UNREAD_BODIES = ("BodyIncomplete", "BodyTimeout", "BodyTooLarge", "HeadersTooLarge")
STORE_UNAVAILABLE = Refusal(
    "StorageUnavailable", "the store is unavailable; try: repeat the request soon"
)


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """The body of an error response (RFC 9457, with ``message``, ``code`` and ``problems``)."""

    type: str
    title: str
    status: int
    detail: str
    message: str
    code: str
    problems: list[Problem] = []


def problem_response(error: Refusal | StoreUnavailable) -> Response:
    """Return the response for a refused request, or for one that the store cannot serve."""
    if isinstance(error, StoreUnavailable):
        log.error("the store is unavailable: %s", error)
    refusal = STORE_UNAVAILABLE if isinstance(error, StoreUnavailable) else error
    document = ProblemDocument(
        type=f"urn:runyard:error:{refusal.code}",
        title=refusal.title,
        status=refusal.status,
        detail=refusal.message,
        message=refusal.message,
        code=refusal.code,
        problems=refusal.problems,
    )
    return Response(
        msgspec.json.encode(document),
        media_type=b"application/problem+json",
        status=refusal.status,
        headers=_build_headers(refusal),
    )


def _build_headers(refusal: Refusal) -> Headers:
    """Yield the headers of a problem besides those of its body."""
    if refusal.status == 401:
        yield b"www-authenticate", b"Bearer"
    if refusal.allow:
        yield b"allow", ", ".join(refusal.allow).encode()
    if refusal.retry_after_s is not None:
        yield b"retry-after", str(refusal.retry_after_s).encode()
    if refusal.code in UNREAD_BODIES:
        yield b"connection", b"close"


def handle_refusal(request: Request, error: Refusal | StoreUnavailable) -> Response:
    return problem_response(error)


def handle_http_error(
    request: Request, error: HTTPException, *, list_methods: Callable[[str], list[str]]
) -> Response:
    """Convert an error of the web framework; ``list_methods`` returns the methods of a path."""
    path = request.scope["path"]
    if error.status_code == 404:
        message = f"there is no route {path[:200]!r}; try: a route of the OpenAPI document"
        return problem_response(Refusal("NotFound", message))
    if error.status_code == 405:
        method, allow = request.scope["method"], list_methods(path)
        message = f"{path[:200]!r} does not take {method}; try: {', '.join(allow)}"
        return problem_response(Refusal("MethodNotAllowed", message, allow=allow))
    if error.status_code < 500:
        message = "the request could not be parsed; try: compare it with the docs"
        return problem_response(Refusal("InvalidBody", message))
    return handle_unexpected_error(request, error)


def handle_unexpected_error(request: Request, error: Exception) -> Response:
    scope: Any = request.scope
    request_id = scope.get(REQUEST_ID)
    log.error(
        "%s %s failed (request %s)", scope["method"], scope["path"], request_id, exc_info=error
    )
    message = "internal server error; try: repeat the request, and look into the server's log"
    return problem_response(Refusal("Internal", message))


def build_exception_handlers(list_methods: Callable[[str], list[str]]) -> dict[Any, Any]:
    """Return the exception handlers of the application, by exception class."""
    return {
        Refusal: handle_refusal,
        StoreUnavailable: handle_refusal,
        HTTPException: partial(handle_http_error, list_methods=list_methods),
        Exception: handle_unexpected_error,
    }
