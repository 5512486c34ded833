"""Which bytes are kept, and how the others go: checkpoints that the flow keeps no more, pictures that nothing needs.

Of checkpoints the flow's ``checkpoint.keep`` newest are kept, and the best with ``keepBest``.

Rows go first, in the transaction that lists a newer checkpoint, together with a note of the bytes that nothing needs
any more. The bytes follow; after a crash in between the sweep removes what is noted. So a listed checkpoint always has
its bytes, and what is not listed is never left over. A download under way of one that goes breaks off, loudly.

A picture is needed by the assets that show it and by the versions that runs are pinned to. What an asset gives up is
put down; the sweep looks whether a version needs it, and lets go of it otherwise, together with versions that name it
and no run needs. Pictures lie in packs with others: a pack none of whose pictures is needed goes, one that is mostly
rubbish is written anew.
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
from runyard.datasets.packs import pack, read_index
from runyard.flows import FlowProblems, resolve
from runyard.flows.blocks import Checkpoint
from runyard.server.services.context import Services
from runyard.server.services.jobs import in_thread
from runyard.store import StoreUnavailable, blobs, outputs
from runyard.store import assets as asset_rows
from runyard.store import versions as version_rows
from vi.api.resources.flows.responses import FlowSpec

log = logging.getLogger(__name__)


class _Content(msgspec.Struct):
    """The part of a manifest's line that says whose bytes it needs."""

    sha256: str


_CONTENT = msgspec.json.Decoder(_Content)
AT_ONCE = 250  # pictures decided about in one transaction


def checkpoint_settings(flow: FlowSpec) -> Checkpoint | None:
    """What the flow says about keeping; None for one that this version cannot read, of which all are kept."""
    try:
        return resolve(flow).model.checkpoint
    except FlowProblems:
        return None


def superseded(listed: list[Any], settings: Checkpoint) -> list[str]:
    """Ids of outputs (oldest first) that need not be kept. The newest always is."""
    older = listed[: -settings.keep]
    return [row.id for row in older if not (settings.keep_best and row.is_best)]


def prune(connection: Connection, *, org: str, run_id: str, flow: FlowSpec) -> list[Any]:
    """Take what need not be kept from the list; returns the rows that stay, oldest first."""
    listed, settings = list(outputs.list_by_run(connection, org=org, run_id=run_id)), checkpoint_settings(flow)
    gone = superseded(listed, settings) if settings is not None else []
    outputs.remove(connection, org=org, run_id=run_id, output_ids=gone)
    return [row for row in listed if row.id not in gone]


async def remove_unneeded(services: Services, *, org: str) -> None:
    """Remove bytes that are down for removal. What fails is left to the sweep."""
    if not services.store.read(lambda connection: blobs.has_unneeded(connection, org=org)):
        return
    try:
        async with services.blob_lock:  # no checkpoint is registered meanwhile, so nothing is needed anew
            hashes = services.store.read(lambda connection: blobs.list_unneeded(connection, org=org))
            await in_thread(_remove, services, org, hashes)
            await services.store.write(lambda connection: blobs.clear_unneeded(connection, org=org))
    except BlobHeld:
        log.info("bytes of checkpoints that are not kept go when a backup or a restore needs them no more")
    except (OSError, BlobError, StoreUnavailable) as error:
        log.error("bytes of checkpoints that are not kept are not all gone yet: %s", error)


def start(services: Services, *, org: str) -> None:
    """Let a task look at what was given up; what comes while it does waits for the sweep."""
    services.jobs.start(("contents", org, "unneeded"), lambda: remove_unneeded_contents(services, org=org))


async def remove_unneeded_contents(services: Services, *, org: str) -> None:
    """Let go of pictures that nothing needs, of versions that name them, and of the room they took in packs."""
    if not services.store.read(partial(version_rows.list_unneeded_contents, org=org)):
        return
    try:
        affected = await _settle(services, org)
        for sha256 in sorted(affected):
            await _tidy(services, org, sha256)
    except (OSError, BlobError, StoreUnavailable) as error:
        log.error("pictures that nothing needs are not all gone yet: %s", error)
    await remove_unneeded(services, org=org)


async def _settle(services: Services, org: str) -> set[str]:
    """Decide about every picture that was put down, some at a time; returns the blobs that hold one that went."""
    down = sorted(services.store.read(partial(version_rows.list_unneeded_contents, org=org)))
    # before they are: a new one is not among them
    examined = services.store.read(partial(version_rows.list_ids, org=org))
    named = await in_thread(_named_by_versions, services, org, set(down))
    affected = set[str]()
    for start in range(0, len(down), AT_ONCE):
        some = set(down[start : start + AT_ONCE])
        affected |= await services.store.write(
            partial(_settle_some, org=org, down=some, named=named, examined=examined)
        )
    return affected


def _settle_some(
    connection: Connection,
    *,
    org: str,
    down: set[str],
    named: dict[tuple[str, str], set[str]],
    examined: set[tuple[str, str]],
) -> set[str]:
    if version_rows.list_ids(connection, org=org) - examined:
        return set()  # a version that was made meanwhile may name one of them: the next sweep knows it
    shown = asset_rows.find_used_contents(connection, org=org, hashes=down)
    held = set[str]()
    going = []
    for (dataset_id, version), contents in named.items():
        if version_rows.is_pinned(connection, org=org, dataset_id=dataset_id, version=version):
            held |= contents & down
        else:
            going.append((dataset_id, version))
    held -= shown
    gone = down - shown - held
    for dataset_id, version in going:
        if named[dataset_id, version] & gone:
            manifest = version_rows.remove(connection, org=org, dataset_id=dataset_id, version=version)
            blobs.mark_unneeded(connection, org=org, hashes=manifest)
    version_rows.mark_needed(connection, org=org, needed=shown)
    affected = version_rows.record_content_checks(connection, org=org, held=held, gone=gone)
    blobs.mark_unneeded(connection, org=org, hashes=affected)  # those that hold nothing any more
    return affected


def _named_by_versions(services: Services, org: str, hashes: set[str]) -> dict[tuple[str, str], set[str]]:
    """Which of the pictures each version names, by dataset and version; those that name none are left out."""
    found = {}
    for row in services.store.read(partial(version_rows.list_all, org=org)):
        try:
            with services.blobs(org).open(row.sha256) as file:
                named = {_CONTENT.decode(line).sha256 for line in file} & hashes
        except BlobError as error:
            # Nobody can learn from it any more, so it holds on to nothing; that it is lost is told by ``runyard gc``.
            log.error("version %s of dataset %s cannot be read: %s", row.id, row.dataset_id, error)
            continue
        if named:
            found[row.dataset_id, row.id] = named
    return found


async def _tidy(services: Services, org: str, sha256: str) -> None:
    """Write a pack anew of which less than half is needed."""
    kept = services.store.read(partial(version_rows.list_in_blob, org=org, sha256=sha256))
    store = services.blobs(org)
    if not kept or 2 * sum(place.size_bytes for place in kept) >= store.size_bytes(sha256):
        return
    async with services.blob_lock:
        new, offsets = await in_thread(_rewritten, store, sha256, kept)

        def work(connection: Connection) -> None:
            version_rows.move_contents(connection, org=org, old=sha256, new=new, offsets=offsets)
            blobs.mark_unneeded(connection, org=org, hashes={sha256, new})

        await services.store.write(work)


def _rewritten(store: Any, sha256: str, kept: Sequence[Any]) -> tuple[str, dict[str, int]]:
    """A pack of the pictures alone that are needed: its hash, and where each begins."""
    with store.open(sha256) as file:
        pieces = []
        for place in kept:
            file.seek(place.offset)
            pieces.append((place.content, file.read(place.size_bytes)))
    data = pack(pieces)
    new = hashlib.sha256(data).hexdigest()
    store.put(io.BytesIO(data), sha256=new, size_bytes=len(data))
    offsets = {entry.path: entry.offset for entry in read_index(io.BytesIO(data), len(data))}
    return new, offsets


def _remove(services: Services, org: str, hashes: set[str]) -> None:
    for sha256 in sorted(hashes):
        services.blobs(org).delete(sha256)
