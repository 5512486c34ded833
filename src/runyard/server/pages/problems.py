"""Errors of pages: a page where a browser opened one, the problem document for scripts."""

from collections.abc import Callable
from typing import Any

import msgspec

from runyard.server.http.problems import ProblemDocument
from runyard.server.http.request import Request
from runyard.server.http.responses import Response
from runyard.server.pages import templates

Handler = Callable[[Request, Any], Response]


class ProblemPage(msgspec.Struct, frozen=True, kw_only=True):
    """The page that shows an error: what went wrong, and what to do about it."""

    status: int
    title: str
    message: str
    advice: str


def show_problems(handlers: dict[Any, Handler]) -> dict[Any, Any]:
    """Return exception handlers that answer with a page where a browser opened one."""
    return {kind: _show(handler) for kind, handler in handlers.items()}


def _show(handler: Handler) -> Handler:
    def answer(request: Request, error: Any) -> Response:
        response = handler(request, error)
        wants_page = "text/html" in request.headers.get("accept", "")
        if not wants_page or templates.is_fragment(request):
            return response
        document = msgspec.json.decode(response.body, type=ProblemDocument)
        message, _, advice = document.message.partition("; try: ")
        page = ProblemPage(
            status=document.status, title=document.title, message=message, advice=advice
        )
        return templates.render_page(request, "problem.html", page, status=document.status)

    return answer
