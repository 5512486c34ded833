"""Routes of training projects."""

import msgspec

from runyard.server.http import bodies, compat
from runyard.server.http.request import (
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    empty,
    fitted,
    if_match_of,
    json_answer,
    json_body,
    services_of,
)
from runyard.server.services import documents
from runyard.server.services.runs.training_projects import TRAINING_PROJECT, checked_spec, merged_spec
from vi.api.resources.training_projects.responses import TrainingProjectSpec


async def list_projects(request: Asked, org: Id) -> Answer:
    wanted = Query(request).page("trainingProjects")
    return json_answer(await documents.page(services_of(request), TRAINING_PROJECT, org=org, wanted=wanted))


async def get_project(request: Asked, org: Id, project_id: Id) -> Answer:
    document, etag = documents.get(services_of(request), TRAINING_PROJECT, org=org, id=project_id)
    return json_answer(document, etag=etag)


async def put_project(request: Asked, org: Id, project_id: Id) -> Answer:
    body, value = await json_body(request)
    given = fitted(compat.camel_spec(value), bodies.NewProject)
    document, etag, is_new = await documents.put(
        services_of(request),
        TRAINING_PROJECT,
        actor_of(request),
        project_id,
        body=body,
        spec=checked_spec(msgspec.convert(msgspec.to_builtins(given.spec), TrainingProjectSpec)),
        attributes=bodies.attributes_of(given.metadata),
        if_match=if_match_of(request),
    )
    return json_answer(document, etag=etag, status=201 if is_new else 200)


async def patch_project(request: Asked, org: Id, project_id: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(compat.camel_spec(value), bodies.ChangedProject)
    changes = msgspec.to_builtins(given.spec) if given.spec else {}
    document, etag = await documents.patch(
        services_of(request),
        TRAINING_PROJECT,
        actor_of(request),
        project_id,
        new_spec=lambda old: merged_spec(old, changes),
        attributes=bodies.attributes_of(given.metadata),
        if_match=if_match_of(request),
    )
    return json_answer(document, etag=etag)


async def delete_project(request: Asked, org: Id, project_id: Id) -> Answer:
    await documents.delete(
        services_of(request), TRAINING_PROJECT, actor_of(request), project_id, if_match=if_match_of(request)
    )
    return empty()
