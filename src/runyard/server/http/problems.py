"""Problem documents (RFC 9457): every response that is not a success, from any layer.

``message`` is the sentence for people: the published client shows that field and no other. ``code``
is the word that programs compare. Nothing internal is sent: no stack, no SQL, no path of this
machine.
"""

import logging

import msgspec

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


def answer_error(request: Request, error: Exception) -> Response:
    """Return the response for an error of an endpoint; one that nobody foresaw is logged."""
    if isinstance(error, Refusal | StoreUnavailable):
        return problem_response(error)
    scope = request.scope
    request_id = scope.get(REQUEST_ID)
    log.error(
        "%s %s failed (request %s)", scope["method"], scope["path"], request_id, exc_info=error
    )
    message = "internal server error; try: repeat the request, and look into the server's log"
    return problem_response(Refusal("Internal", message))
