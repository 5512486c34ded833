"""Routes of datasets themselves, their versions, exports and deletions."""

import msgspec

from runyard.server.http import bodies, compat
from runyard.server.http.request import (
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    fitted,
    if_match_of,
    json_answer,
    json_body,
    origin_of,
    services_of,
)
from runyard.server.http.responses import Response
from runyard.server.services.datasets import datasets, versions
from runyard.server.services.imports import exports
from runyard.store.tables import AnyRow
from vi.api.resources.datasets.responses import DatasetExport, ExportOptions, ExportSpec


async def list_datasets(request: Asked, org: Id) -> Answer:
    wanted = Query(request).page("datasets")
    return json_answer(await datasets.page(services_of(request), org=org, wanted=wanted))


async def post_dataset(request: Asked, org: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(value, bodies.NewDataset)
    made = await datasets.create(
        services_of(request),
        actor_of(request),
        name=given.name,
        type=given.type,
        description=given.description or "",
        attributes=bodies.attributes_of(given.metadata),
    )
    return answer(made, status=201)


async def get_dataset(request: Asked, org: Id, dataset: Id) -> Answer:
    return answer(datasets.get(services_of(request), org=org, dataset_id=compat.dataset_id(org, dataset)))


async def patch_dataset(request: Asked, org: Id, dataset: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(compat.flat_dataset(value), bodies.ChangedDataset)
    changed = await datasets.update(
        services_of(request),
        actor_of(request),
        compat.dataset_id(org, dataset),
        name=given.name,
        description=given.description,
        attributes=bodies.attributes_of(given.metadata),
        if_match=if_match_of(request),
    )
    return answer(changed)


async def delete_dataset(request: Asked, org: Id, dataset: Id) -> Answer:
    """Answered with the state of the deletion, not with nothing: the published client decodes it."""
    deleted = await datasets.delete(
        services_of(request), actor_of(request), compat.dataset_id(org, dataset), if_match=if_match_of(request)
    )
    return answer(deleted)


async def get_deletion(request: Asked, org: Id, dataset: Id) -> Answer:
    return answer(datasets.deletion(services_of(request), org=org, dataset_id=compat.dataset_id(org, dataset)))


async def list_collaborators(request: Asked, org: Id, dataset: Id) -> Answer:
    """Nobody but the organisation itself works at a dataset."""
    Query(request).page("collaborators")
    datasets.get(services_of(request), org=org, dataset_id=compat.dataset_id(org, dataset))
    return json_answer(b'{"items":[],"nextPage":null,"prevPage":null}')


async def get_statistics(request: Asked, org: Id, dataset: Id) -> Answer:
    told = datasets.statistics(services_of(request), org=org, dataset_id=compat.dataset_id(org, dataset))
    return json_answer(msgspec.json.encode(told))


async def list_versions(request: Asked, org: Id, dataset: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    wanted = Query(request).page(f"versions {dataset_id}")
    return json_answer(await versions.page(services_of(request), org=org, dataset_id=dataset_id, wanted=wanted))


async def get_version(request: Asked, org: Id, dataset: Id, version: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    return answer(versions.get(services_of(request), org=org, dataset_id=dataset_id, version=version))


async def get_preview(request: Asked, org: Id, dataset: Id) -> Answer:
    query = Query(request)
    image = await exports.preview(
        services_of(request),
        org=org,
        dataset_id=compat.dataset_id(org, dataset),
        count=query.integer("count", 12, least=1, most=exports.MOST_SHOWN) or 12,
        seed=query.integer("seed", 0, most=2**31) or 0,
        version=query.text("version"),
    )
    return Response(image, media_type=b"image/png")


async def post_export(request: Asked, org: Id, dataset: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(value, bodies.NewExport).spec
    options = given.options or bodies.NewExportOptions()
    spec = ExportSpec(
        format=given.format,
        options=ExportOptions(
            normalized=options.normalized is not False, split_ratio=options.split_ratio, pictures=options.pictures
        ),
    )
    row = await exports.create(services_of(request), actor_of(request), compat.dataset_id(org, dataset), spec=spec)
    return answer(_told(request, row), status=201)


async def list_exports(request: Asked, org: Id, dataset: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    wanted = Query(request).page(f"exports {dataset_id}")
    page = await exports.page(
        services_of(request), org=org, dataset_id=dataset_id, told=lambda row: _told(request, row), wanted=wanted
    )
    return json_answer(page)


async def get_export(request: Asked, org: Id, dataset: Id, export_id: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    return answer(_told(request, exports.get(services_of(request), org=org, dataset_id=dataset_id, id=export_id)))


def _told(request: Asked, row: AnyRow) -> DatasetExport:
    return _narrowed(request, exports.document(services_of(request), row, origin_of(request)))


def _narrowed(request: Asked, export: DatasetExport) -> DatasetExport:
    export.spec.format = compat.export_format(request.headers.get("user-agent", ""), export.spec.format)
    return export
