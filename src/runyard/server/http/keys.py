"""Routes of keys; for admins. A secret is in the response to a creation or a rotation, and nowhere else.

Both are POST on purpose: repeating a PUT whose response was lost could not return the secret again, since the server
does not keep it. Whoever loses a response creates another key and revokes the first.
"""

from runyard.server.http import bodies
from runyard.server.http.request import (
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    fitted,
    json_answer,
    json_body,
    services_of,
)
from runyard.server.services.access import key_lifecycle


async def list_keys(request: Asked, org: Id) -> Answer:
    return json_answer(await key_lifecycle.page(services_of(request), org=org, wanted=Query(request).page("keys")))


async def get_key(request: Asked, org: Id, key_id: Id) -> Answer:
    return answer(key_lifecycle.get(services_of(request), org=org, key_id=key_id))


async def post_key(request: Asked, org: Id) -> Answer:
    _, value = await json_body(request)
    spec = fitted(value, bodies.NewKey).spec
    created = await key_lifecycle.create(
        services_of(request), actor_of(request), name=spec.name, role=spec.role, expires=spec.expires
    )
    return answer(created, status=201)


async def delete_key(request: Asked, org: Id, key_id: Id) -> Answer:
    return answer(await key_lifecycle.revoke(services_of(request), actor_of(request), key_id))


async def post_rotation(request: Asked, org: Id, key_id: Id) -> Answer:
    _, value = await json_body(request)
    spec = fitted(value, bodies.NewRotation).spec
    created = await key_lifecycle.rotate(
        services_of(request),
        actor_of(request),
        key_id,
        overlap_ms=spec.overlap_seconds * 1000,
        expires=spec.expires,
    )
    return answer(created, status=201)
