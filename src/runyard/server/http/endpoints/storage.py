"""Routes of an organization's storage: compare database and disk, and remove what nothing needs."""

from runyard.server.http.request import Id, Request, get_actor, get_services
from runyard.server.http.responses import Response, encode_response
from runyard.server.services.operations import storage


async def get_storage(request: Request, org: Id) -> Response:
    return encode_response(await storage.check(get_services(request), org=org))


async def post_collection(request: Request, org: Id) -> Response:
    return encode_response(await storage.collect(get_services(request), get_actor(request)))
