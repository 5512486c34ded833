"""Routes of datasets themselves, their versions, exports and deletions."""

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
    get_origin,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import Response, encode_response, json_response
from runyard.server.services.datasets import datasets, versions
from runyard.server.services.imports import exports
from runyard.store.tables import AnyRow
from vi.api.resources.datasets.responses import DatasetExport, ExportOptions, ExportSpec


async def list_datasets(request: Request, org: Id) -> Response:
    page_request = Query(request).page("datasets")
    return json_response(
        await datasets.page(get_services(request), org=org, page_request=page_request)
    )


async def post_dataset(request: Request, org: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.NewDataset)
    created = await datasets.create(
        get_services(request),
        get_actor(request),
        name=given.name,
        type=given.type,
        description=given.description or "",
        attributes=bodies.get_attributes(given.metadata),
    )
    return encode_response(created, status=201)


async def get_dataset(request: Request, org: Id, dataset: Id) -> Response:
    return encode_response(
        datasets.get(
            get_services(request), org=org, dataset_id=compat.parse_dataset_id(org, dataset)
        )
    )


async def patch_dataset(request: Request, org: Id, dataset: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(compat.flatten_dataset_spec(value), bodies.ChangedDataset)
    changed = await datasets.update(
        get_services(request),
        get_actor(request),
        compat.parse_dataset_id(org, dataset),
        name=given.name,
        description=given.description,
        attributes=bodies.get_attributes(given.metadata),
        if_match=get_if_match(request),
    )
    return encode_response(changed)


async def delete_dataset(request: Request, org: Id, dataset: Id) -> Response:
    """Return the state of the deletion, since the published client decodes it."""
    deleted = await datasets.delete(
        get_services(request),
        get_actor(request),
        compat.parse_dataset_id(org, dataset),
        if_match=get_if_match(request),
    )
    return encode_response(deleted)


async def get_deletion(request: Request, org: Id, dataset: Id) -> Response:
    return encode_response(
        datasets.get_deletion(
            get_services(request), org=org, dataset_id=compat.parse_dataset_id(org, dataset)
        )
    )


async def list_collaborators(request: Request, org: Id, dataset: Id) -> Response:
    """Return an empty page: a dataset has no collaborators besides its organization."""
    Query(request).page("collaborators")
    datasets.get(get_services(request), org=org, dataset_id=compat.parse_dataset_id(org, dataset))
    return json_response(b'{"items":[],"nextPage":null,"prevPage":null}')


async def get_statistics(request: Request, org: Id, dataset: Id) -> Response:
    statistics = datasets.get_statistics(
        get_services(request), org=org, dataset_id=compat.parse_dataset_id(org, dataset)
    )
    return json_response(msgspec.json.encode(statistics))


async def list_versions(request: Request, org: Id, dataset: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    page_request = Query(request).page(f"versions {dataset_id}")
    return json_response(
        await versions.page(
            get_services(request), org=org, dataset_id=dataset_id, page_request=page_request
        )
    )


async def get_version(request: Request, org: Id, dataset: Id, version: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    return encode_response(
        versions.get(get_services(request), org=org, dataset_id=dataset_id, version=version)
    )


async def get_preview(request: Request, org: Id, dataset: Id) -> Response:
    query = Query(request)
    image = await exports.preview(
        get_services(request),
        org=org,
        dataset_id=compat.parse_dataset_id(org, dataset),
        count=query.integer("count", 12, minimum=1, maximum=exports.MOST_SHOWN) or 12,
        seed=query.integer("seed", 0, maximum=2**31) or 0,
        version=query.text("version"),
    )
    return Response(image, media_type=b"image/png")


async def post_export(request: Request, org: Id, dataset: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.NewExport).spec
    options = given.options or bodies.NewExportOptions()
    spec = ExportSpec(
        format=given.format,
        options=ExportOptions(
            normalized=options.normalized is not False,
            split_ratio=options.split_ratio,
            pictures=options.pictures,
        ),
    )
    row = await exports.create(
        get_services(request), get_actor(request), compat.parse_dataset_id(org, dataset), spec=spec
    )
    return encode_response(_build_export(request, row), status=201)


async def list_exports(request: Request, org: Id, dataset: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    page_request = Query(request).page(f"exports {dataset_id}")
    page = await exports.page(
        get_services(request),
        org=org,
        dataset_id=dataset_id,
        to_document=lambda row: _build_export(request, row),
        page_request=page_request,
    )
    return json_response(page)


async def get_export(request: Request, org: Id, dataset: Id, export_id: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    return encode_response(
        _build_export(
            request,
            exports.get(get_services(request), org=org, dataset_id=dataset_id, id=export_id),
        )
    )


def _build_export(request: Request, row: AnyRow) -> DatasetExport:
    return _adapt_export_format(
        request, exports.to_document(get_services(request), row, get_origin(request))
    )


def _adapt_export_format(request: Request, export: DatasetExport) -> DatasetExport:
    export.spec.format = compat.choose_export_format(
        request.headers.get("user-agent", ""), export.spec.format
    )
    return export
