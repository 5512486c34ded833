"""The page *Run*."""

from runyard.server.http.request import Id, Request
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.views import RunPage


async def get_run(request: Request, run_id: Id) -> Response:
    return templates.render_page(request, "run.html", RunPage(id=run_id, name=run_id))
