"""Datasets: created, described, changed, deleted. ``assets``, ``annotations`` and ``imports``
handle their content.

A dataset disappears from the API the moment it is deleted. Its rows and bytes are removed piece by
piece afterwards, so that nobody waits for it, and the removal resumes after a crash. A dataset that
a waiting or training run needs is not deleted at all.
"""

import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from runyard.ids import resolve_folder
from runyard.server.services import etags, events, paging, retention
from runyard.server.services.context import Actor, Services
from runyard.server.services.documents import merge_attributes
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.jobs import run_in_thread
from runyard.server.services.paging import PageRequest
from runyard.store import blobs as blob_rows
from runyard.store.datasets import datasets as rows
from runyard.store.datasets import imports as import_rows
from runyard.store.tables import AnyRow
from vi.api.resources.datasets.responses import (
    Dataset,
    DatasetStatistic,
    DatasetType,
    DeletedDataset,
    SessionCondition,
    SessionStatus,
)
from vi.api.responses import ConditionStatus, ResourceMetadata

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
ID_LENGTH = 12
REMOVED_AT_ONCE = 250
EXPORT_FOLDER = "export-"  # exports are made in sibling folders of those of imports


def new_id() -> str:
    """Generate an id: letters and digits, a letter first.

    It never contains an underscore, at which the published client cuts ids.
    """
    return secrets.choice(ALPHABET[:26]) + "".join(
        secrets.choice(ALPHABET) for _ in range(ID_LENGTH - 1)
    )


def build_path(org: str, dataset_id: str, *further: str) -> str:
    """Return the path of a dataset, or of something in it."""
    return "/".join((f"/workspaces/{org}/datasets/{org}_{dataset_id}", *further))


def get_row(tx: Connection, *, org: str, dataset_id: str) -> AnyRow:
    """Return the row of a dataset that is not deleted.

    Raises:
        Refusal: NotFound.
    """
    row = rows.get(tx, org=org, dataset_id=dataset_id)
    if row is None or row.deleted:
        raise not_found("dataset", dataset_id)
    return row


def get(services: Services, *, org: str, dataset_id: str) -> Dataset:
    """Return a dataset.

    Raises:
        Refusal: NotFound.
    """
    return to_document(services.store.read(partial(get_row, org=org, dataset_id=dataset_id)))


async def page(services: Services, *, org: str, page_request: PageRequest) -> bytes:
    """Return a page of datasets as JSON, newest first."""

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, org=org, after=after, limit=limit)

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(to_document(row)),
    )


async def create(
    services: Services,
    actor: Actor,
    *,
    name: str,
    type: DatasetType,
    description: str,
    attributes: Mapping[str, str],
) -> Dataset:
    """Create an empty dataset under a generated id."""
    now_ms, dataset_id = services.clock.now_ms(), new_id()
    values = {
        "org": actor.org,
        "id": dataset_id,
        "name": name,
        "type": type,
        "description": description,
        "attributes": msgspec.json.encode(dict(attributes)),
        "time_created": now_ms,
        "last_updated": now_ms,
    }

    def insert_dataset(tx: Connection) -> AnyRow:
        rows.add(tx, values)
        record_change(services, tx, actor, dataset_id, what="created")
        services.audit(actor, "create dataset", dataset_id)(tx)
        return get_row(tx, org=actor.org, dataset_id=dataset_id)

    return to_document(await services.store.write(insert_dataset))


async def update(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    name: str | UnsetType,
    description: str | UnsetType | None,
    attributes: Mapping[str, str | None],
    if_match: str | None,
) -> Dataset:
    """Change name, description or attributes.

    Raises:
        Refusal: NotFound, EtagMismatch.
    """

    def update_dataset(tx: Connection) -> AnyRow:
        row = get_row(tx, org=actor.org, dataset_id=dataset_id)
        etags.check(if_match, to_document(row).etag)
        changes: dict[str, Any] = {}
        if name is not UNSET and name != row.name:
            changes["name"] = name
        if description is not UNSET and (description or "") != row.description:
            changes["description"] = description or ""
        merged = merge_attributes(_decode_attributes(row), attributes)
        if merged != _decode_attributes(row):
            changes["attributes"] = msgspec.json.encode(merged)
        if changes:
            changes |= {"last_updated": services.clock.now_ms(), "generation": row.generation + 1}
            rows.change(tx, org=actor.org, dataset_id=dataset_id, values=changes)
            changed = [field for field in changes if field in ("name", "description", "attributes")]
            record_change(services, tx, actor, dataset_id, changed=changed)
            services.audit(actor, "update dataset", dataset_id)(tx)
        return get_row(tx, org=actor.org, dataset_id=dataset_id)

    return to_document(await services.store.write(update_dataset))


async def delete(
    services: Services, actor: Actor, dataset_id: str, *, if_match: str | None
) -> DeletedDataset:
    """Delete a dataset and everything in it. It disappears at once; its bytes follow.

    Raises:
        Refusal: NotFound, EtagMismatch, DatasetInUse (a run that waits or trains needs it).
    """
    org, now_ms = actor.org, services.clock.now_ms()

    def mark_dataset_deleted(tx: Connection) -> None:
        row = get_row(tx, org=org, dataset_id=dataset_id)
        etags.check(if_match, to_document(row).etag)
        if users := rows.list_active_runs(tx, org=org, dataset_id=dataset_id, limit=4):
            named = ", ".join(users[:3]) + (" and others" if len(users) > 3 else "")
            raise Refusal(
                "DatasetInUse",
                f"dataset {dataset_id!r} is needed by waiting or training runs: {named}; "
                "try: kill them or wait until they have ended, then delete it",
            )
        rows.change(
            tx, org=org, dataset_id=dataset_id, values={"deleted": True, "last_updated": now_ms}
        )
        rows.add_deletion(tx, org=org, dataset_id=dataset_id, user=actor.name, time_ms=now_ms)
        record_change(services, tx, actor, dataset_id, what="deleted")
        services.audit(actor, "delete dataset", dataset_id)(tx)

    await services.store.write(mark_dataset_deleted)
    start_removal(services, org=org, dataset_id=dataset_id)
    return get_deletion(services, org=org, dataset_id=dataset_id)


def record_change(
    services: Services,
    tx: Connection,
    actor: Actor,
    dataset_id: str,
    *,
    what: str = "updated",
    changed: Sequence[str] = (),
) -> None:
    """Record the event of a change of a dataset, with the names of what was updated in it."""
    events.record_by(
        tx,
        actor,
        now_ms=services.clock.now_ms(),
        kind="dataset",
        target=dataset_id,
        what=what,
        document={"changed": changed} if changed else None,
    )


def get_deletion(services: Services, *, org: str, dataset_id: str) -> DeletedDataset:
    """Return the progress of a deletion.

    Raises:
        Refusal: NotFound.
    """
    row = services.store.read(lambda tx: rows.get_deletion(tx, org=org, dataset_id=dataset_id))
    if row is None:
        raise not_found("deletion of dataset", dataset_id)
    ended = row.time_ended is not None
    condition = SessionCondition(
        condition="Finished",
        status=ConditionStatus.REACHED if ended else ConditionStatus.WAITING,
        last_transition_time=row.time_ended if ended else row.time_created,
    )
    document = DeletedDataset(
        user=row.user,
        organization_id=org,
        dataset_id=dataset_id,
        status=SessionStatus(conditions=[condition]),
        metadata=ResourceMetadata(
            time_created=row.time_created,
            last_updated=row.time_ended or row.time_created,
            generation=1,
        ),
        self_link=build_path(org, dataset_id, "deleteOperation"),
    )
    etags.seal(document)
    return document


def start_removal(services: Services, *, org: str, dataset_id: str) -> None:
    """Start a task that removes the rows and bytes of a deleted dataset."""
    services.jobs.start(
        ("deletion", org, dataset_id), lambda: _remove_dataset(services, org, dataset_id)
    )


async def _remove_dataset(services: Services, org: str, dataset_id: str) -> None:
    key: Any = {"org": org, "dataset_id": dataset_id}
    for import_id in services.store.read(lambda tx: import_rows.list_active_ids(tx, **key)):
        await services.jobs.stop(("import", org, import_id))
        await _remove_folder(services, org, import_id)
        await services.store.write(partial(_cancel_import, services, import_id=import_id, **key))
    for kind, id in services.store.read(partial(rows.list_active_jobs, **key)):
        await services.jobs.stop((kind, org, id))
        await _remove_folder(services, org, EXPORT_FOLDER + id)
    async with services.jobs.lock(org, dataset_id):
        await run_in_thread(_remove_local_copies, services, org, dataset_id)
        while await services.store.write(partial(rows.remove_batch, **key, limit=REMOVED_AT_ONCE)):
            pass

        def delete_dataset_rows(tx: Connection) -> None:
            blob_rows.mark_unneeded(tx, org=org, hashes=rows.remove(tx, **key))
            rows.release_contents(tx, org=org)

        await services.store.write(delete_dataset_rows)
    await retention.remove_unneeded_blobs(services, org=org)
    await retention.remove_unneeded_images(services, org=org)
    await services.store.write(
        partial(rows.complete_deletion, **key, time_ms=services.clock.now_ms())
    )


def _cancel_import(
    services: Services, tx: Connection, *, org: str, dataset_id: str, import_id: str
) -> None:
    import_rows.change(tx, org=org, import_id=import_id, values={"state": "Cancelled"})
    events.record(
        tx,
        org=org,
        now_ms=services.clock.now_ms(),
        kind="import",
        target=import_id,
        what="ended",
        document={"datasetId": dataset_id, "state": "Cancelled"},
    )


def _remove_local_copies(services: Services, org: str, dataset_id: str) -> None:
    """Remove what trainings on this machine made of the dataset.

    No run that may still train is pinned to it.
    """
    settings = services.settings
    shutil.rmtree(resolve_folder(settings.cache_dir, org, dataset_id), ignore_errors=True)
    for version in services.store.read(
        partial(rows.list_own_versions, org=org, dataset_id=dataset_id)
    ):
        shutil.rmtree(resolve_folder(settings.datasets_dir, org, version), ignore_errors=True)


async def _remove_folder(services: Services, org: str, name: str) -> None:
    await run_in_thread(
        shutil.rmtree, resolve_folder(services.settings.imports_dir, org, name), ignore_errors=True
    )


def get_statistics(services: Services, *, org: str, dataset_id: str) -> dict[str, Any]:
    """Return the counts of a dataset, as the aggregation statistics show them."""
    row = services.store.read(partial(get_row, org=org, dataset_id=dataset_id))
    return {
        "datasetId": dataset_id,
        "assets": row.asset_count,
        "annotatedAssets": row.annotated_count,
        "records": row.record_count,
        "sizeBytes": row.size_bytes,
        "timeUpdated": row.last_updated,
    }


def to_document(row: AnyRow) -> Dataset:
    """Return a dataset's wire document."""
    document = Dataset(
        dataset_id=row.id,
        name=row.name,
        owner=row.org,
        organization_id=row.org,
        type=row.type,
        description=row.description,
        create_date=row.time_created,
        last_accessed=row.last_updated,
        statistic=DatasetStatistic(
            asset_total=row.asset_count,
            annotation_total=row.record_count,
            asset_annotated=row.annotated_count,
        ),
        size_bytes=row.size_bytes,
        version=row.version,
        metadata=ResourceMetadata(
            time_created=row.time_created,
            last_updated=row.last_updated,
            generation=row.generation,
            attributes=_decode_attributes(row),
        ),
        self_link=build_path(row.org, row.id),
    )
    etags.seal(document)
    return document


def _decode_attributes(row: AnyRow) -> dict[str, str]:
    return msgspec.json.decode(row.attributes, type=dict[str, str])
