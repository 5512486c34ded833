"""Routes of annotations, and of the sessions in which the published client sends files of them."""

from typing import Any

import msgspec

from runyard.server.http import bodies, compat
from runyard.server.http.assets import crc32c_of
from runyard.server.http.request import (
    MOST_ITEMS_OF_LISTS,
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    empty,
    fitted,
    json_answer,
    json_body,
    origin_of,
    services_of,
)
from runyard.server.services.datasets import annotations
from runyard.server.services.imports import annotation_imports, imports, sessions
from runyard.server.services.imports.annotation_imports import NewFile
from vi.api.resources.annotations.responses import AnnotationImportSpec


async def list_annotations(request: Asked, org: Id, dataset: Id, asset_id: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    wanted = Query(request).page(f"annotations by record {dataset_id} {asset_id}")
    page = await annotations.page(
        services_of(request), org=org, dataset_id=dataset_id, asset_id=asset_id, wanted=wanted
    )
    return json_answer(page)


async def get_annotation(request: Asked, org: Id, dataset: Id, asset_id: Id, annotation_id: Id) -> Answer:
    found = annotations.get(
        services_of(request),
        org=org,
        dataset_id=compat.dataset_id(org, dataset),
        asset_id=asset_id,
        annotation_id=annotation_id,
    )
    return answer(found)


async def change_annotation(request: Asked, org: Id, dataset: Id, asset_id: Id, annotation_id: Id) -> Answer:
    _, value = await json_body(request)
    dataset_id = compat.dataset_id(org, dataset)
    changed = await annotations.change(
        services_of(request), actor_of(request), dataset_id, asset_id, annotation_id, given=value
    )
    return answer(changed)


async def delete_annotation(request: Asked, org: Id, dataset: Id, asset_id: Id, annotation_id: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    await annotations.delete(services_of(request), actor_of(request), dataset_id, asset_id, annotation_id)
    return empty()


async def post_session(request: Asked, org: Id, dataset: Id) -> Answer:
    services = services_of(request)
    _, value = await json_body(request)
    given = fitted(value, bodies.NewAnnotationImport)
    row = await annotation_imports.create(
        services,
        actor_of(request),
        compat.dataset_id(org, dataset),
        spec=msgspec.convert(msgspec.to_builtins(given.spec), AnnotationImportSpec),
        attributes=bodies.attributes_of(given.metadata),
    )
    return answer(annotation_imports.document(services, row), status=201)


async def list_sessions(request: Asked, org: Id, dataset: Id) -> Answer:
    services, dataset_id = services_of(request), compat.dataset_id(org, dataset)
    page = await imports.listed(
        services,
        org=org,
        dataset_id=dataset_id,
        kind=annotation_imports.KIND,
        told=lambda row: annotation_imports.document(services, row),
        wanted=Query(request).page(f"annotation imports {dataset_id}"),
    )
    return json_answer(page)


async def get_session(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    return answer(annotation_imports.document(services_of(request), _row(request, org, dataset, session_id)))


async def post_files(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    _, value = await json_body(request, most_items=MOST_ITEMS_OF_LISTS)
    given = fitted(value, bodies.NewFiles).files
    files = {name: NewFile(file.size_bytes, crc32c_of(file.crc32c)) for name, file in given.items()}
    row = _row(request, org, dataset, session_id)
    places = await annotation_imports.announce(
        services_of(request), actor_of(request), row, files=files, origin=origin_of(request)
    )
    return json_answer(places)


async def patch_status(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    """The client's word: all files are there, or it gives up."""
    services, actor = services_of(request), actor_of(request)
    _, value = await json_body(request)
    outcome = compat.session_outcome(value)
    row = _row(request, org, dataset, session_id)
    if outcome == "Inserted":
        row = await annotation_imports.inserted(services, actor, row)
    else:
        row = await annotation_imports.given_up(services, actor, row, reason=outcome)
    return answer(annotation_imports.document(services, row))


async def get_files(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    """How many files of each status there are."""
    told = annotation_imports.document(services_of(request), _row(request, org, dataset, session_id))
    return json_answer(msgspec.json.encode({"items": [], "files": told.status.files, "nextPage": None}))


async def get_logs(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    """What was found, in the order in which it was found."""
    row, query = _row(request, org, dataset, session_id), Query(request)
    wanted = query.page(f"findings {session_id} None None")
    page = await sessions.findings(services_of(request), row, severity=None, code=None, wanted=wanted)
    return json_answer(page)


def _row(request: Asked, org: str, dataset: str, id: str) -> Any:
    dataset_id = compat.dataset_id(org, dataset)
    return imports.get(services_of(request), org=org, dataset_id=dataset_id, import_id=id, kind=annotation_imports.KIND)
