"""Routes of machines: for users, and the one with which a machine joins."""

from runyard import protocol
from runyard.server.http.endpoints import bodies
from runyard.server.http.request import (
    ADDRESS,
    Id,
    Query,
    Request,
    convert_body,
    get_actor,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import (
    Response,
    empty_response,
    encode_response,
    json_response,
)
from runyard.server.services import membership
from runyard.server.services.access import invitations

BOOLEANS = ("true", "false")


async def list_machines(request: Request, org: Id) -> Response:
    page_request = Query(request).page("machines")
    return json_response(
        await membership.page(get_services(request), org=org, page_request=page_request)
    )


async def get_machine(request: Request, org: Id, machine_id: Id) -> Response:
    return encode_response(
        await membership.get(get_services(request), org=org, machine_id=machine_id)
    )


async def patch_machine(request: Request, org: Id, machine_id: Id) -> Response:
    _, value = await parse_json_body(request)
    spec = convert_body(value, bodies.ChangedMachine).spec
    changed = await membership.change(
        get_services(request),
        get_actor(request),
        machine_id,
        state=spec.state,
        within_ms=None if spec.within_seconds is None else spec.within_seconds * 1000,
        note=spec.note,
    )
    return encode_response(changed)


async def delete_machine(request: Request, org: Id, machine_id: Id) -> Response:
    force = Query(request).one_of("force", BOOLEANS) == "true"
    await membership.remove(get_services(request), get_actor(request), machine_id, force=force)
    return empty_response()


async def post_invitation(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    spec = convert_body(value, bodies.NewInvitation).spec
    created = await invitations.create(
        get_services(request),
        get_actor(request),
        labels=spec.labels,
        uses=spec.uses,
        lifetime_ms=spec.lifetime_seconds * 1000,
    )
    return encode_response(created, status=201)


async def delete_invitation(request: Request, org: Id, invitation_id: Id) -> Response:
    await invitations.revoke(get_services(request), get_actor(request), invitation_id)
    return empty_response()


async def post_join(request: Request) -> Response:
    _, value = await parse_json_body(request)
    asked = convert_body(value, protocol.JoinRequest)
    return encode_response(
        await invitations.join(get_services(request), asked, address=request.scope[ADDRESS])
    )
