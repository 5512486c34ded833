"""Routes of models, which the wire calls run outputs."""

import msgspec

from runyard.server.http import compat
from runyard.server.http.asking import Answer, Asked, Id, Query, answer, json_answer, origin_of, services_of
from runyard.server.services import models, pages
from runyard.server.services.signing import Position
from vi.api.resources.models.responses import Model


class ModelPage(msgspec.Struct, rename="camel"):
    """Checkpoints in the order they were made, the latest last."""

    items: list[Model]
    next_page: str | None = None
    prev_page: str | None = None


async def list_models(request: Asked, org: Id, run_id: Id) -> Answer:
    """All at once unless a page is asked for: the published client takes the last of the first page for the latest."""
    services, query = services_of(request), Query(request)
    found = models.list_models(services, org=org, run_id=run_id, origin=_link_origin(request, query))
    if query.text("s") is None and query.text("p") is None:
        return answer(ModelPage(found))
    wanted = query.page(f"models {run_id}")
    after = pages.position(services, org=org, wanted=wanted)
    start = after[0] if after else 0
    end = start + wanted.size
    token = services.signer.page_token(Position(end, ""), org=org, question=wanted.question)
    return answer(ModelPage(found[start:end], token if end < len(found) else None))


async def get_model(request: Asked, org: Id, run_id: Id, checkpoint: Id) -> Answer:
    origin = _link_origin(request, Query(request))
    model = models.get_model(services_of(request), org=org, run_id=run_id, checkpoint=checkpoint, origin=origin)
    return json_answer(compat.wrapped_model(model), etag=model.etag)


def _link_origin(request: Asked, query: Query) -> str | None:
    return origin_of(request) if query.text("contents") == "y" else None
