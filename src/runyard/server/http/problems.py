"""Problem documents: every answer that is not a success, whoever raised it.

``message`` is the sentence people read (the published client shows that field and no other); ``code`` is the word
programs compare. Nothing of our inside goes out: no stack, no SQL, no path of this machine.
"""

import logging
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException

from runyard.server.http.responses import Headers, Response
from runyard.server.services.errors import Problem, Refusal
from runyard.store import StoreUnavailable

log = logging.getLogger(__name__)

# After these the rest of the request body is not read, so the connection serves no other request.
UNREAD_BODIES = ("BodyIncomplete", "BodyTimeout", "BodyTooLarge", "HeadersTooLarge")
STORE_UNAVAILABLE = Refusal("StorageUnavailable", "the store cannot be used right now; try again soon")


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """The body of an error answer (RFC 9457, with ``message``, ``code`` and ``problems``)."""

    type: str
    title: str
    status: int
    detail: str
    message: str
    code: str
    problems: list[Problem] = []


def problem_response(refusal: Refusal) -> Response:
    """Return the response that tells why a request was refused."""
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
        headers=_headers(refusal),
    )


def _headers(refusal: Refusal) -> Headers:
    """The headers that belong to a problem besides those of its body."""
    if refusal.status == 401:
        yield b"www-authenticate", b"Bearer"
    if refusal.allow:
        yield b"allow", ", ".join(refusal.allow).encode()
    if refusal.retry_after_s is not None:
        yield b"retry-after", str(refusal.retry_after_s).encode()
    if refusal.code in UNREAD_BODIES:
        yield b"connection", b"close"


def refused(request: Request[Any, Any, Any], error: Refusal) -> Response:
    return problem_response(error)


def unavailable(request: Request[Any, Any, Any], error: StoreUnavailable) -> Response:
    log.error("the store is unavailable: %s", error)
    return problem_response(STORE_UNAVAILABLE)


def http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response:
    """What the web framework itself refuses."""
    path = request.scope["path"][:200]
    if error.status_code == 404:
        return problem_response(Refusal("NotFound", f"there is no route {path!r}; the OpenAPI document lists all"))
    if error.status_code == 405:
        from runyard.server.http.routes import allowed_methods  # the routes name functions that import this module

        method, allow = request.scope["method"], allowed_methods(request.scope["path"])
        message = f"{path!r} does not take {method}; try: {', '.join(allow)}"
        return problem_response(Refusal("MethodNotAllowed", message, allow=allow))
    if error.status_code < 500:
        return problem_response(Refusal("InvalidBody", "the request could not be read; check it against the docs"))
    return failed(request, error)


async def list_methods(request: Request[Any, Any, Any]) -> Response:
    """Answer OPTIONS with the methods that the path takes."""
    from runyard.server.http.routes import allowed_methods

    allow = ", ".join(allowed_methods(request.scope["path"]))
    return Response(status=204, headers=[(b"allow", allow.encode())])


def failed(request: Request[Any, Any, Any], error: Exception) -> Response:
    log.error("%s %s failed", request.scope["method"], request.scope["path"], exc_info=error)
    return problem_response(Refusal("Internal", "the server made a mistake; its log says more, and repeating may help"))


HANDLERS: dict[Any, Any] = {
    Refusal: refused,
    StoreUnavailable: unavailable,
    HTTPException: http_error,
    Exception: failed,
}
