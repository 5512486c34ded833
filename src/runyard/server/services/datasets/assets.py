"""Assets: the images of a dataset, listed, renamed, deleted one by one or many at a time.

The bytes of an asset are removed when nothing needs them any more: other assets with the same
bytes, and versions that runs are pinned to, keep them (see ``retention``).
"""

import base64
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.datasets.packs import is_safe
from runyard.server.services import etags, events, paging, retention
from runyard.server.services.access.signing import FileLink, Position, link_expiry
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import conversations, datasets
from runyard.server.services.datasets.dict_params import parse_dict_param
from runyard.server.services.errors import Problem, Refusal, not_found
from runyard.server.services.paging import PageRequest
from runyard.store.datasets import assets as rows
from runyard.store.datasets import datasets as dataset_rows
from runyard.store.datasets import versions as job_rows
from runyard.store.tables import AnyRow, bulk_deletions
from vi.api.resources.assets.responses import (
    Asset,
    AssetAnnotations,
    AssetContents,
    AssetDimensions,
    AssetGenerations,
    AssetHash,
    AssetLink,
    AssetMetadata,
)
from vi.api.resources.datasets.responses import (
    BulkDeletion,
    BulkDeletionSpec,
    SessionCondition,
    SessionStatus,
)
from vi.api.responses import ConditionStatus, ResourceMetadata

DELETED_AT_ONCE = 500
MOST_IN_ONE_PAGE = 100_000


async def page(
    services: Services,
    *,
    org: str,
    dataset_id: str,
    sorting: str,
    descending: bool,
    like: Sequence[str],
    origin: str | None,
    page_request: PageRequest,
) -> bytes:
    """Return a page of assets as JSON. With ``origin``, each has a link to its bytes."""
    key: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.get_row, **key))

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        start = None if after is None else _parse_position(*after)
        return rows.page(
            tx, **key, sorting=sorting, descending=descending, like=like, after=start, limit=limit
        )

    def get_position(row: AnyRow) -> Position:
        value = rows.get_sort_value(row, sorting)
        return (
            Position(value, row.id) if isinstance(value, int) else Position(0, f"{value}\0{row.id}")
        )

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(to_document(services, row, origin=origin)),
        get_position=get_position,
    )


def get(
    services: Services, *, org: str, dataset_id: str, asset_id: str, origin: str | None
) -> Asset:
    """Return an asset; with ``origin``, also a link to its bytes.

    Raises:
        Refusal: NotFound.
    """
    row = services.store.read(partial(get_row, org=org, dataset_id=dataset_id, asset_id=asset_id))
    return to_document(services, row, origin=origin)


def get_row(tx: Connection, *, org: str, dataset_id: str, asset_id: str) -> AnyRow:
    """Return the row of an asset.

    Raises:
        Refusal: NotFound.
    """
    datasets.get_row(tx, org=org, dataset_id=dataset_id)
    row = rows.get(tx, org=org, dataset_id=dataset_id, asset_id=asset_id)
    if row is None:
        raise not_found(f"asset of dataset {dataset_id!r}", asset_id)
    return row


def count(services: Services, *, org: str, dataset_id: str, like: Sequence[str]) -> int:
    """Return the number of assets, of those whose file names match ``like`` if given.

    Raises:
        Refusal: NotFound.
    """

    def count_assets(tx: Connection) -> int:
        dataset = datasets.get_row(tx, org=org, dataset_id=dataset_id)
        return (
            rows.count(tx, org=org, dataset_id=dataset_id, like=like)
            if like
            else int(dataset.asset_count)
        )

    return services.store.read(count_assets)


async def rename(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    asset_id: str | None = None,
    filename: str | None = None,
    new: str,
) -> Asset:
    """Rename an image, named by id or by file name.

    Raises:
        Refusal: NotFound, InvalidBody (no plain relative path), NameTaken.
    """
    key: Any = {"org": actor.org, "dataset_id": dataset_id}
    check_name(new)

    def rename_asset(tx: Connection) -> AnyRow:
        if asset_id is not None:
            row = get_row(tx, **key, asset_id=asset_id)
        else:
            datasets.get_row(tx, **key)
            named = rows.find_by_name(tx, **key, names={filename or ""})
            if not named:
                raise not_found(f"file of dataset {dataset_id!r}", filename or "")
            row = named[filename or ""]
        if new != row.filename:
            if rows.find_by_name(tx, **key, names={new}):
                raise Refusal(
                    "NameTaken",
                    f"dataset {dataset_id!r} has another image {new!r}; try: choose another name",
                )
            now_ms = services.clock.now_ms()
            values = {"filename": new, "generation": row.generation + 1, "last_updated": now_ms}
            rows.change(tx, **key, asset_id=row.id, values=values)
            conversations.rename_in_records(tx, **key, names={row.filename: new}, time_ms=now_ms)
            dataset_rows.adjust_counts(tx, **key, time_ms=now_ms)
            datasets.record_change(services, tx, actor, dataset_id, changed=["assets"])
            services.audit(actor, "rename asset", f"{dataset_id}/{row.id}")(tx)
        return get_row(tx, **key, asset_id=row.id)

    return to_document(services, await services.store.write(rename_asset), origin=None)


def check_name(name: str) -> None:
    """Check that a name is a plain relative path: it becomes one where a dataset is exported.

    Raises:
        Refusal: InvalidBody.
    """
    if not is_safe(name) or len(name) > 1024:
        raise Refusal(
            "InvalidBody",
            f"{name[:80]!r} is not a plain relative path; expected one without '..', '\\' and "
            "leading '/'",
        )


async def delete(services: Services, actor: Actor, dataset_id: str, asset_id: str) -> None:
    """Delete an image and its records.

    Raises:
        Refusal: NotFound, ImageInUse (conversations of other images show it).
    """
    key: Any = {"org": actor.org, "dataset_id": dataset_id}

    def delete_asset(tx: Connection) -> None:
        row = get_row(tx, **key, asset_id=asset_id)
        _check_unused(tx, key, row)
        _delete_rows(services, tx, key, [asset_id])
        datasets.record_change(services, tx, actor, dataset_id, changed=["assets"])
        services.audit(actor, "delete asset", f"{dataset_id}/{asset_id}")(tx)

    await services.store.write(delete_asset)
    retention.start_image_removal(services, org=actor.org)


def _check_unused(tx: Connection, key: Any, row: AnyRow) -> None:
    others = [
        record
        for record in conversations.find_records(tx, **key, names=[row.filename])
        if record.asset_id != row.id
    ]
    if others:
        raise Refusal(
            "ImageInUse",
            f"image {row.filename!r} is shown by conversations of other images ({len(others)}); "
            f"the first is annotation {others[0].number} of asset {others[0].asset_id}; try: "
            "delete them first, or delete the image with a bulk deletion, which deletes them too",
        )


def _delete_rows(
    services: Services, tx: Connection, key: Any, ids: Sequence[str]
) -> tuple[int, int]:
    """Delete images, their records, and the conversations of other images that show them.

    Return how many images and how many such conversations are gone.
    """
    removed = rows.remove(tx, **key, ids=ids)
    now_ms = services.clock.now_ms()
    bare, lost = conversations.remove_records(
        tx, **key, names={row.filename for row in removed}, time_ms=now_ms
    )
    dataset_rows.mark_unneeded_contents(tx, org=key["org"], hashes={row.content for row in removed})
    dataset_rows.adjust_counts(
        tx,
        **key,
        time_ms=now_ms,
        assets=-len(removed),
        annotated=-sum(row.record_count > 0 for row in removed) - bare,
        records=-sum(row.record_count for row in removed) - lost,
        size_bytes=-sum(row.size_bytes for row in removed),
    )
    return len(removed), lost


async def delete_many(
    services: Services, actor: Actor, dataset_id: str, *, spec: BulkDeletionSpec
) -> BulkDeletion:
    """Begin to delete every image that a filter matches.

    Raises:
        Refusal: NotFound, InvalidBody (a filter that is not understood deletes nothing).
    """
    named, _ = _parse_filter(spec)  # refuse now what the job would refuse later
    if named is not None and len(named) > limits.FILES.value:
        raise Refusal(
            "InvalidBody",
            f"{len(named)} names are given; at most {limits.FILES.value} are allowed; try: several "
            "requests",
        )
    now_ms, id = services.clock.now_ms(), secrets.token_hex(12)

    def insert_bulk_deletion(tx: Connection) -> AnyRow:
        datasets.get_row(tx, org=actor.org, dataset_id=dataset_id)
        values: dict[str, Any] = {
            "org": actor.org,
            "id": id,
            "dataset_id": dataset_id,
            "state": "Waiting",
            "why": None,
        }
        values |= {"spec": msgspec.json.encode(spec), "deleted_count": 0}
        job_rows.add_job(
            tx, bulk_deletions, {**values, "time_created": now_ms, "last_updated": now_ms}
        )
        services.audit(actor, "delete many assets", f"{dataset_id}/{id}")(tx)
        row = job_rows.get_job(tx, bulk_deletions, org=actor.org, id=id)
        assert row is not None  # noqa: S101 - added above
        return row

    row = await services.store.write(insert_bulk_deletion)
    start_bulk_deletion(services, row)
    return to_bulk_document(row)


def get_bulk_deletion(services: Services, *, org: str, dataset_id: str, id: str) -> BulkDeletion:
    """Return a bulk deletion.

    Raises:
        Refusal: NotFound.
    """

    def find_bulk_deletion(tx: Connection) -> AnyRow | None:
        datasets.get_row(tx, org=org, dataset_id=dataset_id)
        return job_rows.get_job(tx, bulk_deletions, org=org, id=id)

    row = services.store.read(find_bulk_deletion)
    if row is None or row.dataset_id != dataset_id:
        raise not_found("bulk deletion", id)
    return to_bulk_document(row)


async def page_bulk_deletions(
    services: Services, *, org: str, dataset_id: str, page_request: PageRequest
) -> bytes:
    """Return a page of bulk deletions, newest first."""
    key: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.get_row, **key))

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return job_rows.job_page(tx, bulk_deletions, **key, after=after, limit=limit)

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(to_bulk_document(row)),
    )


def start_bulk_deletion(services: Services, row: AnyRow) -> None:
    """Start the task of a bulk deletion."""
    services.jobs.start(("bulk", row.org, row.id), lambda: _run_bulk_deletion(services, row))


async def _run_bulk_deletion(services: Services, row: AnyRow) -> None:
    key: Any = {"org": row.org, "dataset_id": row.dataset_id}
    named, like = _parse_filter(msgspec.json.decode(row.spec, type=BulkDeletionSpec))
    groups: list[list[str] | None] = [None]
    if named:
        groups = [named[at : at + rows.BATCH_SIZE] for at in range(0, len(named), rows.BATCH_SIZE)]
    elif named is not None:
        groups = [[]]
    conversations_lost = 0

    def delete_next_assets(tx: Connection, group: list[str] | None, *, is_last: bool) -> int:
        now = job_rows.get_job(tx, bulk_deletions, org=row.org, id=row.id)
        if now is None or now.state != "Waiting":
            return 0  # gone with its dataset
        ids = rows.list_ids(tx, **key, named=group, like=like, limit=DELETED_AT_ONCE)
        deleted, lost = _delete_rows(services, tx, key, ids) if ids else (0, 0)
        nonlocal conversations_lost
        conversations_lost += lost
        values = {
            "deleted_count": now.deleted_count + deleted,
            "last_updated": services.clock.now_ms(),
        }
        if is_last and not ids:
            values |= {"state": "Done", "why": _describe_lost(conversations_lost)}
            events.record(
                tx,
                org=row.org,
                now_ms=values["last_updated"],
                kind="dataset",
                target=row.dataset_id,
                what="updated",
                document={"changed": ["assets"], "deletedAssets": values["deleted_count"]},
            )
        job_rows.change_job(tx, bulk_deletions, org=row.org, id=row.id, values=values)
        return len(ids)

    async with services.jobs.lock(row.org, row.dataset_id):
        for group in groups:
            step = partial(delete_next_assets, group=group, is_last=group is groups[-1])
            while await services.store.write(step):
                pass
    await retention.remove_unneeded_images(services, org=row.org)


def _describe_lost(conversations_lost: int) -> str | None:
    if not conversations_lost:
        return None
    return f"conversations of other images that showed them: {conversations_lost}"


def _parse_filter(spec: BulkDeletionSpec) -> tuple[list[str] | None, list[str]]:
    """Return (names or ids, texts in the file name) of what to delete.

    Raises:
        Refusal: InvalidBody.
    """
    allowed = (
        "a text that file names contain, {'filename': text}, {'filenames': [...]}, {'assetIds': "
        "[...]} or {'all': true}"
    )
    given = spec.filter
    if isinstance(given, str) and given.startswith("{"):
        given = parse_dict_param(given)
    if spec.metadata_query or spec.rule_query or not given:
        given = None
    match given:
        case str(text) if _is_name(text):
            return None, [text]
        case {"filename": str(text)} if text and len(given) == 1 and _is_name(text):
            return None, [text]
        case {"filenames": [*names]} | {"assetIds": [*names]} if len(given) == 1 and all(
            isinstance(name, str) and _is_name(name) for name in names
        ):
            return names, []
        case {"all": True} if len(given) == 1:
            return None, []
    problem = Problem(
        path="/spec/filter",
        given=repr(spec.filter)[:200],
        allowed=allowed,
        message=f"expected {allowed}",
    )
    message = f"the filter is not understood, so nothing is deleted; expected {allowed}"
    raise Refusal("InvalidBody", message, problems=[problem])


def _is_name(text: str) -> bool:
    return limits.FILE_NAME.find_problem(text) is None


def to_bulk_document(row: AnyRow) -> BulkDeletion:
    """Return a bulk deletion's wire document."""
    condition = SessionCondition(condition="Finished", last_transition_time=row.time_created)
    if row.state == "Done":
        condition.status, condition.last_transition_time = ConditionStatus.REACHED, row.last_updated
        also = f", and {row.why}" if row.why else ""
        condition.message = f"{row.deleted_count} images were deleted{also}"
    document = BulkDeletion(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        session_id=row.id,
        spec=msgspec.json.decode(row.spec, type=BulkDeletionSpec),
        status=SessionStatus(conditions=[condition]),
        metadata=ResourceMetadata(
            time_created=row.time_created, last_updated=row.last_updated, generation=1
        ),
        self_link=datasets.build_path(row.org, row.dataset_id, "deleteManyAssetsSessions", row.id),
    )
    etags.seal(document)
    return document


def to_document(services: Services, row: AnyRow, *, origin: str | None) -> Asset:
    """Return an asset's wire document."""
    size = AssetDimensions(height=row.height, width=row.width)
    custom = msgspec.json.decode(row.custom)
    generation = str(row.generation)
    return Asset(
        asset_id=row.id,
        dataset_id=row.dataset_id,
        organization_id=row.org,
        filename=row.filename,
        owner=row.org,
        metadata=AssetMetadata(
            generations=AssetGenerations(asset=generation, thumbnail=generation),
            inserted_by=row.inserted_by,
            annotations=AssetAnnotations(total=row.record_count),
            frames=row.frames,
            file_size=row.size_bytes,
            height=row.height,
            width=row.width,
            mime_type=row.mime,
            custom_metadata=custom,
            dimensions=size,
            custom_metadata_count=len(custom),
            hash=AssetHash(
                contents=base64.b64encode((row.crc32c % 2**32).to_bytes(4, "big")).decode()
            ),
            sha256=row.content,
            time_created=row.time_created,
            last_updated=row.last_updated,
            contents_last_updated=row.contents_updated,
        ),
        contents=None if origin is None else AssetContents(asset=_sign_link(services, row, origin)),
        self_link=datasets.build_path(row.org, row.dataset_id, "assets", row.id),
        etag=f"{row.generation}-{row.content[:16]}",
    )


def _sign_link(services: Services, row: AnyRow, origin: str) -> AssetLink:
    expires_at = link_expiry(services.clock.now_ms(), link_hours=services.settings.link_hours)
    token = services.signer.sign_file_link(
        FileLink(row.org, row.dataset_id, "asset", row.id, row.content, expires_at)
    )
    # The published client names the file it writes after the last part of the address.
    name = quote(row.filename.rpartition("/")[2], safe="")
    return AssetLink(url=f"{origin}/downloads/{token}/{name}", expiry=expires_at)


def _parse_position(number: int, rest: str) -> tuple[Any, str]:
    """Return (value sorted by, id) of a position."""
    value, separator, id = rest.rpartition("\0")
    return (value, id) if separator else (number, rest)
