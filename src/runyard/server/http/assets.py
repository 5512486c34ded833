"""Routes of pictures, and of the sessions in which the published client sends them."""

import base64
import binascii
from typing import Any

import msgspec

from runyard.server.http import bodies, compat
from runyard.server.http.request import (
    MOST_ITEMS_OF_LISTS,
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    bad_query,
    check_query_text,
    empty,
    fitted,
    json_answer,
    json_body,
    origin_of,
    services_of,
)
from runyard.server.services.datasets import assets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.imports import imports, ingestion, multipart
from runyard.store.assets import SORTINGS
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


async def list_assets(request: Asked, org: Id, dataset: Id) -> Answer:
    query, dataset_id = Query(request), compat.dataset_id(org, dataset)
    sorting = query.one_of("sortBy", SORTINGS) or "default"
    order = query.one_of("o", ORDERS) or "asc"
    like = _like(query)
    wanted = query.page(f"assets {dataset_id} {sorting} {order} {like}")
    if compat.cannot_page(request.headers.get("user-agent", "")):
        wanted = compat.one_page(wanted, most=assets.MOST_IN_ONE_PAGE)
    page = await assets.page(
        services_of(request),
        org=org,
        dataset_id=dataset_id,
        sorting=sorting,
        descending=order == "desc",
        like=like,
        origin=_link_origin(request, query),
        wanted=wanted,
    )
    return json_answer(page)


async def get_asset(request: Asked, org: Id, dataset: Id, asset_id: Id) -> Answer:
    dataset_id, origin = compat.dataset_id(org, dataset), _link_origin(request, Query(request))
    return answer(assets.get(services_of(request), org=org, dataset_id=dataset_id, asset_id=asset_id, origin=origin))


async def count_assets(request: Asked, org: Id, dataset: Id) -> Answer:
    dataset_id, like = compat.dataset_id(org, dataset), _like(Query(request))
    return answer(AssetCount(count=assets.count(services_of(request), org=org, dataset_id=dataset_id, like=like)))


async def rename_asset(request: Asked, org: Id, dataset: Id, asset_id: Id) -> Answer:
    return await _rename(request, org, dataset, asset_id=asset_id)


async def rename_file(request: Asked, org: Id, dataset: Id, filename: Id) -> Answer:
    return await _rename(request, org, dataset, filename=filename)


async def _rename(request: Asked, org: str, dataset: str, **which: str) -> Answer:
    _, value = await json_body(request)
    new = fitted(value, bodies.NewName).filename
    renamed = await assets.rename(
        services_of(request), actor_of(request), compat.dataset_id(org, dataset), **which, new=new
    )
    return answer(renamed)


async def delete_asset(request: Asked, org: Id, dataset: Id, asset_id: Id) -> Answer:
    await assets.delete(services_of(request), actor_of(request), compat.dataset_id(org, dataset), asset_id)
    return empty()


async def post_bulk_deletion(request: Asked, org: Id, dataset: Id) -> Answer:
    _, value = await json_body(request)
    given = msgspec.convert(msgspec.to_builtins(fitted(value, bodies.NewBulkDeletion).spec), BulkDeletionSpec)
    dataset_id = compat.dataset_id(org, dataset)
    return answer(await assets.delete_many(services_of(request), actor_of(request), dataset_id, spec=given), status=201)


async def list_bulk_deletions(request: Asked, org: Id, dataset: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    wanted = Query(request).page(f"bulk deletions {dataset_id}")
    return json_answer(await assets.bulks(services_of(request), org=org, dataset_id=dataset_id, wanted=wanted))


async def get_bulk_deletion(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    dataset_id = compat.dataset_id(org, dataset)
    return answer(assets.bulk(services_of(request), org=org, dataset_id=dataset_id, id=session_id))


async def post_ingestion(request: Asked, org: Id, dataset: Id) -> Answer:
    services = services_of(request)
    _, value = await json_body(request, most_items=MOST_ITEMS_OF_LISTS)
    given = fitted(value, bodies.NewIngestion).spec
    spec = IngestionSpec(
        kind=given.kind,
        failure_mode=given.failure_mode,
        on_asset_overwritten=compat.overwritten_policy(given.on_asset_overwritten),
    )
    files = [msgspec.convert(msgspec.to_builtins(file), AnnouncedAsset) for file in given.assets]
    row = await ingestion.create(services, actor_of(request), compat.dataset_id(org, dataset), spec=spec, files=files)
    origin = origin_of(request)
    # Thousands of signed addresses: made on a reader's thread.
    body = await services.store.read_aside(
        lambda _: msgspec.json.encode(ingestion.document(services, row, origin=origin))
    )
    return json_answer(body, status=201)


async def list_ingestions(request: Asked, org: Id, dataset: Id) -> Answer:
    services, dataset_id = services_of(request), compat.dataset_id(org, dataset)
    wanted = Query(request).page(f"ingestions {dataset_id}")
    if compat.cannot_page(request.headers.get("user-agent", "")):
        wanted = compat.one_page(wanted, most=assets.MOST_IN_ONE_PAGE)
    page = await imports.listed(
        services,
        org=org,
        dataset_id=dataset_id,
        kind=ingestion.KIND,
        told=lambda row: ingestion.document(services, row),
        wanted=wanted,
    )
    return json_answer(page)


async def get_ingestion(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    return answer(ingestion.document(services_of(request), _session(request, org, dataset, session_id)))


async def act_on_ingestion(request: Asked, org: Id, dataset: Id, session_id: Id) -> Answer:
    """``{id}:cancel``."""
    id, _, action = session_id.partition(":")
    if action != "cancel":
        raise not_found("ingestion session", session_id)
    row = await imports.cancel(services_of(request), actor_of(request), _session(request, org, dataset, id))
    return answer(ingestion.document(services_of(request), row))


async def post_multipart(request: Asked, org: Id, dataset: Id) -> Answer:
    _, value = await json_body(request)
    given = fitted(value, bodies.NewMultipart).spec
    row = _session(request, org, dataset, given.ingestion_id)
    id, parts = await multipart.begin(
        services_of(request), actor_of(request), row, filename=given.filename, size_bytes=given.size_bytes
    )
    sent = {name: value for name, value in msgspec.to_builtins(given).items() if value is not None}
    spec = msgspec.convert(sent, MultipartSpec)
    return answer(_multipart(row.org, row.dataset_id, id, spec, parts), status=201)


async def post_part(request: Asked, org: Id, dataset: Id, upload_id: Id, part: Id) -> Answer:
    services = services_of(request)
    row, about = multipart.found(services, org=org, dataset_id=compat.dataset_id(org, dataset), id=upload_id)
    url = multipart.part_url(services, row, upload_id, about, part=_number(part), origin=origin_of(request))
    return answer(PartUpload(url=url, expiry=imports.ingestion_end(services, row), response_headers=["ETag"]))


async def post_part_completion(request: Asked, org: Id, dataset: Id, upload_id: Id, part: Id) -> Answer:
    """What came of a part is known here already; the client's word is only that it has sent it."""
    services = services_of(request)
    multipart.found(services, org=org, dataset_id=compat.dataset_id(org, dataset), id=upload_id)
    if not multipart.has_part(services, org, upload_id, _number(part)):
        raise Refusal("BlobMissing", f"part {part[:20]} has not come; send it, then repeat")
    return json_answer(b"{}")


async def post_multipart_completion(request: Asked, org: Id, dataset: Id, upload_id: Id) -> Answer:
    services = services_of(request)
    row, about = multipart.found(services, org=org, dataset_id=compat.dataset_id(org, dataset), id=upload_id)
    await multipart.complete(services, actor_of(request), row, upload_id, about)
    spec = MultipartSpec(ingestion_id=row.id, size_bytes=about["sizeBytes"])
    return answer(_multipart(row.org, row.dataset_id, upload_id, spec, about["parts"]))


async def delete_multipart(request: Asked, org: Id, dataset: Id, upload_id: Id) -> Answer:
    services = services_of(request)
    row, _ = multipart.found(services, org=org, dataset_id=compat.dataset_id(org, dataset), id=upload_id)
    await multipart.abort(services, actor_of(request), row, upload_id)
    return empty()


def crc32c_of(text: str | None) -> int | None:
    """The number in base64 of four bytes, the most significant first."""
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != 4:
        raise Refusal("InvalidBody", f"crc32c is {text[:20]!r}; give base64 of its four bytes, or leave it out")
    return int.from_bytes(data, "big")


def _multipart(org: str, dataset_id: str, id: str, spec: MultipartSpec, parts: int) -> MultipartUpload:
    return MultipartUpload(
        organization_id=org,
        dataset_id=dataset_id,
        multipart_upload_id=id,
        spec=spec,
        status=MultipartStatus(part_count=parts),
        etag="1",
    )


def _session(request: Asked, org: str, dataset: str, id: str) -> Any:
    dataset_id = compat.dataset_id(org, dataset)
    return imports.get(services_of(request), org=org, dataset_id=dataset_id, import_id=id, kind=ingestion.KIND)


def _number(part: str) -> int:
    if not part.isascii() or not part.isdigit() or len(part) > 6:
        raise bad_query("part", part, "a number from 1 on")
    return int(part)


def _like(query: Query) -> list[str]:
    texts = compat.name_filter(query.text("filter"))
    for text in texts:
        check_query_text("filter", text)  # escapes in a dictionary may have made NUL
    return texts


def _link_origin(request: Asked, query: Query) -> str | None:
    return origin_of(request) if query.text("contents") == "y" else None
