"""How many checkpoints of a run are kept: the flow's ``checkpoint.keep`` newest, and the best with ``keepBest``.

Rows go first, in the transaction that lists a newer checkpoint, together with a note of the bytes that nothing needs
any more. The bytes follow; after a crash in between the sweep removes what is noted. So a listed checkpoint always has
its bytes, and what is not listed is never left over. A download under way of one that goes breaks off, loudly.
"""

import asyncio
import logging
from typing import Any

from sqlalchemy import Connection

from runyard.blobs import BlobError, BlobHeld
from runyard.flows import FlowProblems, resolve
from runyard.flows.blocks import Checkpoint
from runyard.server.services.context import Services
from runyard.store import StoreUnavailable, blobs, outputs
from vi.api.resources.flows.responses import FlowSpec

log = logging.getLogger(__name__)


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
    listed, settings = list(outputs.of_run(connection, org=org, run_id=run_id)), checkpoint_settings(flow)
    gone = superseded(listed, settings) if settings is not None else []
    outputs.remove(connection, org=org, run_id=run_id, output_ids=gone)
    return [row for row in listed if row.id not in gone]


async def remove_unneeded(services: Services, *, org: str) -> None:
    """Remove bytes that are down for removal. What fails is left to the sweep."""
    if not services.store.read(lambda connection: blobs.has_unneeded(connection, org=org)):
        return
    try:
        async with services.blob_lock:  # no checkpoint is registered meanwhile, so nothing is needed anew
            hashes = services.store.read(lambda connection: blobs.unneeded(connection, org=org))
            await asyncio.to_thread(_remove, services, org, hashes)
            await services.store.write(lambda connection: blobs.forget_unneeded(connection, org=org))
    except BlobHeld:
        log.info("bytes of checkpoints that are not kept go when a backup or a restore needs them no more")
    except (OSError, BlobError, StoreUnavailable) as error:
        log.error("bytes of checkpoints that are not kept are not all gone yet: %s", error)


def _remove(services: Services, org: str, hashes: set[str]) -> None:
    for sha256 in sorted(hashes):
        services.blobs(org).delete(sha256)
