"""Routes of models, which the wire calls run outputs."""

from runyard.server.http import compat
from runyard.server.http.request import Id, Query, Request, get_origin, get_services
from runyard.server.http.responses import Response, json_response
from runyard.server.services.runs import models


async def list_models(request: Request, org: Id, run_id: Id) -> Response:
    """Return the whole list unless a page is requested.

    The published client takes the last item of the first page for the latest model.
    """
    services, query = get_services(request), Query(request)
    origin = _link_origin(request, query)
    is_whole = query.text("s") is None and query.text("p") is None
    page_request = query.page(f"models {run_id}")
    if is_whole:
        return json_response(await models.list_all(services, org=org, run_id=run_id, origin=origin))
    return json_response(
        await models.page(
            services, org=org, run_id=run_id, origin=origin, page_request=page_request
        )
    )


async def get_model(request: Request, org: Id, run_id: Id, checkpoint: Id) -> Response:
    origin = _link_origin(request, Query(request))
    model = models.get_model(
        get_services(request), org=org, run_id=run_id, checkpoint=checkpoint, origin=origin
    )
    return json_response(compat.encode_model_as_page(model), etag=model.etag)


def _link_origin(request: Request, query: Query) -> str | None:
    return get_origin(request) if query.text("contents") == "y" else None
