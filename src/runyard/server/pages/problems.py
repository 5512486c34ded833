"""Errors of pages: a page where a browser opened one, the problem document for scripts."""

import msgspec

from runyard.server.http import problems
from runyard.server.http.request import Request
from runyard.server.http.responses import Response
from runyard.server.pages import templates


class ProblemPage(msgspec.Struct, frozen=True, kw_only=True):
    """The page that shows an error: what went wrong, and what to do about it."""

    status: int
    title: str
    message: str
    advice: str


def answer_error(request: Request, error: Exception) -> Response:
    """Return the response for an error: a page where a browser opened one."""
    response = problems.answer_error(request, error)
    wants_page = "text/html" in request.headers.get("accept", "")
    if not wants_page or templates.is_fragment(request):
        return response
    document = msgspec.json.decode(response.body, type=problems.ProblemDocument)
    message, _, advice = document.message.partition("; try: ")
    page = ProblemPage(status=document.status, title=document.title, message=message, advice=advice)
    return templates.render_page(request, "problem.html", page, status=document.status)
