"""The page *Run*."""

from runyard.server.http.request import Id, Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.views import RunPage
from runyard.server.services.runs import runs


async def get_run(request: Request, run_id: Id) -> Response:
    runs.get(get_services(request), org=get_actor(request).org, run_id=run_id)
    return templates.render_page(request, "run.html", RunPage(id=run_id, name=run_id))
