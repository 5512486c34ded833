"""Routes of saved views."""

import msgspec

from runyard.server.http.endpoints import bodies
from runyard.server.http.request import (
    Id,
    Query,
    Request,
    convert_body,
    get_actor,
    get_if_match,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import Response, empty_response, json_response
from runyard.server.services import documents
from runyard.server.services.saved_views import VIEW, check_spec
from vi.api.resources.views.responses import ViewSpec


async def list_views(request: Request, org: Id) -> Response:
    page_request = Query(request).page("views")
    return json_response(
        await documents.page(get_services(request), VIEW, org=org, page_request=page_request)
    )


async def get_view(request: Request, org: Id, view_id: Id) -> Response:
    document, etag = documents.get(get_services(request), VIEW, org=org, id=view_id)
    return json_response(document, etag=etag)


async def put_view(request: Request, org: Id, view_id: Id) -> Response:
    body, value = await parse_json_body(request)
    given = convert_body(value, bodies.NewView)
    document, etag, is_new = await documents.put(
        get_services(request),
        VIEW,
        get_actor(request),
        view_id,
        body=body,
        spec=check_spec(msgspec.convert(msgspec.to_builtins(given.spec), ViewSpec)),
        attributes=bodies.get_attributes(given.metadata),
        if_match=get_if_match(request),
    )
    return json_response(document, etag=etag, status=201 if is_new else 200)


async def delete_view(request: Request, org: Id, view_id: Id) -> Response:
    await documents.delete(
        get_services(request), VIEW, get_actor(request), view_id, if_match=get_if_match(request)
    )
    return empty_response()
