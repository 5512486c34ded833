"""Remove checkpoints that the flow no longer keeps, and images that nothing needs.

Of checkpoints the flow's ``checkpoint.keep`` newest are kept, and the best with ``keepBest``.

Rows go first, in the transaction that lists a newer checkpoint, together with a note of the bytes
that nothing needs any more. The bytes follow; after a crash in between, the sweep removes what is
noted. So a listed checkpoint always has its bytes, and no bytes of an unlisted one stay. A download
of a checkpoint that is removed meanwhile is aborted.

An image is needed by the assets that show it and by the versions that runs are pinned to. What an
asset gives up is recorded. The sweep checks whether a version needs it, and releases it otherwise,
together with versions that name it and that no run needs. Images are packed together: a pack with
no needed image is removed, and one that is mostly unneeded is rewritten.
"""

import hashlib
import io
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.blobs import BlobError, BlobHeld
from runyard.datasets.packs import build_pack, read_index
from runyard.flows import FlowProblems, resolve
from runyard.flows.blocks import Checkpoint
from runyard.server.services.context import Services
from runyard.server.services.jobs import run_in_thread
from runyard.store import StoreUnavailable, blobs, outputs
from runyard.store.datasets import assets as asset_rows
from runyard.store.datasets import versions as version_rows
from vi.api.resources.flows.responses import FlowSpec

log = logging.getLogger(__name__)


class _Content(msgspec.Struct):
    """The part of a manifest line that names the bytes it needs."""

    sha256: str


_CONTENT = msgspec.json.Decoder(_Content)
AT_ONCE = 250  # images released in one transaction


def read_checkpoint_settings(flow: FlowSpec) -> Checkpoint | None:
    """Return the flow's settings for keeping checkpoints.

    Return None for a flow that this version cannot read, of which all are kept.
    """
    try:
        return resolve(flow).model.checkpoint
    except FlowProblems:
        return None


def list_superseded(listed: list[Any], settings: Checkpoint) -> list[str]:
    """Return ids of outputs (oldest first) that need not be kept. The newest always is."""
    older = listed[: -settings.keep]
    return [row.id for row in older if not (settings.keep_best and row.is_best)]


def prune_checkpoints(tx: Connection, *, org: str, run_id: str, flow: FlowSpec) -> list[Any]:
    """Delete the rows of checkpoints that need not be kept.

    Return the rows that stay, oldest first.
    """
    listed, settings = (
        list(outputs.list_by_run(tx, org=org, run_id=run_id)),
        read_checkpoint_settings(flow),
    )
    gone = list_superseded(listed, settings) if settings is not None else []
    outputs.remove(tx, org=org, run_id=run_id, output_ids=gone)
    return [row for row in listed if row.id not in gone]


async def remove_unneeded_blobs(services: Services, *, org: str) -> None:
    """Remove bytes that are marked for removal. What fails is left to the sweep."""
    if not services.store.read(lambda tx: blobs.has_unneeded(tx, org=org)):
        return
    try:
        # No checkpoint is registered meanwhile, so nothing becomes needed again.
        async with services.blob_lock:
            hashes = services.store.read(lambda tx: blobs.list_unneeded(tx, org=org))
            await run_in_thread(_delete_blobs, services, org, hashes)
            await services.store.write(lambda tx: blobs.clear_unneeded(tx, org=org))
    except BlobHeld:
        log.info(
            "bytes of pruned checkpoints are removed when no backup or restore needs them any more"
        )
    except (OSError, BlobError, StoreUnavailable) as error:
        log.error("not all bytes of pruned checkpoints are removed yet: %s", error)


def start_image_removal(services: Services, *, org: str) -> None:
    """Start a task that removes released images; what is released meanwhile waits for the sweep."""
    services.jobs.start(
        ("contents", org, "unneeded"), lambda: remove_unneeded_images(services, org=org)
    )


async def remove_unneeded_images(services: Services, *, org: str) -> None:
    """Remove images that nothing needs, versions that name them, and their bytes in packs."""
    if not services.store.read(partial(version_rows.list_unneeded_contents, org=org)):
        return
    try:
        affected = await _release_images(services, org)
        for sha256 in sorted(affected):
            await _repack_blob(services, org, sha256)
    except (OSError, BlobError, StoreUnavailable) as error:
        log.error("not all images that nothing needs are removed yet: %s", error)
    await remove_unneeded_blobs(services, org=org)


async def _release_images(services: Services, org: str) -> set[str]:
    """Decide about every released image, some at a time.

    Return the blobs that hold one that was removed.
    """
    down = sorted(services.store.read(partial(version_rows.list_unneeded_contents, org=org)))
    # Before the manifests are read: a newer version is not among them.
    examined = services.store.read(partial(version_rows.list_ids, org=org))
    examined = services.store.read(partial(version_rows.list_ids, org=org))
    named = await run_in_thread(_map_versions_to_images, services, org, set(down))
    affected = set[str]()
    for start in range(0, len(down), AT_ONCE):
        some = set(down[start : start + AT_ONCE])
        affected |= await services.store.write(
            partial(_release_some_images, org=org, down=some, named=named, examined=examined)
        )
    return affected


def _release_some_images(
    tx: Connection,
    *,
    org: str,
    down: set[str],
    named: dict[tuple[str, str], set[str]],
    examined: set[tuple[str, str]],
) -> set[str]:
    if version_rows.list_ids(tx, org=org) - examined:
        return set()  # a version created meanwhile may name one of them: the next sweep reads it
    shown = asset_rows.find_used_contents(tx, org=org, hashes=down)
    held = set[str]()
    going = []
    for (dataset_id, version), contents in named.items():
        if version_rows.is_pinned(tx, org=org, dataset_id=dataset_id, version=version):
            held |= contents & down
        else:
            going.append((dataset_id, version))
    held -= shown
    gone = down - shown - held
    for dataset_id, version in going:
        if named[dataset_id, version] & gone:
            manifest = version_rows.remove(tx, org=org, dataset_id=dataset_id, version=version)
            blobs.mark_unneeded(tx, org=org, hashes=manifest)
    version_rows.mark_needed(tx, org=org, needed=shown)
    affected = version_rows.record_content_checks(tx, org=org, held=held, gone=gone)
    blobs.mark_unneeded(tx, org=org, hashes=affected)  # those that contain no needed image any more
    return affected


def _map_versions_to_images(
    services: Services, org: str, hashes: set[str]
) -> dict[tuple[str, str], set[str]]:
    """Return which of the images each version names, by dataset and version.

    Versions that name none are left out.
    """
    found = {}
    for row in services.store.read(partial(version_rows.list_all, org=org)):
        try:
            with services.blobs(org).open(row.sha256) as file:
                named = {_CONTENT.decode(line).sha256 for line in file} & hashes
        except BlobError as error:
            # It cannot be used any more, so it keeps no image; ``runyard gc`` reports the loss.
            log.error("version %s of dataset %s cannot be read: %s", row.id, row.dataset_id, error)
            continue
        if named:
            found[row.dataset_id, row.id] = named
    return found


async def _repack_blob(services: Services, org: str, sha256: str) -> None:
    """Rewrite a pack of which less than half is needed."""
    kept = services.store.read(partial(version_rows.list_in_blob, org=org, sha256=sha256))
    store = services.blobs(org)
    if not kept or 2 * sum(span.size_bytes for span in kept) >= store.size_bytes(sha256):
        return
    async with services.blob_lock:
        new, offsets = await run_in_thread(_write_pack, store, sha256, kept)

        def move_images(tx: Connection) -> None:
            version_rows.move_contents(tx, org=org, old=sha256, new=new, offsets=offsets)
            blobs.mark_unneeded(tx, org=org, hashes={sha256, new})

        await services.store.write(move_images)


def _write_pack(store: Any, sha256: str, kept: Sequence[Any]) -> tuple[str, dict[str, int]]:
    """Write a pack of the needed images only; return its hash, and the offset of each."""
    with store.open(sha256) as file:
        pieces = []
        for span in kept:
            file.seek(span.offset)
            pieces.append((span.content, file.read(span.size_bytes)))
    data = build_pack(pieces)
    new = hashlib.sha256(data).hexdigest()
    store.put(io.BytesIO(data), sha256=new, size_bytes=len(data))
    offsets = {entry.path: entry.offset for entry in read_index(io.BytesIO(data), len(data))}
    return new, offsets


def _delete_blobs(services: Services, org: str, hashes: set[str]) -> None:
    for sha256 in sorted(hashes):
        services.blobs(org).delete(sha256)
