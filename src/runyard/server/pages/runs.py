"""The page *Runs*."""

from runyard.server.http.request import Request
from runyard.server.http.responses import Response
from runyard.server.pages import templates


async def get_home(request: Request) -> Response:
    """Go to the runs."""
    return Response(status=303, headers=[(b"location", b"/ui/runs")])


async def list_runs(request: Request) -> Response:
    return templates.render_page(request, "runs.html", None)
