"""Assets: the pictures of a dataset, listed, renamed, deleted one by one or many at a time.

What an asset shows goes when the last that needs it has gone: other assets with the same bytes, and versions that runs
are pinned to, keep it (see ``retention``).
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
from runyard.server.services import etags, pages, retention
from runyard.server.services.access.signing import FileLink, Position, link_expiry
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import datasets
from runyard.server.services.datasets.dict_params import parse_dict_param
from runyard.server.services.errors import Problem, Refusal, not_found
from runyard.server.services.pages import PageRequest
from runyard.store import assets as rows
from runyard.store import datasets as dataset_rows
from runyard.store import versions as job_rows
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
from vi.api.resources.datasets.responses import BulkDeletion, BulkDeletionSpec, SessionCondition, SessionStatus
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
    wanted: PageRequest,
) -> bytes:
    """A page of assets as JSON. With ``origin``, each has a link to its bytes that begins with it."""
    place: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.found, **place))

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        start = None if after is None else _sorted_after(*after)
        return rows.page(
            connection, **place, sorting=sorting, descending=descending, like=like, after=start, limit=limit
        )

    def place_of(row: AnyRow) -> Position:
        value = rows.get_sort_value(row, sorting)
        return Position(value, row.id) if isinstance(value, int) else Position(0, f"{value}\0{row.id}")

    return await pages.read(
        services,
        wanted,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(document(services, row, origin=origin)),
        place=place_of,
    )


def get(services: Services, *, org: str, dataset_id: str, asset_id: str, origin: str | None) -> Asset:
    row = services.store.read(partial(found, org=org, dataset_id=dataset_id, asset_id=asset_id))
    return document(services, row, origin=origin)


def found(connection: Connection, *, org: str, dataset_id: str, asset_id: str) -> AnyRow:
    """The row of an asset.

    Raises:
        Refusal: NotFound.
    """
    datasets.found(connection, org=org, dataset_id=dataset_id)
    row = rows.get(connection, org=org, dataset_id=dataset_id, asset_id=asset_id)
    if row is None:
        raise not_found(f"asset of dataset {dataset_id!r}", asset_id)
    return row


def count(services: Services, *, org: str, dataset_id: str, like: Sequence[str]) -> int:
    def work(connection: Connection) -> int:
        dataset = datasets.found(connection, org=org, dataset_id=dataset_id)
        return rows.count(connection, org=org, dataset_id=dataset_id, like=like) if like else int(dataset.asset_count)

    return services.store.read(work)


async def rename(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    asset_id: str | None = None,
    filename: str | None = None,
    new: str,
) -> Asset:
    """Give a picture, named by id or by file name, another name.

    Raises:
        Refusal: NotFound, InvalidBody (no plain relative path), NameTaken.
    """
    place: Any = {"org": actor.org, "dataset_id": dataset_id}
    check_name(new)

    def work(connection: Connection) -> AnyRow:
        if asset_id is not None:
            row = found(connection, **place, asset_id=asset_id)
        else:
            datasets.found(connection, **place)
            named = rows.find_by_name(connection, **place, names={filename or ""})
            if not named:
                raise not_found(f"file of dataset {dataset_id!r}", filename or "")
            row = named[filename or ""]
        if new != row.filename:
            if rows.find_by_name(connection, **place, names={new}):
                raise Refusal("NameTaken", f"dataset {dataset_id!r} has another picture {new!r}; choose another name")
            now_ms = services.clock.now_ms()
            values = {"filename": new, "generation": row.generation + 1, "last_updated": now_ms}
            rows.change(connection, **place, asset_id=row.id, values=values)
            dataset_rows.adjust_counts(connection, **place, time_ms=now_ms)
            services.audit(actor, "rename asset", f"{dataset_id}/{row.id}")(connection)
        return found(connection, **place, asset_id=row.id)

    return document(services, await services.store.write(work), origin=None)


def check_name(name: str) -> None:
    """Raise Refusal unless a name is a plain relative path: it becomes one where a dataset is exported."""
    if not is_safe(name) or len(name) > 1024:
        raise Refusal(
            "InvalidBody", f"{name[:80]!r} is no plain relative path; give one without '..', '\\' and leading '/'"
        )


async def delete(services: Services, actor: Actor, dataset_id: str, asset_id: str) -> None:
    """Delete a picture and what is said of it.

    Raises:
        Refusal: NotFound.
    """
    place: Any = {"org": actor.org, "dataset_id": dataset_id}

    def work(connection: Connection) -> None:
        found(connection, **place, asset_id=asset_id)
        _delete(services, connection, place, [asset_id])
        services.audit(actor, "delete asset", f"{dataset_id}/{asset_id}")(connection)

    await services.store.write(work)
    retention.start(services, org=actor.org)


def _delete(services: Services, connection: Connection, place: Any, ids: Sequence[str]) -> int:
    removed = rows.remove(connection, **place, ids=ids)
    dataset_rows.mark_unneeded_contents(connection, org=place["org"], hashes={row.content for row in removed})
    dataset_rows.adjust_counts(
        connection,
        **place,
        time_ms=services.clock.now_ms(),
        assets=-len(removed),
        annotated=-sum(row.record_count > 0 for row in removed),
        records=-sum(row.record_count for row in removed),
        size_bytes=-sum(row.size_bytes for row in removed),
    )
    return len(removed)


async def delete_many(services: Services, actor: Actor, dataset_id: str, *, spec: BulkDeletionSpec) -> BulkDeletion:
    """Begin to delete every picture that a filter matches.

    Raises:
        Refusal: NotFound, InvalidBody (a filter that is not understood deletes nothing).
    """
    named, _ = _matching(spec)  # refuse now what would be refused later
    if named is not None and len(named) > limits.FILES.value:
        raise Refusal(
            "InvalidBody", f"{len(named)} names are given; at most {limits.FILES.value} are allowed; divide them"
        )
    now_ms, id = services.clock.now_ms(), secrets.token_hex(12)

    def work(connection: Connection) -> AnyRow:
        datasets.found(connection, org=actor.org, dataset_id=dataset_id)
        values: dict[str, Any] = {"org": actor.org, "id": id, "dataset_id": dataset_id, "state": "Waiting", "why": None}
        values |= {"spec": msgspec.json.encode(spec), "deleted_count": 0}
        job_rows.add_job(connection, bulk_deletions, {**values, "time_created": now_ms, "last_updated": now_ms})
        services.audit(actor, "delete many assets", f"{dataset_id}/{id}")(connection)
        row = job_rows.get_job(connection, bulk_deletions, org=actor.org, id=id)
        assert row is not None  # noqa: S101 - added above
        return row

    row = await services.store.write(work)
    start_bulk(services, row)
    return bulk_document(row)


def bulk(services: Services, *, org: str, dataset_id: str, id: str) -> BulkDeletion:
    """Raises Refusal: NotFound."""

    def work(connection: Connection) -> AnyRow | None:
        datasets.found(connection, org=org, dataset_id=dataset_id)
        return job_rows.get_job(connection, bulk_deletions, org=org, id=id)

    row = services.store.read(work)
    if row is None or row.dataset_id != dataset_id:
        raise not_found("bulk deletion", id)
    return bulk_document(row)


async def bulks(services: Services, *, org: str, dataset_id: str, wanted: PageRequest) -> bytes:
    """Return a page of bulk deletions, newest first."""
    place: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.found, **place))

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return job_rows.job_page(connection, bulk_deletions, **place, after=after, limit=limit)

    return await pages.read(
        services, wanted, org=org, fetch=fetch, encode=lambda row: msgspec.json.encode(bulk_document(row))
    )


def start_bulk(services: Services, row: AnyRow) -> None:
    services.jobs.start(("bulk", row.org, row.id), lambda: _delete_all(services, row))


async def _delete_all(services: Services, row: AnyRow) -> None:
    place: Any = {"org": row.org, "dataset_id": row.dataset_id}
    named, like = _matching(msgspec.json.decode(row.spec, type=BulkDeletionSpec))
    groups: list[list[str] | None] = [None]
    if named:
        groups = [named[at : at + rows.BATCH_SIZE] for at in range(0, len(named), rows.BATCH_SIZE)]
    elif named is not None:
        groups = [[]]

    def work(connection: Connection, group: list[str] | None, *, is_last: bool) -> int:
        now = job_rows.get_job(connection, bulk_deletions, org=row.org, id=row.id)
        if now is None or now.state != "Waiting":
            return 0  # gone with its dataset
        ids = rows.list_ids(connection, **place, named=group, like=like, limit=DELETED_AT_ONCE)
        deleted = _delete(services, connection, place, ids) if ids else 0
        values = {"deleted_count": now.deleted_count + deleted, "last_updated": services.clock.now_ms()}
        values |= {} if ids or not is_last else {"state": "Done"}
        job_rows.change_job(connection, bulk_deletions, org=row.org, id=row.id, values=values)
        return len(ids)

    async with services.jobs.lock(row.org, row.dataset_id):
        for group in groups:
            step = partial(work, group=group, is_last=group is groups[-1])
            while await services.store.write(step):
                pass
    await retention.remove_unneeded_contents(services, org=row.org)


def _matching(spec: BulkDeletionSpec) -> tuple[list[str] | None, list[str]]:
    """(names or ids, texts in the file name) of what to delete.

    Raises:
        Refusal: InvalidBody.
    """
    allowed = (
        "a text that file names contain, {'filename': text}, {'filenames': [...]}, {'assetIds': [...]} or {'all': true}"
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
    problem = Problem(path="/spec/filter", given=repr(spec.filter)[:200], allowed=allowed, message=f"give {allowed}")
    message = f"what to delete is not said in a way that is understood here, so nothing is deleted; give {allowed}"
    raise Refusal("InvalidBody", message, problems=[problem])


def _is_name(text: str) -> bool:
    return limits.FILE_NAME.find_problem(text) is None


def bulk_document(row: AnyRow) -> BulkDeletion:
    condition = SessionCondition(condition="Finished", last_transition_time=row.time_created)
    if row.state == "Done":
        condition.status, condition.last_transition_time = ConditionStatus.REACHED, row.last_updated
        condition.message = f"{row.deleted_count} pictures were deleted"
    told = BulkDeletion(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        session_id=row.id,
        spec=msgspec.json.decode(row.spec, type=BulkDeletionSpec),
        status=SessionStatus(conditions=[condition]),
        metadata=ResourceMetadata(time_created=row.time_created, last_updated=row.last_updated, generation=1),
        self_link=datasets.link(row.org, row.dataset_id, "deleteManyAssetsSessions", row.id),
    )
    etags.sealed(told)
    return told


def document(services: Services, row: AnyRow, *, origin: str | None) -> Asset:
    """An asset as it is told."""
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
            hash=AssetHash(contents=base64.b64encode((row.crc32c % 2**32).to_bytes(4, "big")).decode()),
            sha256=row.content,
            time_created=row.time_created,
            last_updated=row.last_updated,
            contents_last_updated=row.contents_updated,
        ),
        contents=None if origin is None else AssetContents(asset=_link(services, row, origin)),
        self_link=datasets.link(row.org, row.dataset_id, "assets", row.id),
        etag=f"{row.generation}-{row.content[:16]}",
    )


def _link(services: Services, row: AnyRow, origin: str) -> AssetLink:
    expires_at = link_expiry(services.clock.now_ms(), link_hours=services.settings.link_hours)
    token = services.signer.file_link(FileLink(row.org, row.dataset_id, "asset", row.id, row.content, expires_at))
    # The published client names the file it writes after the last part of the address.
    name = quote(row.filename.rpartition("/")[2], safe="")
    return AssetLink(url=f"{origin}/downloads/{token}/{name}", expiry=expires_at)


def _sorted_after(number: int, rest: str) -> tuple[Any, str]:
    """Return (value sorted by, id) of a position."""
    value, separator, id = rest.rpartition("\0")
    return (value, id) if separator else (number, rest)
