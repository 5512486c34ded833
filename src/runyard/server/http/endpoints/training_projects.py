"""Routes of training projects."""

import msgspec

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
from runyard.server.http.responses import Response, empty_response, json_response
from runyard.server.services import documents
from runyard.server.services.runs.training_projects import TRAINING_PROJECT, check_spec, merge_spec
from vi.api.resources.training_projects.responses import TrainingProjectSpec


async def list_projects(request: Request, org: Id) -> Response:
    page_request = Query(request).page("trainingProjects")
    return json_response(
        await documents.page(
            get_services(request), TRAINING_PROJECT, org=org, page_request=page_request
        )
    )


async def get_project(request: Request, org: Id, project_id: Id) -> Response:
    document, etag = documents.get(get_services(request), TRAINING_PROJECT, org=org, id=project_id)
    return json_response(document, etag=etag)


async def put_project(request: Request, org: Id, project_id: Id) -> Response:
    body, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.NewProject)
    document, etag, is_new = await documents.put(
        get_services(request),
        TRAINING_PROJECT,
        get_actor(request),
        project_id,
        body=body,
        spec=check_spec(msgspec.convert(msgspec.to_builtins(given.spec), TrainingProjectSpec)),
        attributes=bodies.get_attributes(given.metadata),
        if_match=get_if_match(request),
    )
    return json_response(document, etag=etag, status=201 if is_new else 200)


async def patch_project(request: Request, org: Id, project_id: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(compat.normalize_spec_keys(value), bodies.ChangedProject)
    changes = msgspec.to_builtins(given.spec) if given.spec else {}
    document, etag = await documents.patch(
        get_services(request),
        TRAINING_PROJECT,
        get_actor(request),
        project_id,
        new_spec=lambda old: merge_spec(old, changes),
        attributes=bodies.get_attributes(given.metadata),
        if_match=get_if_match(request),
    )
    return json_response(document, etag=etag)


async def delete_project(request: Request, org: Id, project_id: Id) -> Response:
    await documents.delete(
        get_services(request),
        TRAINING_PROJECT,
        get_actor(request),
        project_id,
        if_match=get_if_match(request),
    )
    return empty_response()
