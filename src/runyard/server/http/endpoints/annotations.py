"""Routes of annotations, and of sessions that upload annotation files."""

from typing import Any

import msgspec

from runyard.server.http import compat
from runyard.server.http.endpoints import bodies
from runyard.server.http.endpoints.assets import parse_crc32c
from runyard.server.http.request import (
    MAX_LIST_ITEMS,
    Id,
    Query,
    Request,
    convert_body,
    get_actor,
    get_origin,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import Response, empty_response, encode_response, json_response
from runyard.server.services.datasets import annotations
from runyard.server.services.imports import annotation_imports, imports, sessions
from runyard.server.services.imports.annotation_imports import NewFile
from vi.api.resources.annotations.responses import AnnotationImportSpec


async def list_annotations(request: Request, org: Id, dataset: Id, asset_id: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    page_request = Query(request).page(f"annotations by record {dataset_id} {asset_id}")
    page = await annotations.page(
        get_services(request),
        org=org,
        dataset_id=dataset_id,
        asset_id=asset_id,
        page_request=page_request,
    )
    return json_response(page)


async def get_annotation(
    request: Request, org: Id, dataset: Id, asset_id: Id, annotation_id: Id
) -> Response:
    found = annotations.get(
        get_services(request),
        org=org,
        dataset_id=compat.parse_dataset_id(org, dataset),
        asset_id=asset_id,
        annotation_id=annotation_id,
    )
    return encode_response(found)


async def change_annotation(
    request: Request, org: Id, dataset: Id, asset_id: Id, annotation_id: Id
) -> Response:
    _, value = await parse_json_body(request)
    dataset_id = compat.parse_dataset_id(org, dataset)
    changed = await annotations.change(
        get_services(request), get_actor(request), dataset_id, asset_id, annotation_id, given=value
    )
    return encode_response(changed)


async def delete_annotation(
    request: Request, org: Id, dataset: Id, asset_id: Id, annotation_id: Id
) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    await annotations.delete(
        get_services(request), get_actor(request), dataset_id, asset_id, annotation_id
    )
    return empty_response()


async def post_session(request: Request, org: Id, dataset: Id) -> Response:
    services = get_services(request)
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.NewAnnotationImport)
    row = await annotation_imports.create(
        services,
        get_actor(request),
        compat.parse_dataset_id(org, dataset),
        spec=msgspec.convert(msgspec.to_builtins(given.spec), AnnotationImportSpec),
        attributes=bodies.get_attributes(given.metadata),
    )
    return encode_response(annotation_imports.to_document(services, row), status=201)


async def list_sessions(request: Request, org: Id, dataset: Id) -> Response:
    services, dataset_id = get_services(request), compat.parse_dataset_id(org, dataset)
    page = await imports.page(
        services,
        org=org,
        dataset_id=dataset_id,
        kind=annotation_imports.KIND,
        to_document=lambda row: annotation_imports.to_document(services, row),
        page_request=Query(request).page(f"annotation imports {dataset_id}"),
    )
    return json_response(page)


async def get_session(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    return encode_response(
        annotation_imports.to_document(
            get_services(request), _get_row(request, org, dataset, session_id)
        )
    )


async def post_files(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    _, value = await parse_json_body(request, most_items=MAX_LIST_ITEMS)
    given = convert_body(value, bodies.NewFiles).files
    files = {
        name: NewFile(file.size_bytes, parse_crc32c(file.crc32c)) for name, file in given.items()
    }
    row = _get_row(request, org, dataset, session_id)
    uploads = await annotation_imports.announce_files(
        get_services(request), get_actor(request), row, files=files, origin=get_origin(request)
    )
    return json_response(uploads)


async def patch_status(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    """Record the outcome that the client reports: all files are sent, or it gives up."""
    services, actor = get_services(request), get_actor(request)
    _, value = await parse_json_body(request)
    outcome = compat.parse_session_outcome(value)
    row = _get_row(request, org, dataset, session_id)
    if outcome == "Inserted":
        row = await annotation_imports.finish(services, actor, row)
    else:
        row = await annotation_imports.give_up(services, actor, row, reason=outcome)
    return encode_response(annotation_imports.to_document(services, row))


async def get_files(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    """Count the files of each status."""
    session = annotation_imports.to_document(
        get_services(request), _get_row(request, org, dataset, session_id)
    )
    return json_response(
        msgspec.json.encode({"items": [], "files": session.status.files, "nextPage": None})
    )


async def get_logs(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    """List the findings, oldest first."""
    row, query = _get_row(request, org, dataset, session_id), Query(request)
    page_request = query.page(f"findings {session_id} None None")
    page = await sessions.read_findings(
        get_services(request), row, severity=None, code=None, page_request=page_request
    )
    return json_response(page)


def _get_row(request: Request, org: str, dataset: str, id: str) -> Any:
    dataset_id = compat.parse_dataset_id(org, dataset)
    return imports.get(
        get_services(request),
        org=org,
        dataset_id=dataset_id,
        import_id=id,
        kind=annotation_imports.KIND,
    )
