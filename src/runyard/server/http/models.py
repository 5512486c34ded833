"""Routes of models, which the wire calls run outputs."""

from runyard.server.http import compat
from runyard.server.http.request import Answer, Asked, Id, Query, json_answer, origin_of, services_of
from runyard.server.services.runs import models


async def list_models(request: Asked, org: Id, run_id: Id) -> Answer:
    """All at once unless a page is asked for: the published client takes the last of the first page for the latest."""
    services, query = services_of(request), Query(request)
    origin = _link_origin(request, query)
    is_whole = query.text("s") is None and query.text("p") is None
    wanted = query.page(f"models {run_id}")
    if is_whole:
        return json_answer(await models.whole_list(services, org=org, run_id=run_id, origin=origin))
    return json_answer(await models.page(services, org=org, run_id=run_id, origin=origin, wanted=wanted))


async def get_model(request: Asked, org: Id, run_id: Id, checkpoint: Id) -> Answer:
    origin = _link_origin(request, Query(request))
    model = models.get_model(services_of(request), org=org, run_id=run_id, checkpoint=checkpoint, origin=origin)
    return json_answer(compat.wrapped_model(model), etag=model.etag)


def _link_origin(request: Asked, query: Query) -> str | None:
    return origin_of(request) if query.text("contents") == "y" else None
