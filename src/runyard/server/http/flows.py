"""Routes of flows and of the schema they are written in."""

from runyard.flows import schema
from runyard.server.http import bodies, compat
from runyard.server.http.request import (
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    empty,
    fitted,
    if_match_of,
    json_answer,
    json_body,
    services_of,
)
from runyard.server.services import documents
from runyard.server.services.errors import not_found
from runyard.server.services.runs import accelerators, flows
from runyard.server.services.runs.flows import FLOW


async def list_flows(request: Asked, org: Id) -> Answer:
    wanted = Query(request).page("flows")
    return json_answer(await documents.page(services_of(request), FLOW, org=org, wanted=wanted))


async def get_flow(request: Asked, org: Id, flow_id: Id) -> Answer:
    document, etag = flows.get(services_of(request), org=org, flow_id=flow_id)
    return json_answer(compat.doubled_flow(document), etag=etag)


async def put_flow(request: Asked, org: Id, flow_id: Id) -> Answer:
    body, value = await json_body(request)
    given = fitted(compat.camel_spec(value), bodies.NewFlow)
    document, etag, is_new = await flows.put(
        services_of(request),
        actor_of(request),
        flow_id,
        body=body,
        spec=given.spec,
        attributes=bodies.attributes_of(given.metadata),
        if_match=if_match_of(request),
    )
    return json_answer(document, etag=etag, status=201 if is_new else 200)


async def patch_flow(request: Asked, org: Id, flow_id: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(compat.camel_spec(value), bodies.ChangedFlow)
    document, etag = await flows.patch(
        services_of(request),
        actor_of(request),
        flow_id,
        changes=given.spec or {},
        attributes=bodies.attributes_of(given.metadata),
        if_match=if_match_of(request),
    )
    return json_answer(document, etag=etag)


async def delete_flow(request: Asked, org: Id, flow_id: Id) -> Answer:
    await documents.delete(services_of(request), FLOW, actor_of(request), flow_id, if_match=if_match_of(request))
    return empty()


async def get_accelerators(request: Asked, org: Id, flow_id: Id) -> Answer:
    return answer(await accelerators.of_flow(services_of(request), org=org, flow_id=flow_id))


async def get_flow_schema(request: Asked, org: Id, version: Id) -> Answer:
    if version != "v1":
        raise not_found("flow schema", version)
    return answer(schema())
