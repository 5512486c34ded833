"""Routes of an organisation's storage: whether store and disk agree, and the removal of what nothing needs."""

from runyard.server.http.request import Answer, Asked, Id, actor_of, answer, services_of
from runyard.server.services.operations import storage


async def get_storage(request: Asked, org: Id) -> Answer:
    return answer(await storage.check(services_of(request), org=org))


async def post_collection(request: Asked, org: Id) -> Answer:
    return answer(await storage.collect(services_of(request), actor_of(request)))
