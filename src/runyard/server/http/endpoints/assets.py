"""Routes of images, and of the sessions in which the published client uploads them."""

import base64
import binascii
from typing import Any

import msgspec

from runyard.server.http import compat
from runyard.server.http.endpoints import bodies
from runyard.server.http.request import (
    MAX_LIST_ITEMS,
    Id,
    Query,
    Request,
    check_query_text,
    convert_body,
    get_actor,
    get_origin,
    get_services,
    invalid_query,
    parse_json_body,
)
from runyard.server.http.responses import Response, empty_response, encode_response, json_response
from runyard.server.services.datasets import assets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.imports import imports, ingestion, multipart
from runyard.store.datasets.assets import SORTINGS
from vi.api.resources.assets.responses import (
    AnnouncedAsset,
    AssetCount,
    IngestionSpec,
    MultipartSpec,
    MultipartStatus,
    MultipartUpload,
    PartUpload,
)
from vi.api.resources.datasets.responses import BulkDeletionSpec

ORDERS = ("asc", "desc")


async def list_assets(request: Request, org: Id, dataset: Id) -> Response:
    query, dataset_id = Query(request), compat.parse_dataset_id(org, dataset)
    sorting = query.one_of("sortBy", SORTINGS) or "default"
    order = query.one_of("o", ORDERS) or "asc"
    like = _parse_name_filter(query)
    page_request = query.page(f"assets {dataset_id} {sorting} {order} {like}")
    if compat.cannot_page(request.headers.get("user-agent", "")):
        page_request = compat.request_whole_list(page_request, max_items=assets.MOST_IN_ONE_PAGE)
    page = await assets.page(
        get_services(request),
        org=org,
        dataset_id=dataset_id,
        sorting=sorting,
        descending=order == "desc",
        like=like,
        origin=_link_origin(request, query),
        page_request=page_request,
    )
    return json_response(page)


async def get_asset(request: Request, org: Id, dataset: Id, asset_id: Id) -> Response:
    dataset_id, origin = (
        compat.parse_dataset_id(org, dataset),
        _link_origin(request, Query(request)),
    )
    return encode_response(
        assets.get(
            get_services(request), org=org, dataset_id=dataset_id, asset_id=asset_id, origin=origin
        )
    )


async def count_assets(request: Request, org: Id, dataset: Id) -> Response:
    dataset_id, like = compat.parse_dataset_id(org, dataset), _parse_name_filter(Query(request))
    return encode_response(
        AssetCount(
            count=assets.count(get_services(request), org=org, dataset_id=dataset_id, like=like)
        )
    )


async def rename_asset(request: Request, org: Id, dataset: Id, asset_id: Id) -> Response:
    return await _rename(request, org, dataset, asset_id=asset_id)


async def rename_file(request: Request, org: Id, dataset: Id, filename: Id) -> Response:
    return await _rename(request, org, dataset, filename=filename)


async def _rename(request: Request, org: str, dataset: str, **which: str) -> Response:
    _, value = await parse_json_body(request)
    new = convert_body(value, bodies.NewName).filename
    renamed = await assets.rename(
        get_services(request),
        get_actor(request),
        compat.parse_dataset_id(org, dataset),
        **which,
        new=new,
    )
    return encode_response(renamed)


async def delete_asset(request: Request, org: Id, dataset: Id, asset_id: Id) -> Response:
    await assets.delete(
        get_services(request), get_actor(request), compat.parse_dataset_id(org, dataset), asset_id
    )
    return empty_response()


async def post_bulk_deletion(request: Request, org: Id, dataset: Id) -> Response:
    _, value = await parse_json_body(request)
    given = msgspec.convert(
        msgspec.to_builtins(convert_body(value, bodies.NewBulkDeletion).spec), BulkDeletionSpec
    )
    dataset_id = compat.parse_dataset_id(org, dataset)
    return encode_response(
        await assets.delete_many(get_services(request), get_actor(request), dataset_id, spec=given),
        status=201,
    )


async def list_bulk_deletions(request: Request, org: Id, dataset: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    page_request = Query(request).page(f"bulk deletions {dataset_id}")
    return json_response(
        await assets.page_bulk_deletions(
            get_services(request), org=org, dataset_id=dataset_id, page_request=page_request
        )
    )


async def get_bulk_deletion(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    dataset_id = compat.parse_dataset_id(org, dataset)
    return encode_response(
        assets.get_bulk_deletion(
            get_services(request), org=org, dataset_id=dataset_id, id=session_id
        )
    )


async def post_ingestion(request: Request, org: Id, dataset: Id) -> Response:
    services = get_services(request)
    _, value = await parse_json_body(request, most_items=MAX_LIST_ITEMS)
    given = convert_body(value, bodies.NewIngestion).spec
    spec = IngestionSpec(
        kind=given.kind,
        failure_mode=given.failure_mode,
        on_asset_overwritten=compat.normalize_overwrite_policy(given.on_asset_overwritten),
    )
    files = [msgspec.convert(msgspec.to_builtins(file), AnnouncedAsset) for file in given.assets]
    row = await ingestion.create(
        services, get_actor(request), compat.parse_dataset_id(org, dataset), spec=spec, files=files
    )
    origin = get_origin(request)
    # Signing thousands of addresses takes long, so it runs on a reader thread.
    body = await services.store.read_in_thread(
        lambda _: msgspec.json.encode(ingestion.to_document(services, row, origin=origin))
    )
    return json_response(body, status=201)


async def list_ingestions(request: Request, org: Id, dataset: Id) -> Response:
    services, dataset_id = get_services(request), compat.parse_dataset_id(org, dataset)
    page_request = Query(request).page(f"ingestions {dataset_id}")
    if compat.cannot_page(request.headers.get("user-agent", "")):
        page_request = compat.request_whole_list(page_request, max_items=assets.MOST_IN_ONE_PAGE)
    page = await imports.page(
        services,
        org=org,
        dataset_id=dataset_id,
        kind=ingestion.KIND,
        to_document=lambda row: ingestion.to_document(services, row),
        page_request=page_request,
    )
    return json_response(page)


async def get_ingestion(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    return encode_response(
        ingestion.to_document(
            get_services(request), _get_session(request, org, dataset, session_id)
        )
    )


async def act_on_ingestion(request: Request, org: Id, dataset: Id, session_id: Id) -> Response:
    """Cancel a session: ``{id}:cancel``."""
    id, _, action = session_id.partition(":")
    if action != "cancel":
        raise not_found("ingestion session", session_id)
    row = await imports.cancel(
        get_services(request), get_actor(request), _get_session(request, org, dataset, id)
    )
    return encode_response(ingestion.to_document(get_services(request), row))


async def post_multipart(request: Request, org: Id, dataset: Id) -> Response:
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.NewMultipart).spec
    row = _get_session(request, org, dataset, given.ingestion_id)
    id, parts = await multipart.begin(
        get_services(request),
        get_actor(request),
        row,
        filename=given.filename,
        size_bytes=given.size_bytes,
    )
    sent = {name: value for name, value in msgspec.to_builtins(given).items() if value is not None}
    spec = msgspec.convert(sent, MultipartSpec)
    return encode_response(_build_multipart(row.org, row.dataset_id, id, spec, parts), status=201)


async def post_part(request: Request, org: Id, dataset: Id, upload_id: Id, part: Id) -> Response:
    services = get_services(request)
    row, about = multipart.get(
        services, org=org, dataset_id=compat.parse_dataset_id(org, dataset), id=upload_id
    )
    url = multipart.sign_part_url(
        services, row, upload_id, about, part=_parse_part_number(part), origin=get_origin(request)
    )
    return encode_response(
        PartUpload(
            url=url, expiry=imports.get_upload_expiry(services, row), response_headers=["ETag"]
        )
    )


async def post_part_completion(
    request: Request, org: Id, dataset: Id, upload_id: Id, part: Id
) -> Response:
    """Check that a part has arrived: the server has recorded it on upload."""
    services = get_services(request)
    multipart.get(services, org=org, dataset_id=compat.parse_dataset_id(org, dataset), id=upload_id)
    if not multipart.has_part(services, org, upload_id, _parse_part_number(part)):
        raise Refusal("BlobMissing", f"part {part[:20]} has not arrived; try: send it, then repeat")
    return json_response(b"{}")


async def post_multipart_completion(
    request: Request, org: Id, dataset: Id, upload_id: Id
) -> Response:
    services = get_services(request)
    row, about = multipart.get(
        services, org=org, dataset_id=compat.parse_dataset_id(org, dataset), id=upload_id
    )
    await multipart.complete(services, get_actor(request), row, upload_id, about)
    spec = MultipartSpec(ingestion_id=row.id, size_bytes=about["sizeBytes"])
    return encode_response(
        _build_multipart(row.org, row.dataset_id, upload_id, spec, about["parts"])
    )


async def delete_multipart(request: Request, org: Id, dataset: Id, upload_id: Id) -> Response:
    services = get_services(request)
    row, _ = multipart.get(
        services, org=org, dataset_id=compat.parse_dataset_id(org, dataset), id=upload_id
    )
    await multipart.abort(services, get_actor(request), row, upload_id)
    return empty_response()


def parse_crc32c(text: str | None) -> int | None:
    """Parse a CRC-32C: base64 of four bytes, the most significant first."""
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != 4:
        raise Refusal(
            "InvalidBody", f"crc32c is {text[:20]!r}; try: base64 of its four bytes, or omit it"
        )
    return int.from_bytes(data, "big")


def _build_multipart(
    org: str, dataset_id: str, id: str, spec: MultipartSpec, parts: int
) -> MultipartUpload:
    return MultipartUpload(
        organization_id=org,
        dataset_id=dataset_id,
        multipart_upload_id=id,
        spec=spec,
        status=MultipartStatus(part_count=parts),
        etag="1",
    )


def _get_session(request: Request, org: str, dataset: str, id: str) -> Any:
    dataset_id = compat.parse_dataset_id(org, dataset)
    return imports.get(
        get_services(request), org=org, dataset_id=dataset_id, import_id=id, kind=ingestion.KIND
    )


def _parse_part_number(part: str) -> int:
    if not part.isascii() or not part.isdigit() or len(part) > 6:
        raise invalid_query("part", part, "a number from 1")
    return int(part)


def _parse_name_filter(query: Query) -> list[str]:
    texts = compat.parse_name_filter(query.text("filter"))
    for text in texts:
        check_query_text("filter", text)  # escapes in a dictionary may stand for NUL
    return texts


def _link_origin(request: Request, query: Query) -> str | None:
    return get_origin(request) if query.text("contents") == "y" else None
