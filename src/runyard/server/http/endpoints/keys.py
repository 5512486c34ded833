"""Routes of keys, for admins. Only the response to a creation or a rotation holds the secret.

Both are POST on purpose: the server does not keep the secret, so repeating a PUT whose response was
lost could not return it again. A client that loses a response creates another key and revokes the
first.
"""

from runyard.server.http.endpoints import bodies
from runyard.server.http.request import (
    Id,
    Query,
    Request,
    convert_body,
    get_actor,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import Response, encode_response, json_response
from runyard.server.services.access import key_lifecycle


async def list_keys(request: Request, org: Id) -> Response:
    return json_response(
        await key_lifecycle.page(
            get_services(request), org=org, page_request=Query(request).page("keys")
        )
    )


async def get_key(request: Request, org: Id, key_id: Id) -> Response:
    return encode_response(key_lifecycle.get(get_services(request), org=org, key_id=key_id))


async def post_key(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    spec = convert_body(value, bodies.NewKey).spec
    created = await key_lifecycle.create(
        get_services(request),
        get_actor(request),
        name=spec.name,
        role=spec.role,
        expires=spec.expires,
    )
    return encode_response(created, status=201)


async def delete_key(request: Request, org: Id, key_id: Id) -> Response:
    return encode_response(
        await key_lifecycle.revoke(get_services(request), get_actor(request), key_id)
    )


async def post_rotation(request: Request, org: Id, key_id: Id) -> Response:
    _, value = await parse_json_body(request)
    spec = convert_body(value, bodies.NewRotation).spec
    created = await key_lifecycle.rotate(
        get_services(request),
        get_actor(request),
        key_id,
        overlap_ms=spec.overlap_seconds * 1000,
        expires=spec.expires,
    )
    return encode_response(created, status=201)
