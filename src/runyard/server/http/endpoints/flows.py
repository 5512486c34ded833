"""Routes of flows and of their JSON Schema."""

from runyard.flows import schema
from runyard.server.http import compat
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
from runyard.server.http.responses import Response, empty_response, encode_response, json_response
from runyard.server.services import documents
from runyard.server.services.errors import not_found
from runyard.server.services.runs import accelerators, flow_checks, flows
from runyard.server.services.runs.flows import FLOW


async def list_flows(request: Request, org: Id) -> Response:
    page_request = Query(request).page("flows")
    return json_response(
        await documents.page(get_services(request), FLOW, org=org, page_request=page_request)
    )


async def get_flow(request: Request, org: Id, flow_id: Id) -> Response:
    document, etag = flows.get(get_services(request), org=org, flow_id=flow_id)
    return json_response(compat.encode_flow_with_spec(document), etag=etag)


async def put_flow(request: Request, org: Id, flow_id: Id) -> Response:
    body, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.NewFlow)
    document, etag, is_new = await flows.put(
        get_services(request),
        get_actor(request),
        flow_id,
        body=body,
        spec=given.spec,
        attributes=bodies.get_attributes(given.metadata),
        if_match=get_if_match(request),
    )
    return json_response(document, etag=etag, status=201 if is_new else 200)


async def patch_flow(request: Request, org: Id, flow_id: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.ChangedFlow)
    document, etag = await flows.patch(
        get_services(request),
        get_actor(request),
        flow_id,
        changes=given.spec or {},
        attributes=bodies.get_attributes(given.metadata),
        if_match=get_if_match(request),
    )
    return json_response(document, etag=etag)


async def delete_flow(request: Request, org: Id, flow_id: Id) -> Response:
    await documents.delete(
        get_services(request), FLOW, get_actor(request), flow_id, if_match=get_if_match(request)
    )
    return empty_response()


async def check_flow(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.CheckedFlow)
    found = await flow_checks.check(
        get_services(request), org=org, flow=given.spec, training_project=given.training_project
    )
    return encode_response(found)


async def get_accelerators(request: Request, org: Id, flow_id: Id) -> Response:
    return encode_response(
        await accelerators.list_for_flow(get_services(request), org=org, flow_id=flow_id)
    )


async def get_flow_schema(request: Request, org: Id, version: Id) -> Response:
    if version != "v1":
        raise not_found("flow schema", version)
    return encode_response(schema())
